"""Where each row of a batch starts: what its prompt asks, and how the anchor's reading of that begins.

Knows prompts and conversations on both sides, and which conversation goes with which row. Knows no distribution and no step.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import Conversation, Message, ParsedPrompt, split_prefill
from hf_alignbeam.chat.template_parser import ChatReader

PromptIds = tuple[int, ...]


class Prompts:
    """Reads the target's prompts, and renders what they ask for the anchor.

    Args:
        tokenizer: The target's tokenizer.
        template: For a target without a chat template: a Jinja template, or a callable from the prompt's text to the
            conversation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | Callable[[str], Conversation] | None = None):
        self._reader = ChatReader(tokenizer, template)
        self._told_plain = False

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends one of the target's answers."""
        return self._reader.eos_ids

    def check_written(self, rows: Sequence[Sequence[int]]) -> None:
        """Raise ValueError where the first tokens of one of the target's answers begin reasoning."""
        for row in rows:
            self._reader.check_written(row)

    def leading_whitespace(self, messages: list[Message]) -> bytes:
        """The white space that the target writes before the first word of its answer to a conversation."""
        return self._reader.leading_whitespace(messages)

    def asked(self, input_ids: Tensor, conversations: Sequence[list[Message]] | None) -> tuple[list[ParsedPrompt], list[int]]:
        """What every row asks.

        Args:
            input_ids: (rows, length) prompts, left padding included; of length 0 where `generate` was given embeddings.
            conversations: What they say, one a prompt, each prompt standing in equally many rows; None to recover it.

        Returns:
            What each row asks, and by row the number of its prompt: rows of one prompt are beams or samples of it.

        Raises:
            ValueError: A prompt says nothing, or the conversations do not fit the rows.
        """
        rows: list[PromptIds] = [tuple(row) for row in input_ids.tolist()]
        if conversations is None:
            numbers = {row: number for number, row in enumerate(dict.fromkeys(rows))}
            found = [self._recovered(row) for row in numbers]
            groups = [numbers[row] for row in rows]
        else:
            n_each = _rows_each(rows, len(conversations))
            found = [self._given(rows[number * n_each], messages) for number, messages in enumerate(conversations)]
            groups = [number // n_each for number in range(len(rows))]
        return [found[group] for group in groups], groups

    def _recovered(self, row: PromptIds) -> ParsedPrompt:
        if not row:
            raise ValueError(
                "`conversations` must be given where `generate` gets `inputs_embeds`, for the prompt is then not to be seen, got "
                "None. Use `with_conversations(...)`."
            )
        return self._reader.read(row) or ParsedPrompt(self._plain(row), b"", b"")

    def _given(self, row: PromptIds, messages: list[Message]) -> ParsedPrompt:
        """A conversation's own words; of the prompt, only what its reply's opening says of the first token."""
        begins = messages[-1]["role"] == "assistant"
        found = self._reader.read(row) if row else None
        target_only_prefix = (
            found.leading_whitespace if found else b"" if row or begins else self._reader.leading_whitespace(messages)
        )
        if not begins:
            return ParsedPrompt(messages, found.prefill if found else b"", target_only_prefix)
        return replace(split_prefill(messages), leading_whitespace=target_only_prefix)

    def _plain(self, row: PromptIds) -> list[Message]:
        if not self._told_plain:
            self._told_plain = True
            warnings.warn(
                "The prompt does not follow the target's chat template, so the anchor reads its whole plain text as one "
                "question. Pass `conversations`, or a `template` that recovers them.",
                stacklevel=2,
            )
        return [{"role": "user", "content": self._reader.plain(row)}]


def _rows_each(rows: Sequence[PromptIds], n_conversations: int) -> int:
    """In how many rows, one after the other, each prompt stands."""
    n_each, n_over = divmod(len(rows), n_conversations)
    alike = n_each and all(row == rows[number - number % n_each] for number, row in enumerate(rows))
    if n_over or not alike:
        different = "" if n_over or not n_each else " with different prompts"
        raise ValueError(
            f"`conversations` must hold one conversation a prompt, got {n_conversations} for {len(rows)} rows{different}. Use "
            "`with_conversations` for each batch, or leave it out."
        )
    return n_each
