"""Whether more letters of a text have marks than in any language that is written in Latin letters.

Knows letters, their marks, and how many of them languages mark. Knows no way to remove them. What is counted are the kinds of
letters (a, b, c) under one mark or under any, and their share of all letters.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from typing import Literal, NamedTuple

MARKS = "\u0300-\u034e\u0350-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20dc\u20e1\u20e5-\u20f0\ufe20-\ufe2f"

#: A letter and its marks, in a text whose letters are decomposed.
_LETTER = re.compile(f"([a-z])([{MARKS}]*)")
_CARON = "\u030c"


class _Limit(NamedTuple):
    """What no language exceeds: more kinds of letters than these have the mark, and more than this share of all letters."""

    n_kinds: int
    share: float = 0.0

    def is_exceeded(self, marked: list[str], n_letters: int) -> bool:
        return len(set(marked)) > self.n_kinds and len(marked) > self.share * n_letters


#: In a whole text. One mark: Irish nine kinds, Sanskrit eight. Any mark: Slovak fourteen.
_ONE_MARK, _ANY_MARK = [_Limit(9)], [_Limit(16)]
#: Within a few words, so many letters. One mark: Yoruba has six kinds under an acute on a third of its letters, Navajo four on
#: half of them, and a pangram of Czech eight under a caron. Any mark: Yoruba seven kinds on more than half.
_N_NEAR_WITH_ONE_MARK, _N_NEAR_WITH_ANY_MARK = 32, 48
_ONE_MARK_NEAR, _CARON_NEAR, _ANY_MARK_NEAR = (
    [_Limit(6, 0.25), _Limit(4, 0.42)],
    [_Limit(8, 0.25), _Limit(5, 0.42)],
    [_Limit(7, 0.47)],
)

_Letters = list[tuple[str, str]]


def decomposed(text: str, form: Literal["NFD", "NFKD"]) -> str:
    """`unicodedata.normalize(form, text)`, in time that grows with the text only: it sorts the marks of a letter by insertion."""
    if text.isascii():
        return text
    runs = groupby("".join(unicodedata.normalize(form, char) for char in text), key=_is_combining)
    return "".join(char for _, run in runs for char in sorted(run, key=unicodedata.combining))  # sorts only marks


def has_unusual_marks(text: str) -> bool:
    """Whether a text exceeds what languages have, in the whole of it or within a few words."""
    letters = _LETTER.findall(decomposed(text.lower(), "NFD"))
    return (
        _exceeds(_with_any_mark(letters), len(letters), _ANY_MARK)
        or any(_exceeds(marked, len(letters), _ONE_MARK) for marked in _by_mark(letters).values())
        or any(_exceeds(_with_any_mark(some), len(some), _ANY_MARK_NEAR) for some in _near(letters, _N_NEAR_WITH_ANY_MARK))
        or any(
            _exceeds(marked, len(some), _CARON_NEAR if mark == _CARON else _ONE_MARK_NEAR)
            for some in _near(letters, _N_NEAR_WITH_ONE_MARK)
            for mark, marked in _by_mark(some).items()
        )
    )


def _is_combining(char: str) -> bool:
    return unicodedata.combining(char) > 0


def _exceeds(marked: list[str], n_letters: int, limits: list[_Limit]) -> bool:
    return any(limit.is_exceeded(marked, n_letters) for limit in limits)


def _near(letters: _Letters, n: int) -> Iterator[_Letters]:
    """Stretches of n letters, each of which begins in the one before; all letters where there are fewer."""
    last = max(len(letters) - n, 0)
    return (letters[start : start + n] for start in (*range(0, last, n // 2), last))


def _with_any_mark(letters: _Letters) -> list[str]:
    return [letter for letter, marks in letters if marks]


def _by_mark(letters: _Letters) -> dict[str, list[str]]:
    """For each mark the letters that have it."""
    marked: dict[str, list[str]] = defaultdict(list)
    for letter, marks in letters:
        for mark in set(marks):
            marked[mark].append(letter)
    return marked
