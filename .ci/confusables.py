"""Writes `hf_alignbeam/judges/reading/confusables.py` from Unicode's confusables.txt (https://www.unicode.org/Public/security/).

    python .ci/confusables.py confusables.txt > hf_alignbeam/judges/reading/confusables.py

Keeps letters that look like one ASCII letter. Of scripts in which words can be made of such letters, it keeps no digits: words of
letters are what is read. Letters that NFKC folds are left out.
"""

import sys
import unicodedata
from pathlib import Path

#: By the first word of a letter's name. In other scripts few letters look Latin, in Arabic and Indic ones mostly as an o or an l.
SCRIPTS = {"ARMENIAN", "CANADIAN", "CHEROKEE", "COPTIC", "CYRILLIC", "DESERET", "GREEK", "LATIN", "LISU", "TIFINAGH"}
HEADER = '''"""Letters that look like an ASCII letter: made by `.ci/confusables.py` from Unicode's confusables.txt {version}.

Knows the look-alikes of each ASCII letter. Knows no text, and not when a letter stands for another one.
The data is copyright (c) Unicode, Inc., https://www.unicode.org/terms_of_use.html.
"""

#: An ASCII letter, and letters of other scripts that look like it.
_FOREIGN = (
{foreign})
#: An ASCII letter, and other Latin letters that look like it: small capitals, and letters without their dot or bar.
_LATIN = (
{latin})
#: An ASCII letter, and letters, digits and marks that look like it, of scripts with few such letters.
_SINGLE = (
{single})

#: The ASCII letter of each look-alike in other scripts.
FOREIGN_LOOKALIKES = {{other: group[0] for group in _FOREIGN for other in group[1:]}}
#: The ASCII letter of each look-alike among the Latin letters.
LATIN_LOOKALIKES = {{other: group[0] for group in _LATIN for other in group[1:]}}
#: The ASCII letter of each look-alike in scripts with few of them.
SINGLE_LOOKALIKES = {{other: group[0] for group in _SINGLE for other in group[1:]}}
'''


def parse(text: str) -> dict[str, str]:
    """The text that each single character looks like."""
    pairs = [line.partition("#")[0].split(";") for line in text.splitlines()]
    return {chr(int(pair[0], 16)): decode(pair[1]) for pair in pairs if len(pair) == 3 and len(pair[0].split()) == 1}


def decode(code_points: str) -> str:
    return "".join(chr(int(code, 16)) for code in code_points.split())


def letter_of(char: str, looks_like: str) -> str | None:
    """The ASCII letter that a letter looks like; None where it looks like none."""
    name = unicodedata.name(char, "")
    is_letter = (
        char.isalpha() if is_of_scripts(char) else unicodedata.category(char) in ("Ll", "Lu", "Lo", "Nd", "Nl", "No", "Mc")
    )
    if char.isascii() or not is_letter or unicodedata.normalize("NFKC", char) != char:
        return None
    small_capital = name.removeprefix("LATIN LETTER SMALL CAPITAL ")
    if len(small_capital) == 1:
        return small_capital.lower()
    if looks_like == "l" and char.isupper():
        return "I"  # the table has one class for I, l, 1 and |
    return looks_like if len(looks_like) == 1 and looks_like.isascii() and looks_like.isalpha() else None


def is_of_scripts(char: str) -> bool:
    """Whether a letter is of one of `SCRIPTS`."""
    return unicodedata.name(char, "").split(" ")[0] in SCRIPTS


def rows(letters: dict[str, str]) -> str:
    """One row for each ASCII letter, or more where its look-alikes do not fit into one."""
    lines = []
    for letter in sorted(set(letters.values())):
        others = [other for other in sorted(letters) if letters[other] == letter]
        for start in range(0, len(others), 12):
            escapes = "".join(f"\\u{ord(c):04x}" if ord(c) <= 0xFFFF else f"\\U{ord(c):08x}" for c in others[start : start + 12])
            lines.append(f'    "{letter}{escapes}",\n')
    return "".join(lines)


if __name__ == "__main__":
    source = Path(sys.argv[1]).read_text(encoding="utf-8-sig")
    looks_like = parse(source)
    small_capitals = {chr(code): "" for code in range(0x250, 0xA800) if "SMALL CAPITAL" in unicodedata.name(chr(code), "")}
    found = {char: letter for char, other in {**small_capitals, **looks_like}.items() if (letter := letter_of(char, other))}
    latin = {char: letter for char, letter in found.items() if unicodedata.name(char).startswith("LATIN")}
    foreign = {char: letter for char, letter in found.items() if is_of_scripts(char) and char not in latin}
    single = {char: letter for char, letter in found.items() if not is_of_scripts(char)}
    version = next(line.split()[-1] for line in source.splitlines() if line.startswith("# Version"))
    sys.stdout.write(HEADER.format(version=version, foreign=rows(foreign), latin=rows(latin), single=rows(single)))
