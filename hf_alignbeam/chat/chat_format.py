"""A chat template as the text that it writes around messages, and texts parsed by it.

Knows bytes. Knows no tokenizer, and not how a template is learned.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.chat.templates import AnswerOpening


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
        question_opening: The end of every text before a user message; None where it holds no special token.
        names: The names of the special tokens.
    """

    start: bytes
    around_system: tuple[bytes, bytes] | None
    boundaries: Mapping[str, tuple[TurnBoundary, ...]]
    eos_ids: frozenset[int]
    question_opening: bytes | None
    names: re.Pattern[bytes]

    def parse(self, text: bytes) -> tuple[list[Message], bytes, AnswerOpening] | None:
        """Recover the conversation that renders to a text; None where the text does not follow the template.

        The result is the messages, the text after the last answer's opening, and that opening.
        """
        messages, rest = self._split_start(text)
        role, opening = "user", None
        while rest is not None:
            found = [(rest.index(b.text), b) for b in self.boundaries[role] if b.text in rest]
            if not found:
                return (messages, rest, opening) if opening is not None else None
            _, first = min(found, key=lambda each: each[0])
            content, _, rest = rest.partition(first.text)
            content = content.removeprefix(opening.leading_whitespace if opening is not None else b"")
            messages.append({"role": role, "content": decode_stripped(content)})
            role, opening = first.next_role, first.opening
        return None

    def split_last_answer(self, text: bytes) -> tuple[bytes, bytes, AnswerOpening] | None:
        """A text up to its last opening of an answer, the text after it, and the opening; None where none is marked as such."""
        found = [
            (text.rindex(b.text) + len(b.text), len(b.text), b.opening)
            for b in self.boundaries["user"]
            if b.opening is not None and b.text in text and self.names.search(b.opening.opening)
        ]
        end, _, opening = max(found, key=lambda each: each[:2], default=(0, 0, None))
        return None if opening is None else (text[:end], text[end:], opening)

    def without_names(self, text: bytes) -> bytes:
        """A text as its reader sees it, without special tokens."""
        return self.names.sub(b"", text)

    def _split_start(self, text: bytes) -> tuple[list[Message], bytes | None]:
        """The system message, if there is one, and the text from the first user message on; None for an unknown start."""
        before, after = self.around_system or (self.start, b"")
        longest = max((start for start in (self.start, before) if text.startswith(start)), key=len, default=None)
        if longest is None:
            return self._split_changed_start(text)
        rest = text[len(longest) :]
        if longest == self.start:
            return [], rest
        content, separator, rest = rest.partition(after)
        return [{"role": "system", "content": decode_stripped(content)}], rest if separator else None

    def _split_changed_start(self, text: bytes) -> tuple[list[Message], bytes | None]:
        """As `_split_start`, for a start with other words in the same special tokens: they are read as a system message.

        Other dates, tools, documents and variables change a start in ways that cannot all be learned.
        """
        before, opening, rest = text.partition(self.question_opening or b"\0")
        starts = [self.start, b"".join(self.around_system or (self.start,))]
        if not opening or self.names.findall(before + opening) not in [self.names.findall(start) for start in starts]:
            return [], None
        header = common_prefix(starts[1], before)
        last = max((match.end() for match in self.names.finditer(header)), default=0)
        return [{"role": "system", "content": decode_stripped(self.without_names(before[last:]))}], rest


def common_prefix(first: bytes, second: bytes) -> bytes:
    """The bytes with which both texts begin."""
    n_equal = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    return first[:n_equal]


def decode_stripped(text: bytes) -> str:
    """A text without white space at its ends."""
    return text.decode(errors="replace").strip()
