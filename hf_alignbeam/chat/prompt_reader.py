"""Reads a batch of prompts: the messages and the prefill of each row, and which rows share a prompt.

Knows the target's prompts, and which given conversation belongs to which row. Knows no anchor, no distribution and no step.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import Conversation, Message, ParsedPrompt, prompt_from_messages
from hf_alignbeam.chat.template_parser import TemplateParser

PromptIds = tuple[int, ...]


class PromptReader:
    """Reads the target's prompts, from their ids alone or with the help of given conversations.

    Args:
        tokenizer: The target's tokenizer.
        template: For a target without a chat template: a Jinja template, or a callable from the prompt's text to the
            conversation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | Callable[[str], Conversation] | None = None):
        self._parser = TemplateParser(tokenizer, template)
        self._has_warned = False

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends one of the target's answers."""
        return self._parser.eos_ids

    def check_no_reasoning(self, rows: Sequence[Sequence[int]]) -> None:
        """Raise ValueError where the first tokens of one of the target's answers begin reasoning."""
        for row in rows:
            self._parser.check_no_reasoning(row)

    def leading_whitespace(self, messages: list[Message]) -> bytes:
        """The white space that the target writes before the first word of its answer to a conversation."""
        return self._parser.leading_whitespace(messages)

    def read(
        self, input_ids: Tensor, conversations: Sequence[list[Message]] | None, attention_mask: object = None
    ) -> tuple[list[ParsedPrompt], list[int]]:
        """Parse the prompt of every row.

        Args:
            input_ids: (rows, length) prompts, left padding included; of length 0 where `generate` was given embeddings.
            conversations: The prompts' conversations, one a prompt, each prompt standing in equally many rows; None to
                recover them from the ids.
            attention_mask: (rows, length) 0 at padding, where there is one.

        Returns:
            Each row's prompt, and each row's prompt number: rows of one prompt are its beams or samples.

        Raises:
            ValueError: A prompt is empty, or the conversations do not fit the rows.
        """
        rows: list[PromptIds] = [tuple(row) for row in input_ids.tolist()]
        if isinstance(attention_mask, Tensor) and attention_mask.shape == input_ids.shape:
            rows = [_attended(row, mask) for row, mask in zip(rows, attention_mask.tolist(), strict=True)]
        if conversations is None:
            numbers = {row: number for number, row in enumerate(dict.fromkeys(rows))}
            prompts = [self._recover(row) for row in numbers]
            groups = [numbers[row] for row in rows]
        else:
            n_each = _rows_per_prompt(rows, len(conversations))
            prompts = [self._combine(rows[number * n_each], messages) for number, messages in enumerate(conversations)]
            groups = [number // n_each for number in range(len(rows))]
        return [prompts[group] for group in groups], groups

    def _recover(self, row: PromptIds) -> ParsedPrompt:
        """A row's prompt from its ids alone; where they do not follow the template, their text as one user message."""
        if not row:
            raise ValueError(
                "`conversations` must be given where `generate` gets `inputs_embeds`, which do not show the prompt's text, got "
                "None. Use `with_conversations(...)`."
            )
        return self._parser.parse(row) or self._plain_prompt(row)

    def _combine(self, row: PromptIds, messages: list[Message]) -> ParsedPrompt:
        """A given conversation as a prompt; its ids add the leading white space, and the prefill that it does not hold."""
        has_prefill = messages[-1]["role"] == "assistant"
        parsed = self._parser.parse(row) if row else None
        if parsed:
            leading_whitespace = parsed.leading_whitespace
        else:
            leading_whitespace = b"" if row or has_prefill else self._parser.leading_whitespace(messages)
        if has_prefill:
            return replace(prompt_from_messages(messages), leading_whitespace=leading_whitespace)
        return ParsedPrompt(messages, parsed.prefill if parsed else b"", leading_whitespace)

    def _plain_prompt(self, row: PromptIds) -> ParsedPrompt:
        """A row's whole text as one user message, but for the start of an answer."""
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "The prompt does not follow the target's chat template, so the anchor reads its whole plain text as one "
                "user message. Pass `conversations`, or a `template` that recovers them.",
                stacklevel=2,
            )
        return self._parser.plain_prompt(row)


def _attended(row: PromptIds, mask: Sequence[int]) -> PromptIds:
    """A row without masked ids at its beginning, if they are all the same: other ids may be words, which a judge must read."""
    n_masked = next((n for n, is_attended in enumerate(mask) if is_attended), 0)
    return row[n_masked:] if len(set(row[:n_masked])) == 1 else row


def _rows_per_prompt(rows: Sequence[PromptIds], n_conversations: int) -> int:
    """The number of consecutive rows that each prompt takes."""
    n_each, n_left = divmod(len(rows), n_conversations)
    groups_agree = n_each and all(row == rows[number - number % n_each] for number, row in enumerate(rows))
    if n_left or not groups_agree:
        different = "" if n_left or not n_each else " with different prompts"
        raise ValueError(
            f"`conversations` must hold one conversation a prompt, got {n_conversations} for {len(rows)} rows{different}. Use "
            "`with_conversations` for each batch, or leave it out."
        )
    return n_each
