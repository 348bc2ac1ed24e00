"""Conversations parsed from the target's prompt ids: what its chat template writes around messages is undone.

Knows one tokenizer and its template. Knows no anchor and no model.
"""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from hf_alignbeam.chat.chat_format import ChatFormat, decode_stripped
from hf_alignbeam.chat.conversations import Conversation, Message, ParsedPrompt, as_messages
from hf_alignbeam.chat.format_learning import learn_format
from hf_alignbeam.chat.templates import (
    REASONING_MARKERS,
    AnswerOpening,
    bytes_with_special_tokens,
    chat_templates,
    encode_prompt,
    leading_reasoning_marker,
    missing_reasoning_end,
    placeholders,
    render_or_none,
    special_token_names,
)
from hf_alignbeam.tokenization.vocabulary import decode, token_bytes

#: The advice in every error about a target that reasons.
_REASONING_ADVICE = (
    "Steering would end inside the reasoning: render the prompt with `enable_thinking=False`, or append the end of the "
    "reasoning, or the opening of the answer's channel, to the prompt."
)


class TemplateParser:
    """Parses the target's prompt ids into conversations, and knows how the target's answers begin and end.

    Args:
        tokenizer: The target's tokenizer.
        template: For a tokenizer without a chat template, or prompts rendered with another one: a Jinja template, or a
            callable from the prompt's text to the conversation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | Callable[[str], Conversation] | None = None):
        self._tokenizer = tokenizer
        self._tokens = token_bytes(tokenizer)
        self._names = special_token_names(tokenizer)
        self._parse_text = template if callable(template) else None
        self._jinja = template if isinstance(template, str) else None
        self._learned: dict[tuple[str, str | None], ChatFormat | None] = {}
        _ = self._formats

    @property
    def _formats(self) -> list[ChatFormat]:
        """The formats of the tokenizer's templates. One is learned anew where it writes something else: another day's date."""
        question = [{"role": "user", "content": placeholders(self._tokenizer, self._tokens)[0]}]
        now = {}
        for template in [self._jinja] if self._jinja is not None else chat_templates(self._tokenizer):
            key = template, render_or_none(self._tokenizer, question, chat_template=template, add_generation_prompt=True)
            now[key] = self._learned[key] if key in self._learned else learn_format(self._tokenizer, self._tokens, template)
        earlier = {key: learned for key, learned in self._learned.items() if key not in now}
        self._learned = {**now, **dict(list(earlier.items())[: len(now)])}  # a prompt may have been rendered before midnight
        return [learned for learned in self._learned.values() if learned is not None]

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends an answer: the tokenizer's EOS, and the id that the template writes there."""
        own = frozenset() if self._tokenizer.eos_token_id is None else frozenset([self._tokenizer.eos_token_id])
        return own.union(*(learned.eos_ids for learned in self._formats))

    def parse(self, ids: Sequence[int]) -> ParsedPrompt | None:
        """Parse one row of prompt ids, left padding included; None where the ids do not follow the template.

        Raises:
            ValueError: The prompt holds no text, or asks for an answer that begins with reasoning.
        """
        text = self._text(without_left_padding(self._tokenizer, ids))
        if not any(self._tokens[i] for i in ids if i < len(self._tokens)):
            raise ValueError(
                f"The prompt must hold some text, got only special tokens: {text.decode(errors='replace')!r}. An empty prompt "
                "cannot be steered, and neither can an encoder-decoder model, whose answer starts from a lone start token."
            )
        if self._parse_text is not None:
            return ParsedPrompt(as_messages(self._parse_text(decode_stripped(text))), b"", b"")
        found = self._parse_ids(ids)
        if found is None:
            return None
        learned, (messages, rest, opening) = found
        holds_turns = any(name in rest.rstrip().removesuffix(name) for name in self._names.values())
        reasoning_next = opening.reasoning_first and (holds_turns or not rest)
        if reasoning_next or missing_reasoning_end(opening.opening + rest):
            raise ValueError(
                f"The target's replies must begin with their answer, but after {decode_stripped(opening.opening)!r} its "
                f"template begins with reasoning. {_REASONING_ADVICE}"
            )
        if learned.split_last_answer(rest):
            return None  # turns of a role that was not learned, not the start of an answer
        return _opened(learned, messages, rest, opening)

    def plain_prompt(self, ids: Sequence[int]) -> ParsedPrompt:
        """A prompt that does not follow the template: its text as one user message, but for the start of an answer."""
        text = self._text(ids)
        for learned in self._formats:
            if split := learned.split_last_answer(text):
                content = decode_stripped(learned.without_names(split[0]))
                return _opened(learned, [{"role": "user", "content": content}], *split[1:])
        return ParsedPrompt([{"role": "user", "content": decode_stripped(decode(self._tokens, ids))}], b"", b"")

    def check_no_reasoning(self, ids: Sequence[int]) -> None:
        """Raise ValueError where an answer's first tokens begin reasoning that the template did not announce."""
        text = b"".join((self._tokens[i] if i < len(self._tokens) else None) or self._names.get(i, b"") for i in ids)
        if (marker := leading_reasoning_marker(text)) is not None:
            raise ValueError(
                f"The target's replies must begin with their answer, but one began with {marker!r}. {_REASONING_ADVICE}"
            )

    def leading_whitespace(self, messages: list[Message]) -> bytes:
        """The white space that the target writes before the first word of its answer to a conversation."""
        return encode_prompt(self._tokenizer, self._tokens, messages)[1]

    def _text(self, ids: Sequence[int]) -> bytes:
        return bytes_with_special_tokens(self._tokenizer, self._tokens, ids)

    def _parse_ids(self, ids: Sequence[int]) -> tuple[ChatFormat, tuple[list[Message], bytes, AnswerOpening]] | None:
        """Parse by the first format that fits. Any number of equal ids at the beginning may be padding.

        A caller's tokenizer may pad with an id that this one does not name, and a template may begin with it.
        """
        n_run = next((n for n, i in enumerate(ids) if i != ids[0]), len(ids))
        is_word = ids[0] < len(self._tokens) and self._tokens[ids[0]] is not None and ids[0] != self._tokenizer.pad_token_id
        is_alone = is_word and n_run == 1
        for n_kept in dict.fromkeys([n_run] if is_alone else [0, n_run] if is_word else [*range(min(n_run, 3)), n_run]):
            text = self._text(ids[n_run - n_kept :])
            for learned in self._formats:
                begins_with_name = learned.names.match(learned.start) is not None
                if (n_kept or not is_word or begins_with_name) and (parsed := learned.parse(text)):
                    return learned, parsed
        return None


def without_left_padding(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """Prompt ids without their left padding; a BOS that doubles as the pad token is kept once."""
    n_run = next((n for n, i in enumerate(ids) if i != ids[0]), len(ids))
    is_padding = n_run and (ids[0] == tokenizer.pad_token_id or (n_run > 1 and ids[0] in special_token_names(tokenizer)))
    n_pads = n_run - (ids[0] == tokenizer.bos_token_id) if is_padding else 0
    return list(ids[n_pads:])


def _opened(learned: ChatFormat, messages: list[Message], rest: bytes, opening: AnswerOpening) -> ParsedPrompt:
    """A prompt whose answer was opened, and what the answer holds already."""
    prefill = _drop_empty_reasoning(rest) if opening.reasoning_first else rest.removeprefix(opening.leading_whitespace)
    return ParsedPrompt(messages, learned.without_names(prefill), b"" if rest else opening.leading_whitespace)


def _drop_empty_reasoning(text: bytes) -> bytes:
    """The start of an answer without a reasoning block before it, if that block is empty."""
    for begin, end in REASONING_MARKERS.items():
        before, marker, after = text.partition(end.encode())
        if marker and not before.replace(begin.encode(), b"").strip():
            return after.lstrip()
    return text
