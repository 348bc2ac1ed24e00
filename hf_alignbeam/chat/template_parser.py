"""Conversations parsed from the target's prompt ids: its chat template is learned around placeholders, then undone.

Knows one tokenizer and its template. Knows no anchor and no model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import Conversation, Message, ParsedPrompt, as_messages
from hf_alignbeam.chat.templates import (
    ANSWER_PLACEHOLDER,
    QUESTION_PLACEHOLDER,
    REASONING_MARKERS,
    AnswerOpening,
    answer_opening,
    bytes_with_special_tokens,
    encode_prompt,
    leading_reasoning_marker,
    missing_reasoning_end,
    render_or_none,
    special_token_names,
)
from hf_alignbeam.tokenization.vocabulary import decode, token_bytes

#: The advice in every error about a target that reasons.
_REASONING_ADVICE = (
    "Steering would end inside the reasoning: render the prompt with `enable_thinking=False`, or append the end of the "
    "reasoning, or the opening of the answer's channel, to the prompt."
)
_SECOND_PLACEHOLDER, _SYSTEM_PLACEHOLDER, _TOOL_PLACEHOLDER = "Qzxsecond", "Qzxsystem", "Qzxtool"


@dataclass(frozen=True)
class TurnBoundary:
    """The text between the end of one message and the next one.

    Attributes:
        text: What the template writes between them.
        next_role: The role of the next message.
        opening: How the next message begins if it is an answer; None for any other role.
    """

    text: bytes
    next_role: str
    opening: AnswerOpening | None = None


@dataclass(frozen=True)
class ChatFormat:
    """A chat template as the text that it writes around messages.

    Attributes:
        start: What stands before the first user message.
        around_system: What stands before a system message, and between it and the first user message; None where the
            template has no system role.
        boundaries: By the role of a message, what may follow it, the longest text first.
        eos_ids: The special ids that end an answer.
    """

    start: bytes
    around_system: tuple[bytes, bytes] | None
    boundaries: Mapping[str, tuple[TurnBoundary, ...]]
    eos_ids: frozenset[int]

    def parse(self, text: bytes) -> tuple[list[Message], bytes, AnswerOpening] | None:
        """Recover the conversation that renders to a text.

        Returns:
            The messages, the text after the last answer's opening, and that opening; None where the text does not follow the
            template.
        """
        messages, rest = self._split_start(text)
        role, opening = "user", None
        while rest is not None:
            matches = [(rest.find(boundary.text), boundary) for boundary in self.boundaries[role]]
            first = min((match for match in matches if match[0] >= 0), key=lambda match: match[0], default=None)
            if first is None:
                return (messages, rest, opening) if opening is not None else None
            at, boundary = first
            content = rest[:at].removeprefix(opening.leading_whitespace) if opening is not None else rest[:at]
            messages.append({"role": role, "content": _decode_stripped(content)})
            rest, role, opening = rest[at + len(boundary.text) :], boundary.next_role, boundary.opening
        return None

    def _split_start(self, text: bytes) -> tuple[list[Message], bytes | None]:
        """The system message, if there is one, and the text from the first user message on; None for an unknown start."""
        before, after = self.around_system or (b"", b"")
        longest = max((start for start in (self.start, before) if text.startswith(start)), key=len, default=None)
        if longest is None:
            return [], None
        rest = text[len(longest) :]
        if longest == self.start:
            return [], rest
        system, _, rest = rest.partition(after)
        return [{"role": "system", "content": _decode_stripped(system)}], rest


class TemplateParser:
    """Parses the target's prompt ids into conversations, and knows how the target's answers begin and end.

    Args:
        tokenizer: The target's tokenizer.
        template: For a tokenizer without a chat template, or prompts rendered with another one: a Jinja template, or a
            callable from the prompt's text to the conversation.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | Callable[[str], Conversation] | None = None,
    ):
        self._tokenizer = tokenizer
        self._tokens = token_bytes(tokenizer)
        self._names = special_token_names(tokenizer)
        self._parse_text = template if callable(template) else None
        jinja = template if isinstance(template, str) else tokenizer.chat_template
        self._format = None if jinja is None else learn_format(tokenizer, self._tokens, jinja)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends an answer: the tokenizer's EOS, and the id that the template writes there."""
        own = frozenset() if self._tokenizer.eos_token_id is None else frozenset([self._tokenizer.eos_token_id])
        return own | (self._format.eos_ids if self._format else frozenset())

    def parse(self, ids: Sequence[int]) -> ParsedPrompt | None:
        """Parse one row of prompt ids.

        Args:
            ids: Prompt ids, left padding included.

        Returns:
            The prompt; None where the ids do not follow the template.

        Raises:
            ValueError: The prompt holds no text, or asks for an answer that begins with reasoning.
        """
        text = bytes_with_special_tokens(self._tokenizer, self._tokens, without_left_padding(self._tokenizer, ids))
        if not any(self._tokens[i] for i in ids if i < len(self._tokens)):
            raise ValueError(
                f"The prompt must hold some text, got only special tokens: {text.decode(errors='replace')!r}. An "
                "empty prompt cannot be steered, and neither can an encoder-decoder model, whose answer starts from "
                "a lone start token."
            )
        if self._parse_text is not None:
            return ParsedPrompt(as_messages(self._parse_text(_decode_stripped(text))), b"", b"")
        parsed = self._parse_bytes(text)
        if parsed is None:
            return None
        messages, rest, opening = parsed
        holds_turns = any(name in rest.rstrip().removesuffix(name) for name in self._names.values())
        reasoning_next = opening.reasoning_first and (holds_turns or not rest)
        if reasoning_next or missing_reasoning_end(opening.opening + rest):
            raise ValueError(
                f"The target's replies must begin with their answer, but after {_decode_stripped(opening.opening)!r} its "
                f"template begins with reasoning. {_REASONING_ADVICE}"
            )
        if holds_turns:
            return None  # turns of a role that was not learned, not the start of an answer
        prefill = _drop_empty_reasoning(rest) if opening.reasoning_first else rest.removeprefix(opening.leading_whitespace)
        return ParsedPrompt(messages, prefill, b"" if rest else opening.leading_whitespace)

    def check_no_reasoning(self, ids: Sequence[int]) -> None:
        """Raise ValueError where an answer's first tokens begin reasoning that the template did not announce."""
        text = b"".join((self._tokens[i] if i < len(self._tokens) else None) or self._names.get(i, b"") for i in ids)
        marker = leading_reasoning_marker(text)
        if marker is not None:
            raise ValueError(
                f"The target's replies must begin with their answer, but one began with {marker!r}. {_REASONING_ADVICE}"
            )

    def leading_whitespace(self, messages: list[Message]) -> bytes:
        """The white space that the target writes before the first word of its answer to a conversation."""
        return encode_prompt(self._tokenizer, self._tokens, messages)[1]

    def plain_text(self, ids: Sequence[int]) -> str:
        """The prompt's text without special tokens, for a prompt that does not follow the template."""
        return _decode_stripped(decode(self._tokens, ids))

    def _parse_bytes(self, text: bytes) -> tuple[list[Message], bytes, AnswerOpening] | None:
        """Parse by the template; a BOS in front may be padding of the same id that the template never wrote."""
        if self._format is None:
            return None
        bos = (self._tokenizer.bos_token or "").encode()
        return self._format.parse(text) or (self._format.parse(text.removeprefix(bos)) if bos else None)


@dataclass(frozen=True)
class _PlaceholderRenderer:
    """Renders placeholder messages, given as (role, content), to see what a Jinja chat template writes around them."""

    tokenizer: PreTrainedTokenizerBase
    tokens: list[bytes | None]
    template: str

    def text_around(self, *messages: tuple[str, str], **options: Any) -> list[bytes]:
        """The text before, between and after messages; an empty list where the template refuses or drops one of them."""
        conversation = [{"role": role, "content": content} for role, content in messages]
        text = render_or_none(self.tokenizer, conversation, chat_template=self.template, **options)
        if text is None:
            return []
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        rest = bytes_with_special_tokens(self.tokenizer, self.tokens, ids)
        parts = []
        for _, content in messages:
            before, placeholder, rest = rest.partition(content.encode())
            if not placeholder:
                return []
            parts.append(before)
        return [*parts, rest]

    def answer_boundaries(self, *messages: tuple[str, str]) -> list[TurnBoundary]:
        """The ways in which an answer may begin after messages."""
        before_answer = (self.text_around(*messages, ("assistant", _SECOND_PLACEHOLDER)) or [b"", b""])[-2]
        openings = {}
        for options in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
            if parts := self.text_around(*messages, add_generation_prompt=True, **options):
                openings[parts[-1]] = answer_opening(parts[-1], before_answer)
        if any(opening.reasoning_first and before_answer.startswith(text) for text, opening in openings.items()):
            openings.setdefault(before_answer, AnswerOpening(before_answer, b"", False))
        return [TurnBoundary(text, "assistant", opening) for text, opening in openings.items()]


def learn_format(tokenizer: PreTrainedTokenizerBase, tokens: list[bytes | None], template: str) -> ChatFormat | None:
    """Learn what a Jinja chat template writes around messages; None where it hides that."""
    renderer = _PlaceholderRenderer(tokenizer, tokens, template)
    user, answer = ("user", QUESTION_PLACEHOLDER), ("assistant", ANSWER_PLACEHOLDER)
    tool, second_tool = ("tool", _TOOL_PLACEHOLDER), ("tool", _SECOND_PLACEHOLDER)
    answered = renderer.text_around(user, answer)
    if not answered:
        return None
    boundaries: dict[str, list[TurnBoundary]] = {"user": renderer.answer_boundaries(user), "assistant": [], "tool": []}
    if second := renderer.text_around(user, answer, ("user", _SECOND_PLACEHOLDER), add_generation_prompt=True):
        earlier = second[1].rstrip() or second[1]
        boundaries["user"].append(TurnBoundary(earlier, "assistant", AnswerOpening(earlier, b"", False)))
        boundaries["assistant"].append(TurnBoundary(second[2], "user"))
    if with_tools := renderer.text_around(user, answer, tool, second_tool):
        boundaries["assistant"].append(TurnBoundary(with_tools[2], "tool"))
        boundaries["tool"] = [*renderer.answer_boundaries(user, answer, tool), TurnBoundary(with_tools[3], "tool")]
    with_system = renderer.text_around(("system", _SYSTEM_PLACEHOLDER), user)
    eos_ids = {i for i, name in special_token_names(tokenizer).items() if answered[-1].lstrip().startswith(name)}
    longest_first = {
        role: tuple(sorted((b for b in candidates if b.text), key=lambda b: -len(b.text)))
        for role, candidates in boundaries.items()
    }
    if not longest_first["user"]:
        return None
    around_system = (with_system[0], with_system[1]) if with_system else None
    return ChatFormat(answered[0], around_system, longest_first, frozenset(eos_ids))


def without_left_padding(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """Prompt ids without their left padding; a BOS that doubles as the pad token is kept once."""
    pad = tokenizer.pad_token_id
    n_pads = next((n for n, i in enumerate(ids) if i != pad), len(ids))
    if n_pads and pad == tokenizer.bos_token_id:
        n_pads -= 1
    return list(ids[n_pads:])


def _drop_empty_reasoning(text: bytes) -> bytes:
    """The start of an answer without a reasoning block before it, if that block is empty."""
    for begin, end in REASONING_MARKERS.items():
        before, marker, after = text.partition(end.encode())
        if marker and not before.replace(begin.encode(), b"").strip():
            return after.lstrip()
    return text


def _decode_stripped(text: bytes) -> str:
    return text.decode(errors="replace").strip()
