"""A chat template as the text that it writes around messages, and texts parsed by it.

Knows patterns of bytes, and what a date looks like. Knows no tokenizer, and not how a template is learned.
"""

import calendar
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.chat.templates import AnswerOpening

#: The words of a date beside the names that `calendar` has in the language of the process.
_DATE_WORDS = (
    "january february march april may june july august september october november december jan feb mar apr jun jul aug sep sept "
    "oct nov dec monday tuesday wednesday thursday friday saturday sunday mon tue wed thu fri sat sun "
    "st nd rd th am pm t z utc gmt 年 月 日"
)


@dataclass(frozen=True)
class TurnBoundary:
    """The text between the end of one message and the next one.

    Attributes:
        pattern: What the template writes between them, with a group for each value.
        next_role: The role of the next message.
        opening: How the next message begins if it is an answer; None for any other role.
    """

    pattern: re.Pattern[bytes]
    next_role: str
    opening: AnswerOpening | None = None


@dataclass(frozen=True)
class ChatFormat:
    """A chat template as the text that it writes around messages.

    Values are dates, and variables of the template: prompts may hold others than the template wrote when it was learned.

    Attributes:
        starts: What the template wrote before the first user message when it was learned; then the same around an empty system
            message, if it has that role.
        start: What stands before the first user message.
        around_system: What stands before a system message, and between it and the first user message; None where the
            template has no system role.
        boundaries: By the role of a message, what may follow it, the longest text first.
        eos_ids: The special ids that end an answer.
        question_opening: The end of every text before a user message; None where it holds no special token.
        values: The values that the template writes by itself.
        names: The names of the special tokens.
    """

    starts: tuple[bytes, ...]
    start: re.Pattern[bytes]
    around_system: tuple[re.Pattern[bytes], re.Pattern[bytes]] | None
    boundaries: Mapping[str, tuple[TurnBoundary, ...]]
    eos_ids: frozenset[int]
    question_opening: bytes | None
    values: frozenset[bytes]
    names: re.Pattern[bytes]

    def parse(self, text: bytes) -> tuple[list[Message], bytes, AnswerOpening] | None:
        """Recover the conversation that renders to a text.

        Returns:
            The messages, the text after the last answer's opening, and that opening; None where the text does not follow the
            template.
        """
        messages, rest = self._split_start(text)
        role, opening = "user", None
        while rest is not None:
            found = [(match, b) for b in self.boundaries[role] if (match := b.pattern.search(rest)) and self._is_usual(match)]
            first = min(found, key=lambda each: each[0].start(), default=None)
            if first is None:
                return (messages, rest, opening) if opening is not None else None
            match, boundary = first
            content = rest[: match.start()].removeprefix(opening.leading_whitespace if opening is not None else b"")
            messages.append({"role": role, "content": decode_stripped(content)})
            rest, role, opening = rest[match.end() :], boundary.next_role, boundary.opening
        return None

    def split_last_answer(self, text: bytes) -> tuple[bytes, bytes, AnswerOpening] | None:
        """A text up to its last opening of an answer, the text after it, and the opening; None where none is marked as such."""
        found = [
            (match.end(), len(match[0]), boundary.opening)
            for boundary in self.boundaries["user"]
            if boundary.opening is not None and self.names.search(boundary.opening.opening)
            for match in boundary.pattern.finditer(text)
        ]
        end, _, opening = max(found, key=lambda each: each[:2], default=(0, 0, None))
        return None if opening is None else (text[:end], text[end:], opening)

    def without_names(self, text: bytes) -> bytes:
        """A text as its reader sees it, without special tokens."""
        return self.names.sub(b"", text)

    def _split_start(self, text: bytes) -> tuple[list[Message], bytes | None]:
        """The system message, if there is one, and the text from the first user message on; None for an unknown start."""
        before, after = self.around_system or (None, None)
        matches = (pattern.match(text) for pattern in (self.start, before) if pattern is not None)
        longest = max((match for match in matches if match and self._is_usual(match)), key=lambda m: m.end(), default=None)
        if longest is None:
            return self._split_changed_start(text)
        rest = text[longest.end() :]
        if longest.re is self.start or after is None:
            return [], rest
        end = after.search(rest)
        if end is None:
            return [], None
        return [{"role": "system", "content": decode_stripped(rest[: end.start()])}], rest[end.end() :]

    def _split_changed_start(self, text: bytes) -> tuple[list[Message], bytes | None]:
        """As `_split_start`, for a start with other words in the same special tokens: they are read as a system message.

        Tools, documents and variables change a start in ways that cannot all be learned.
        """
        before, opening, rest = text.partition(self.question_opening or b"\0")
        learned = [self.names.findall(start) for start in self.starts]
        if not opening or self.names.findall(before + opening) not in learned:
            return [], None
        header = common_prefix(self.starts[-1], before)
        last = max((match.end() for match in self.names.finditer(header)), default=0)
        return [{"role": "system", "content": decode_stripped(self.without_names(before[last:]))}], rest

    def _is_usual(self, match: re.Match[bytes]) -> bool:
        """Whether each value is a date, or what the template writes by itself: no words for a judge to read."""
        return all(value in self.values or _is_date(value) for value in match.groups())


def _is_date(value: bytes) -> bool:
    """Whether a text is a date or a time, in English or the language of the process."""
    months = {*calendar.month_name, *calendar.month_abbr, *calendar.day_name, *calendar.day_abbr, *_DATE_WORDS.split()}
    known = {name.lower().rstrip(".") for name in months}
    words = re.findall(r"\d+|[^\W\d]+", value.decode(errors="replace").lower())
    return len(value) <= 40 and any(word.isdigit() for word in words) and all(word.isdigit() or word in known for word in words)


def common_prefix(first: bytes, second: bytes) -> bytes:
    """The bytes with which both texts begin."""
    n_equal = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    return first[:n_equal]


def decode_stripped(text: bytes) -> str:
    """A text without white space at its ends."""
    return text.decode(errors="replace").strip()
