"""Text in the order in which it is shown, where directional controls move parts of it.

Knows embeddings, overrides and isolates, and the levels that Unicode's bidirectional algorithm (UAX 9) gives to what stands in
them. Knows no other invisible characters. A line without such controls is shown as it is written, whatever its languages are.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

_LRE, _RLE, _PDF, _LRO, _RLO, _LRI, _RLI, _FSI, _PDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_OPENING, _ISOLATES, _RIGHT_TO_LEFT = _LRE + _RLE + _LRO + _RLO + _LRI + _RLI + _FSI, _LRI + _RLI + _FSI, _RLE + _RLO + _RLI
_OVERRIDES = {_LRO: "L", _RLO: "R"}
_PARTS = re.compile("([\n\r\x1c-\x1e\x85\u2029])")
#: Deeper levels are not opened (UAX 9, BD2).
_MAX_LEVEL = 125
#: What turns a line's order; without it, the other controls change nothing.
_TURNING = re.compile(f"[{_RIGHT_TO_LEFT}{_LRO}]")
_RTL = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc"
_RTL_LETTER, _RTL_RUN = re.compile(f"(?=\\w)[{_RTL}]"), re.compile(f"[{_RTL}]+(?:\\W+[{_RTL}]+)*")
#: Latin letters with the border of an isolate between them and no letter: in a part from right to left they change places.
_NEIGHBORS = re.compile(f"[A-Za-z][^\\w{_LRI}-{_PDI}]*[{_LRI}-{_PDI}]\\W*[A-Za-z]")


class _Unit(NamedTuple):
    """A character and the marks on it, its level, and its direction: L, R, N for numbers, or O for what has none."""

    chars: list[str]
    level: int
    direction: str


class _Opened(NamedTuple):
    """A control whose end has not come: its level, and the direction that it gives to all characters.

    It isolates or not, and with those around it so many do.
    """

    level: int
    override: str
    isolates: bool
    n_isolates: int


def shown_order(text: str) -> str:
    """The text as it is read on a screen, without the controls that turn parts of it around.

    Words in right-to-left letters keep the order in which they are read. What is ordinary in their languages is left as it is.
    """
    if not _TURNING.search(text):
        return text
    return "".join("".join(_line_parts(line)) if _TURNING.search(line) else line for line in _PARTS.split(text))


def _line_parts(line: str) -> Iterator[str]:
    """A line's characters outside of controls, and what each outermost control holds in the order in which it is shown."""
    start, opened = 0, [_Opened(0, "", False, 0)]
    from_right = _begins_from_right(line) if _FSI in line else []
    units: list[_Unit] = []
    previous = ""
    for place, char in enumerate(line):
        is_inside = len(opened) > 1
        if char in _OPENING:
            if not is_inside:
                start = place
            if char in _ISOLATES:
                units.append(_Unit([], opened[-1].level, "O"))
            turns = char in _RIGHT_TO_LEFT or (char == _FSI and from_right[place + 1])
            opened.append(_open(char, opened[-1], turns))
        elif char in (_PDF, _PDI) and is_inside:
            _close(char, opened)
            if char == _PDI:
                units.append(_Unit([], opened[-1].level, "O"))
            if len(opened) == 1:
                yield _shown(line[start : place + 1], units)
                units = []
        elif not is_inside:
            yield char
        elif previous and previous not in _OPENING + _PDF + _PDI and unicodedata.category(char) in ("Mn", "Me"):
            units[-1].chars.append(char)
        else:
            units.append(_Unit([char], opened[-1].level, opened[-1].override or _direction(char)))
        previous = char
    if len(opened) > 1:
        yield _shown(line[start:], units)


def _open(control: str, around: _Opened, turns: bool) -> _Opened:
    """What a control opens: the next odd level where it turns to the left, else the next even one."""
    deeper = around.level + 1 + (around.level % 2 == turns)
    isolates = control in _ISOLATES
    level = deeper if deeper <= _MAX_LEVEL else around.level
    return _Opened(level, _OVERRIDES.get(control, ""), isolates, around.n_isolates + isolates)


def _begins_from_right(line: str) -> list[bool]:
    """For each place of a line and its end, whether the first letter from there on is written from right to left."""
    found = [False]
    for kind in map(_direction, reversed(line)):
        found.append(kind == "R" if kind in "LR" else found[-1])
    return found[::-1]


def _close(control: str, opened: list[_Opened]) -> None:
    """Close what an end closes: its own kind only, and with an isolate all that it holds."""
    if control == _PDI:
        if opened[-1].n_isolates:
            while not opened.pop().isolates:
                pass
    elif not opened[-1].isolates:
        opened.pop()


def _direction(char: str) -> str:
    kind = unicodedata.bidirectional(char)
    return {"L": "L", "R": "R", "AL": "R", "EN": "N", "AN": "N"}.get(kind, "O")


def _shown(part: str, units: Sequence[_Unit]) -> str:
    if _RTL_LETTER.search(part) and not _NEIGHBORS.search(part) and not any(control in part for control in _OVERRIDES):
        return part
    visible: list[tuple[str, int]] = []
    for unit, level in zip(units, _levels(units), strict=True):
        if unit.chars or not visible or visible[-1][0]:
            visible.append(("".join(unit.chars), level))
        else:  # of borders that stand together, the lowest level parts what stands around them
            visible[-1] = ("", min(level, visible[-1][1]))
    for level in range(max((level for _, level in visible), default=0), 0, -1):  # UAX 9, L2
        turned = []
        for _, run in groupby(visible, key=partial(_is_deep, level)):
            of_run = list(run)
            turned += of_run[::-1] if of_run[0][1] >= level else of_run
        visible = turned
    return _RTL_RUN.sub(lambda run: run[0][::-1], "".join(text for text, _ in visible))


def _is_deep(least: int, unit: tuple[str, int]) -> bool:
    return unit[1] >= least


def _levels(units: Sequence[_Unit]) -> list[int]:
    """The level of each unit, by its direction or that of its neighbors."""
    levels: list[int] = []
    for level, run in groupby(units, key=lambda unit: unit.level):
        base = "LR"[level % 2]
        directions = _without_neutrals([unit.direction for unit in run], base)
        levels += [level + (direction != base) * (2 if direction == "N" and base == "L" else 1) for direction in directions]
    return levels


def _without_neutrals(directions: list[str], base: str) -> list[str]:
    """Directions in which what has none takes that of its neighbors where they agree, else that of the part."""
    strong, resolved = base, []
    for direction in directions:
        strong = direction if direction in "LR" else strong
        resolved.append("L" if direction == "N" and strong == "L" else direction)
    for is_neutral, run in groupby(range(len(resolved)), key=lambda n: resolved[n] == "O"):
        places = list(run)
        if is_neutral:
            before = resolved[places[0] - 1] if places[0] else base
            after = resolved[places[-1] + 1] if places[-1] + 1 < len(resolved) else base
            before, after = before.replace("N", "R"), after.replace("N", "R")
            resolved[places[0] : places[-1] + 1] = [before if before == after else base] * len(places)
    return resolved
