"""Letters in another style, and letters under marks: full-width, mathematical, circled, raised, struck through.

Knows such letters, and how many of them ordinary writing has in a row. Knows no look-alikes of other scripts.
Each step looks for its disguise with one regular expression, and does nothing in a text that has none.
"""

import re
import unicodedata
from collections.abc import Iterable

from hf_alignbeam.judges.reading.marked_letters import MARKS, has_unusual_marks


def _plain(code: int) -> str:
    """The letter or digit of a styled one; the character itself where it is none, as a unit's sign."""
    plain = unicodedata.normalize("NFKC", chr(code)).strip("()")
    is_styled = plain.isascii() or unicodedata.decomposition(chr(code)).startswith(("<font>", "<super>", "<sub>"))
    return plain if len(plain) == 1 and is_styled and plain.isalnum() else chr(code)


def _table(*codes: Iterable[int]) -> dict[int, str]:
    return {code: plain for each in codes for code in each if (plain := _plain(code)) != chr(code)}


def _any_of(table: Iterable[int]) -> str:
    return "[" + "".join(map(chr, table)) + "]"


#: Full-width, letter-like, parenthesized, circled, squared and mathematical letters, and their digits.
_STYLED = {
    **_table(range(0xFF10, 0xFF5B), range(0x2100, 0x2150), range(0x249C, 0x24EB), range(0x1D400, 0x1D800)),
    **_table(range(0x1F110, 0x1F130), range(0x1FBF0, 0x1FBFA)),
    **{start + n: chr(97 + n) for start in (0x1F130, 0x1F150, 0x1F170) for n in range(26)},  # styles without small letters
}
_STYLED_LETTERS = {code: plain for code, plain in _STYLED.items() if plain.isalpha()}
_RAISED = _table([0xAA, 0xBA, 0x2071, 0x207F, 0x2C7C, 0x2C7D], range(0x2B0, 0x2E5), range(0x1D2C, 0x1DC0), range(0x2090, 0x209D))
_SCRIPT_DIGITS = _table([0xB2, 0xB3, 0xB9], range(0x2070, 0x208A))
_ROMAN = _table(range(0x2160, 0x2180))
_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}

_LETTER = _any_of(_STYLED_LETTERS)
#: Blocks in which they stand: a quick look that most texts end with.
_BLOCKS = re.compile("[\u2102-\u2149\u249c-\u24e9\uff21-\uff5a\U0001d400-\U0001d7cb\U0001f110-\U0001f189]")
#: Ordinary writing has single styled letters: a mathematical x, a company's full-width letter.
_STYLED_WORD = re.compile(f"{_LETTER}(?: ?{_LETTER}|[A-Za-z])|[A-Za-z]{_LETTER}")
_RAISED_WORD = re.compile(f"{_any_of(_RAISED)}{{3}}")
_ROMAN_NUMERAL, _ROMAN_IN_WORD = re.compile(_any_of(_ROMAN)), re.compile(f"[a-z]{_any_of(_ROMAN)}|{_any_of(_ROMAN)}[a-z]")
_CJK = re.compile("[\u3041-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_FLAG_LETTER = "[\U0001f1e6-\U0001f1ff]"
#: A flag is a pair of such letters.
_SINGLE_FLAG_LETTER = re.compile(f"(?<!{_FLAG_LETTER}){_FLAG_LETTER}(?!{_FLAG_LETTER})")

_LINES = "\u0305\u0332-\u0338\u033f\u0346\u0347\u035c-\u0362\u20d2\u20d3\u20dd-\u20e2\u20e5\u20e6\u20ea\u20eb"
_WITH_MARK = "\u00c0-\u00d6\u00d8-\u00de\u00e0-\u00f6\u00f8-\u0130\u0132-\u017e\u0180-\u024f\u1e00-\u1eff"
_MARKED = f"(?:[A-Za-z][{MARKS}]+|[{_WITH_MARK}][{MARKS}]*)"
#: A line through two letters in a row, or more marks on one letter than any language has.
_STACKED = re.compile(f"(?:\\w[{_LINES}]+){{2}}|[A-Za-z][{MARKS}]{{3}}|\\w[{MARKS}]{{4}}")
#: What no language writes on a Latin letter: a line through it or around it, twice in a text; marks and formats of other
#: scripts.
_STRUCK = re.compile("(?<=[A-Za-z])[\u0335-\u0338\u20d2\u20d3\u20dd-\u20e6\u20ea\u20eb]")
_SCRIPTS = "\u0483-\u1aaf\u2cef-\u2cf1\u302a-\u309a\ua66f-\uabff\ufb1e\U00010a00-\U00016fff"
_BETWEEN_SCRIPTS = "\u061c\u200c-\u200f\u202a-\u202e\u2066-\u2069\ufe00-\ufe0f"
_AFTER_LATIN = re.compile(f"(?<=[A-Za-z0-9\u00c0-\u024f\u0370-\u03ff])[{_SCRIPTS}][{_SCRIPTS}{_BETWEEN_SCRIPTS}]*")
#: Five letters with marks in a row; four, where most letters of the text have one.
_MARKED_RUN, _LONG_MARKED_RUN, _MARKED_LETTER = (re.compile(_MARKED + n) for n in ("{4}", "{5}", ""))
_HAS_MARK = re.compile(f"[{MARKS}{_WITH_MARK}]")
_MARK, _LATIN = re.compile(f"[{MARKS}\u20dd-\u20e2]"), re.compile("[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")


def fold_flags(text: str) -> str:
    """Regional indicators that are no flag, as the letters that they show."""
    if not re.search(_FLAG_LETTER, text):
        return text
    return _SINGLE_FLAG_LETTER.sub(lambda letter: chr(ord(letter[0]) - 0x1F1E6 + 97), text)


def fold_styles(text: str) -> str:
    """Words of styled letters in plain ones. Single letters, units, indices and full-width punctuation in CJK text stay."""
    if _BLOCKS.search(text) and _STYLED_WORD.search(text):
        text = text.translate(_STYLED if _CJK.search(text) else {**_STYLED, **_FULL_WIDTH})
    if _RAISED_WORD.search(text):
        text = text.translate({**_RAISED, **_SCRIPT_DIGITS})
    if _ROMAN_NUMERAL.search(text) and _ROMAN_IN_WORD.search(text):
        text = text.translate(_ROMAN)
    return text


def fold_marks(text: str) -> str:
    """Letters without their marks, where these are more than any language has, or of another script."""
    text = _AFTER_LATIN.sub(lambda found: "".join(filter(_is_shown, found[0])), text)
    if len(_STRUCK.findall(text)) > 1:
        text = _STRUCK.sub("", text)
    stacked = _MARK.search(text) and _STACKED.search(text)
    if not stacked and not (_HAS_MARK.search(text) and (_is_marked_all_over(text) or has_unusual_marks(text))):
        return text
    return _MARKED_LETTER.sub(lambda letter: _without_marks(letter[0]), _MARK.sub("", text))


def _is_shown(char: str) -> bool:
    """Whether a character stands in a place of its own."""
    return unicodedata.category(char) not in ("Mn", "Me", "Cf")


def _is_marked_all_over(text: str) -> bool:
    if not _MARKED_RUN.search(text):
        return False
    n_marked = len(_MARKED_LETTER.findall(text))
    return _LONG_MARKED_RUN.search(text) is not None or n_marked > 0.6 * len(_LATIN.findall(text))


def _without_marks(letter: str) -> str:
    """An ASCII letter, where the letter's name says which it is with a mark, as in LATIN SMALL LETTER D WITH STROKE."""
    kind, _, base = unicodedata.name(letter[0]).partition(" WITH ")[0].rpartition(" ")
    if len(base) != 1 or not kind.startswith("LATIN ") or not kind.endswith(" LETTER"):
        return letter
    return base.lower() if "SMALL" in kind else base
