"""Letters that stand for the letters of another script that they look like.

Knows in which words a letter is out of place. Knows no invisible characters and no styled letters.
A word belongs to the script of those letters that can stand for nothing else, or else to that of its sentence.
"""

import re
from collections.abc import Mapping

from hf_alignbeam.judges.reading.confusables import FOREIGN_LOOKALIKES, LATIN_LOOKALIKES, SINGLE_LOOKALIKES

#: The scripts of the table.
_SCRIPTS = (
    "\u0370-\u03ff\u0400-\u052f\u0531-\u058f\u13a0-\u13ff\u1400-\u167f\u1c80-\u1c8f\u1f00-\u1fff\u2c80-\u2cff\u2d30-\u2d7f"
    "\ua4d0-\ua4ff\ua640-\ua69f\uab70-\uabbf\U00010400-\U0001044f"
)
#: Letters that resemble a Latin one closely enough to be read so inside a Latin word.
_RESEMBLING = dict(zip("вкмнтпияшκτηεωβχζ", "bkmhtnnrwktnewbxz", strict=True))
_IN_LATIN_WORDS = {**_RESEMBLING, **FOREIGN_LOOKALIKES}
#: Greek letters that science writes beside Latin ones.
_SYMBOLS = frozenset("αβγεζηκνρστυχω")
#: The Cyrillic and the Greek letters that look like ASCII letters, by those.
_CYRILLIC, _GREEK = (
    {letter: other for other, letter in reversed(FOREIGN_LOOKALIKES.items()) if first <= other <= last}
    for first, last in (("\u0400", "\u045f"), ("\u0391", "\u03c9"))
)

_OTHER, _MIXED = re.compile(f"[{_SCRIPTS}]"), re.compile(f"[A-Za-z][{_SCRIPTS}]|[{_SCRIPTS}][A-Za-z]")
#: In a sentence without any Latin letter, so many words of nothing but look-alikes are Latin ones in disguise; a single one may
#: be a name.
_N_DISGUISED = 3
_SENTENCE = re.compile(r"[^\n.!?;\u3002]+")
_WORD = re.compile(r"[^\W\d_]+")
_ONLY_LOOKALIKES = re.compile(rf"(?<!\w)[{''.join(FOREIGN_LOOKALIKES)}]{{2,}}(?!\w)")
#: Letters between Latin ones that no Latin word has, and runs in which such letters stand beside Latin ones.
_SINGLE = "".join(SINGLE_LOOKALIKES)
_PLANTED, _LATIN_RUN = re.compile(f"[A-Za-z][{_SINGLE}]+[A-Za-z]"), re.compile(f"[A-Za-z{_SINGLE}]+")
_LATIN_LOOKALIKE = re.compile(f"[{''.join(LATIN_LOOKALIKES)}]")
_LATIN_TABLE = str.maketrans(LATIN_LOOKALIKES)
#: Letters, and marks of letters, of the languages and phonetic alphabets that have some of the Latin look-alikes.
_THEIR_LETTERS = re.compile("[ğĞşŞİçÇöÖüÜəƏŋŊɛƐɔƆɖƉƒʃʒæðθ\u0306\u0307\u0308\u0327]")
#: Words that Turkish and its neighbors, which write the dotless i, have only in names.
_NOT_TURKISH = re.compile(r"\b\w*[qwxQWX]")
_ASCII_LETTER = re.compile("[A-Za-z]")
_UNMISTAKABLE = re.compile(f"(?![{''.join(FOREIGN_LOOKALIKES)}])[{_SCRIPTS}]")


def fold_lookalikes(text: str) -> str:
    """The text with each look-alike as the letter that it stands for.

    In a word that mixes scripts, look-alikes become letters of the word's own script: Latin in an English word, Cyrillic in a
    Russian one. Words that are look-alikes throughout become Latin in a sentence that is mainly Latin. What stands in other
    sentences does not count: a harmless tail in another language would hide a harmful beginning. Look-alikes of scripts that
    have few of them become Latin beside Latin letters, where one stands between two such letters.
    """
    if _PLANTED.search(text):
        text = _LATIN_RUN.sub(lambda run: _replace(run[0], SINGLE_LOOKALIKES) if _ASCII_LETTER.search(run[0]) else run[0], text)
    if _OTHER.search(text) and ((planted := _MIXED.search(text)) or _ONLY_LOOKALIKES.search(text)):
        shortest = 1 if planted else 2
        text = _SENTENCE.sub(lambda sentence: _fold_foreign(sentence[0], shortest), text)
    if (found := _LATIN_LOOKALIKE.findall(text)) and 2 * len(_THEIR_LETTERS.findall(text)) < len(found):
        return text.translate(_LATIN_TABLE)
    return _SENTENCE.sub(lambda sentence: _fold_dotless(sentence[0]), text) if "\u0131" in found else text


def _fold_dotless(sentence: str) -> str:
    """A sentence without dotless i's where its words are not Turkish: Turkish words elsewhere would hide them."""
    n_foreign = len(_NOT_TURKISH.findall(sentence))
    is_turkish = n_foreign == 0 or (n_foreign == 1 and _THEIR_LETTERS.search(sentence) is not None)
    return sentence if is_turkish else sentence.replace("\u0131", "i")


def _fold_foreign(sentence: str, shortest: int) -> str:
    n_latin = len(_ASCII_LETTER.findall(sentence)) or len(_ONLY_LOOKALIKES.findall(sentence)) // _N_DISGUISED
    mainly_latin = n_latin > 0 and n_latin >= len(_UNMISTAKABLE.findall(sentence))
    return _WORD.sub(lambda word: _fold_word(word[0], mainly_latin, shortest), sentence)


def _fold_word(word: str, mainly_latin: bool, shortest: int) -> str:
    """A word in its own script; `shortest` is the length from which a word of look-alikes is one in disguise."""
    latin = set(filter(str.isascii, word))
    others = {letter for letter in word if letter in _IN_LATIN_WORDS or _UNMISTAKABLE.match(letter)}
    if not others or (mainly_latin and len(word) < 3 and others <= _SYMBOLS):
        return word
    if not latin:
        return (
            _replace(word, FOREIGN_LOOKALIKES)
            if mainly_latin and len(word) >= shortest and others <= FOREIGN_LOOKALIKES.keys()
            else word
        )
    reverse = _CYRILLIC if any("\u0400" <= letter <= "\u052f" for letter in others) else _GREEK
    if not mainly_latin and latin <= reverse.keys():
        return _replace(word, reverse)
    if others <= (_IN_LATIN_WORDS if mainly_latin else FOREIGN_LOOKALIKES).keys():
        return _replace(word, _IN_LATIN_WORDS)
    if latin <= reverse.keys():
        return _replace(word, reverse)
    return _replace(word, FOREIGN_LOOKALIKES) if mainly_latin else word


def _replace(word: str, table: Mapping[str, str]) -> str:
    return "".join(table.get(letter, letter) for letter in word)
