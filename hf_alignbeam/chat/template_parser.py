"""Conversations recovered from a target's prompt ids: its chat template learned around sentinels, and read backwards.

Knows one tokenizer and its template. Knows no anchor and no model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import Conversation, Message, ParsedPrompt, as_messages
from hf_alignbeam.chat.templates import (
    ANSWER,
    QUESTION,
    REASONING,
    AnswerOpening,
    begins_reasoning,
    raw_text,
    render_prompt,
    rendered,
    reply_after,
    special_names,
    unended_reasoning,
)
from hf_alignbeam.tokenization.vocabulary import decode, token_bytes

#: What a user can do about a target that reasons.
_WAY_OUT = (
    "Steering would end inside it: render the prompt with `enable_thinking=False`, or write the reasoning's end, or what opens "
    "the channel of the answer, into the prompt."
)
_SECOND, _SYSTEM, _TOOL = "Qzxsecond", "Qzxsystem", "Qzxtool"


@dataclass(frozen=True)
class Turn:
    """What stands between the end of one message and the next one: the next one's role, and how it begins if it is an answer."""

    mark: bytes
    role: str
    reply: AnswerOpening | None = None


@dataclass(frozen=True)
class ChatFormat:
    """A chat template as text around messages, learned by rendering it once around sentinels.

    Attributes:
        start: What stands before the first question.
        around_system: What stands before and after a system message, up to the first question; None without that role.
        turns: By the role of a message, what may follow it, longest mark first.
        eos_ids: The special ids that end an answer.
    """

    start: bytes
    around_system: tuple[bytes, bytes] | None
    turns: Mapping[str, tuple[Turn, ...]]
    eos_ids: frozenset[int]

    def parse(self, text: bytes) -> tuple[list[Message], bytes, AnswerOpening] | None:
        """The conversation that renders to `text`.

        Returns:
            The messages, what stands after the last opening, and the reply it opens; None where the text does not
            follow the template.
        """
        messages, rest = self._beginning(text)
        role, reply = "user", None
        while rest is not None:
            found = [(rest.find(turn.mark), turn) for turn in self.turns[role]]
            at, turn = min(((at, turn) for at, turn in found if at >= 0), key=lambda pair: pair[0], default=(-1, None))
            if turn is None:
                return (messages, rest, reply) if reply is not None else None
            said = rest[:at].removeprefix(reply.leading_whitespace) if reply is not None else rest[:at]
            messages.append({"role": role, "content": _readable(said)})
            rest, role, reply = rest[at + len(turn.mark) :], turn.role, turn.reply
        return None

    def _beginning(self, text: bytes) -> tuple[list[Message], bytes | None]:
        """The system message, if there is one, and the text from the first question on."""
        before, after = self.around_system or (b"", b"")
        starts = [start for start in (self.start, before) if text.startswith(start)]
        longest = max(starts, key=len, default=None)
        if longest is None:
            return [], None
        if longest == self.start:
            return [], text[len(longest) :]
        system, _, rest = text[len(longest) :].partition(after)
        return [{"role": "system", "content": _readable(system)}], rest


class ChatReader:
    """Recovers conversations from a tokenizer's prompt ids, and knows how its answers begin and end.

    Args:
        tokenizer: The target's tokenizer.
        template: Where the tokenizer has no chat template, or another one was used: a Jinja template, or a callable
            that takes the prompt's text and returns the conversation.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | Callable[[str], Conversation] | None = None,
    ):
        self._tokenizer = tokenizer
        self._tokens = token_bytes(tokenizer)
        self._names = special_names(tokenizer)
        self._recover = template if callable(template) else None
        jinja = template if isinstance(template, str) else tokenizer.chat_template
        self.format = None if jinja is None else learn_format(tokenizer, self._tokens, jinja)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends an answer: the tokenizer's own, and the one its template puts there."""
        own = frozenset() if self._tokenizer.eos_token_id is None else frozenset([self._tokenizer.eos_token_id])
        return own | (self.format.eos_ids if self.format else frozenset())

    def read(self, ids: Sequence[int]) -> ParsedPrompt | None:
        """What one row of prompt ids asks; None where it does not follow the template.

        Args:
            ids: Prompt ids, left padding included.

        Raises:
            ValueError: The prompt holds no text, or asks for an answer that begins with reasoning.
        """
        text = raw_text(self._tokenizer, self._tokens, unpadded(self._tokenizer, ids))
        if not any(self._tokens[i] for i in ids if i < len(self._tokens)):
            raise ValueError(
                f"The prompt must hold some text, got only special tokens: {text.decode(errors='replace')!r}. An "
                "empty prompt cannot be steered, and neither can an encoder-decoder model, whose answer starts from "
                "a lone start token."
            )
        if self._recover is not None:
            return ParsedPrompt(as_messages(self._recover(_readable(text))), b"", b"")
        found = self._parse(text)
        if found is None:
            return None
        messages, rest, reply = found
        has_turns = any(name in rest.rstrip().removesuffix(name) for name in self._names.values())
        if (reply.reasons and (has_turns or not rest)) or unended_reasoning(reply.opening + rest):
            raise ValueError(
                f"The target's replies must begin with their answer, but after {_readable(reply.opening)!r} its "
                f"template begins with reasoning. {_WAY_OUT}"
            )
        if has_turns:
            return None  # of a kind that was not learned, and not the start of an answer
        prefill = _after_empty_reasoning(rest) if reply.reasons else rest.removeprefix(reply.leading_whitespace)
        return ParsedPrompt(messages, prefill, b"" if rest else reply.leading_whitespace)

    def check_written(self, ids: Sequence[int]) -> None:
        """Raise ValueError where what was written of an answer is the beginning of reasoning that no template told of."""
        written = b"".join((self._tokens[i] if i < len(self._tokens) else None) or self._names.get(i, b"") for i in ids)
        opening = begins_reasoning(written)
        if opening is not None:
            raise ValueError(f"The target's replies must begin with their answer, but one began with {opening!r}. {_WAY_OUT}")

    def _parse(self, text: bytes) -> tuple[list[Message], bytes, AnswerOpening] | None:
        """The prompt by its template; a BOS in front may be padding of the same id that the template never wrote."""
        if self.format is None:
            return None
        bos = (self._tokenizer.bos_token or "").encode()
        return self.format.parse(text) or (self.format.parse(text.removeprefix(bos)) if bos else None)

    def leading_whitespace(self, messages: list[Message]) -> bytes:
        """The white space that the model writes before the first word of its answer to a conversation."""
        return render_prompt(self._tokenizer, self._tokens, messages)[1]

    def plain(self, ids: Sequence[int]) -> str:
        """The prompt's text without special tokens, for a prompt that follows no known template."""
        return _readable(decode(self._tokens, ids))


def learn_format(tokenizer: PreTrainedTokenizerBase, tokens: list[bytes | None], template: str) -> ChatFormat | None:
    """Learn what a Jinja chat template puts around messages; None where it cannot be seen."""

    def around(*said: tuple[str, str], **options: Any) -> list[bytes]:
        """What stands before, between and after the words of messages; nothing where the template refuses or leaves out one."""
        messages = [{"role": role, "content": content} for role, content in said]
        text = rendered(tokenizer, messages, chat_template=template, **options)
        rest = raw_text(tokenizer, tokens, tokenizer(text, add_special_tokens=False).input_ids) if text is not None else b""
        parts = []
        for _, content in said:
            before, found, rest = rest.partition(content.encode())
            if not found:
                return []
            parts.append(before)
        return [*parts, rest]

    def openings(*said: tuple[str, str]) -> list[Turn]:
        """How an answer may begin after messages."""
        before_answer = (around(*said, ("assistant", _SECOND)) or [b"", b""])[-2]
        found = {}
        for options in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
            if asked := around(*said, add_generation_prompt=True, **options):
                found[asked[-1]] = reply_after(asked[-1], before_answer)
        if any(reply.reasons and before_answer.startswith(opening) for opening, reply in found.items()):
            found.setdefault(before_answer, AnswerOpening(before_answer, b"", False))
        return [Turn(opening, "assistant", reply) for opening, reply in found.items()]

    ask, say, tool = ("user", QUESTION), ("assistant", ANSWER), ("tool", _TOOL)
    answered = around(ask, say)
    if not answered:
        return None
    turns: dict[str, list[Turn]] = {"user": openings(ask), "assistant": [], "tool": []}
    if again := around(ask, say, ("user", _SECOND), add_generation_prompt=True):
        earlier = again[1].rstrip() or again[1]
        turns["user"].append(Turn(earlier, "assistant", AnswerOpening(earlier, b"", False)))
        turns["assistant"].append(Turn(again[2], "user"))
    if tools := around(ask, say, tool, ("tool", _SECOND)):
        turns["assistant"].append(Turn(tools[2], "tool"))
        turns["tool"] = [*openings(ask, say, tool), Turn(tools[3], "tool")]
    of_system = around(("system", _SYSTEM), ask)
    ends = {i for i, name in special_names(tokenizer).items() if answered[-1].lstrip().startswith(name)}
    longest_first = {role: tuple(sorted((t for t in some if t.mark), key=lambda t: -len(t.mark))) for role, some in turns.items()}
    if not longest_first["user"]:
        return None
    return ChatFormat(answered[0], (of_system[0], of_system[1]) if of_system else None, longest_first, frozenset(ends))


def _after_empty_reasoning(text: bytes) -> bytes:
    """The start of an answer without the reasoning before it, if that says nothing."""
    for begin, end in REASONING.items():
        before, found, after = text.partition(end.encode())
        if found and not before.replace(begin.encode(), b"").strip():
            return after.lstrip()
    return text


def unpadded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """Prompt ids without their left padding; a BOS that doubles as the pad token is kept once."""
    pad = tokenizer.pad_token_id
    n_pads = next((n for n, i in enumerate(ids) if i != pad), len(ids))
    if n_pads and pad == tokenizer.bos_token_id:
        n_pads -= 1
    return list(ids[n_pads:])


def _readable(text: bytes) -> str:
    return text.decode(errors="replace").strip()
