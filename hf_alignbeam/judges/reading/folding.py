"""A text as a person sees it: without invisible characters, and with disguised letters as the letters that they look like.

Knows invisible characters and unusual spaces, where ordinary writing has them, and the order of all steps. Knows no judge.
"""

import re

from hf_alignbeam.judges.reading.bidi import shown_order
from hf_alignbeam.judges.reading.lookalikes import fold_lookalikes
from hf_alignbeam.judges.reading.styled_letters import fold_flags, fold_marks, fold_styles

_RTL = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc"
_ARABIC = "\u0620-\u06ff\u0750-\u077f"
_VIRAMAS = "\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d4d\u0dca"
_BIDI = "\u061c\u200e\u200f\u202a-\u202c\u2066-\u2069"
_PICTURES = (
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u27bf\u2900-\u297f\u2b00-\u2bff\u3030\u303d\u3297\u3299"
    "\U0001f000-\U0001faff"
)
#: Where ordinary writing has invisible characters: emoji, Indic conjuncts, Persian, Arabic and Hebrew beside numbers and names.
_ORDINARY = "|".join(
    (
        f"(?<=[{_PICTURES}])\ufe0f?\u200d(?=[{_PICTURES}])",
        f"(?<=[{_PICTURES}])[\ufe0e\ufe0f]|(?<=[0-9#*])\ufe0f(?=\u20e3)",
        "(?<=\U0001f3f4)[\U000e0030-\U000e007a]{3,6}\U000e007f",
        f"(?<=[{_VIRAMAS}])[\u200c\u200d]|(?<=[\u0900-\u0dff])\u200d(?=[{_VIRAMAS}])",
        f"(?<=[{_ARABIC}])(?<!\u200c[{_ARABIC}])\u200c(?=[{_ARABIC}](?!\u200c))|(?<=[{_ARABIC}])\u200d(?![{_ARABIC}])",
        f"(?<=[{_RTL}])[{_BIDI}](?![{_RTL}])|(?<=[{_RTL}]\\W)[{_BIDI}]|(?<=[{_RTL}]\\W\\W)[{_BIDI}]",
        f"(?<![{_RTL}])[{_BIDI}](?=\\W{{0,3}}[{_RTL}])",
        "(?<=[\u1820-\u18aa])[\u180b-\u180e]",
    )
)
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_ORDINARY_OR_NOT = re.compile(f"({_ORDINARY})|{_INVISIBLE.pattern}")
#: The only invisible characters of ASCII.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1b\x7f]")
_SPACES = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u2800\u3000\u3164\uffa0"
_UNUSUAL_SPACE = re.compile(f"[{_SPACES}]")
_LETTERS = "[A-Za-z\u00c0-\u058f]"
#: Unusual spaces around a word. Ordinary writing has them before punctuation, in numbers, and after the shortest words.
_SPACED = re.compile(
    f"(?<={_LETTERS})[{_SPACES}](?:{_LETTERS}{{3,}}[{_SPACES}]{_LETTERS}|{_LETTERS}+[{_SPACES}]{_LETTERS}+[{_SPACES}]{_LETTERS})"
)
_BETWEEN_WORDS = re.compile(f"{_LETTERS}[{_SPACES}]{_LETTERS}")
#: Too thin to part words, where a text has other spaces.
_IN_WORD = re.compile("(?<=[A-Za-z])\u200a(?=[A-Za-z])")
#: Letters and patterns that are blank.
_BLANK_LETTERS = re.compile("[\u2800\u3164\uffa0]")
_SPACE_TABLE = dict.fromkeys([0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x2800, 0x3000, 0x3164, 0xFFA0], " ")


def fold(text: str) -> str:
    """The text as it looks: `fold(fold(text)) == fold(text)`, and ordinary text of any language is returned unchanged.

    Invisible characters are removed; letters in mathematical, full-width, circled and other styles, and under piles of marks,
    become plain; look-alikes of another script become letters of the script around them.
    """
    if text.isascii() and not _CONTROLS.search(text):
        return text
    while (folded := _fold_once(text)) != text:  # each step leaves fewer disguised characters
        text = folded
    return text


def _fold_once(text: str) -> str:
    text = fold_flags(text)
    if _INVISIBLE.search(text):
        text = _ORDINARY_OR_NOT.sub(lambda found: found[1] or "", shown_order(text))
    if " " in text:
        text = _IN_WORD.sub("", text)
    if _UNUSUAL_SPACE.search(text) and _has_unusual_words(text):
        text = text.translate(_SPACE_TABLE)
    return fold_lookalikes(fold_styles(fold_marks(text)))


def _has_unusual_words(text: str) -> bool:
    """Whether words stand between unusual spaces."""
    if _BLANK_LETTERS.search(text) or _SPACED.search(text):
        return True
    return " " not in text and _BETWEEN_WORDS.search(text) is not None
