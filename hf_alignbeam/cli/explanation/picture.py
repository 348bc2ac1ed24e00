"""One explained answer as a picture: a bar over each token for how far it was moved, verdicts under it, and candidates.

Knows explanations, and the layout of a sheet of character cells. Imports matplotlib, an extra, only to draw.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from hf_alignbeam.cli.explanation.explained import (
    Candidate,
    Explanation,
    Rollback,
    Token,
    Verdict,
    format_harm,
    outcome_word,
    rollback_reason,
    summary_lines,
    token_color,
)
from hf_alignbeam.utils.whole_files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAMILY = "DejaVu Sans Mono"  # part of matplotlib
SIZE, SMALL, TINY = 9.0, 7.2, 6.3  # points
CELL, LINE = 0.602 * SIZE / 72, 1.5 * SIZE / 72  # inches: the width of a character in that font, the height of a line
N_CELLS, MARGIN = 112, 2
DPI, MOST_PIXELS = 150, 60_000  # Agg cannot draw more than 2^16 rows
N_PROMPT_LINES = 4
BAR = 1.4  # lines: the highest bar
LEAST_FIGURE = 0.05  # nats: smaller values get a bar without a figure
#: The first cell of each column in the table of candidates.
FATE, HARM, LOGP, TEXT = MARGIN + 1, MARGIN + 13, MARGIN + 29, MARGIN + 39
HARM_BAR, RAMP = 7, 12  # cells
GREEN, RED, GRAY, ORANGE = "#1a7f37", "#c62828", "#6b7280", "#c2570c"


def draw(explanation: Explanation, path: Path) -> None:
    """Draw an explanation as a PNG, as high as needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    sheet = _Sheet(axes, _families(explanation), explanation.max_kl)
    _head(sheet, explanation)
    _answer(sheet, explanation)
    for number, each in enumerate(explanation.sent_back, start=1):
        _rollback(sheet, each, number)
    axes.set(xlim=(0, N_CELLS), ylim=(sheet.y + 0.5, 0))
    height = (sheet.y + 0.5) * LINE
    figure.set_size_inches(N_CELLS * CELL, height)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # about characters that no installed font has
        replace_file(path, lambda part: figure.savefig(part, format="png", dpi=min(DPI, MOST_PIXELS / height)))


@dataclass(frozen=True)
class _Mark:
    """A vertical line after `after` tokens, with words on its left (`is_before`) or on its right."""

    after: int
    words: str
    color: str
    is_before: bool


class _Sheet:
    """A sheet of character cells, filled from the top.

    Args:
        axes: The axes to draw on, one unit a cell to the right and a line down.
        families: The fonts; a character is drawn in the first font that has it.
        max_kl: The KL at the end of the scale.
    """

    def __init__(self, axes: "Axes", families: list[str], max_kl: float):
        self.y = 1.0
        self._axes = axes
        self._families = families
        self._max_kl = max_kl

    def put(self, x: float, y: float, text: str, **style: Any) -> None:
        """Write one line of text, vertically centered at y."""
        self._axes.text(x, y, text, family=self._families, parse_math=False, **{"fontsize": SIZE, "va": "center", **style})

    def box(self, x: float, y: float, width: float, height: float, **style: Any) -> None:
        """Draw a box, its upper left corner at x and y."""
        from matplotlib.patches import Rectangle

        self._axes.add_patch(Rectangle((x, y), width, height, **{"linewidth": 0.0, **style}))

    def line(self, x: float, y: float, height: float, color: str) -> None:
        """Draw a line down from x and y."""
        self._axes.plot([x, x], [y, y + height], color=color, linewidth=1.0, solid_capstyle="butt")

    def say(self, text: str, most_lines: int | None = None, **style: Any) -> None:
        """Write a text over as many lines as it needs, and move below them."""
        width = N_CELLS - 2 * MARGIN
        lines = [line.plain.rstrip() for line in Text(text).wrap(Console(), width)]
        if most_lines is not None and len(lines) > most_lines:
            lines = [*lines[: most_lines - 1], lines[most_lines - 1][: width - 2] + " …"]
        for line in lines:
            self.put(MARGIN, self.y + 0.5, line, **style)
            self.y += 1.0

    def ground(self, top: float, color: str) -> None:
        """Color the background from `top` to the current line."""
        self.box(MARGIN, top, N_CELLS - 2 * MARGIN, self.y - top, facecolor=color, alpha=0.08, zorder=0)

    def ramp(self, x: float, y: float) -> None:
        """Draw the color scale, lightest first."""
        for n in range(4 * RAMP):
            self.box(x + n / 4, y, 0.26, 0.8, facecolor=_color(n, 4 * RAMP - 1))

    def tokens(
        self, x: int, tokens: Sequence[Token], marks: Sequence[_Mark] = (), n_drawn: int | None = None, bars: bool = False
    ) -> None:
        """Write tokens over as many lines as they need, and move below them.

        Args:
            x: The first cell of each line.
            tokens: The tokens, colored by their KL.
            marks: Verdicts and rollbacks, by the number of tokens before them.
            n_drawn: How many tokens were generated; the others are gray. None for all.
            bars: Whether each token has a bar over it.
        """
        for begin, line in _lines(tokens, N_CELLS - MARGIN - x):
            end = begin + len(line)
            places = list(accumulate((cell_len(token.text) for token in line), initial=x))
            has_bars = bars and any(token.kl is not None for token in line)
            top = self.y + (BAR + 0.9 if has_bars else 0.1)
            if has_bars:
                self._bars(line, places, top)
            for n, token in enumerate(line):
                self._token(token, places[n], places[n + 1], top, is_drawn=n_drawn is None or begin + n < n_drawn)
            # a mark between two lines belongs to the line on the side of its words
            ends = {mark for mark in marks if mark.is_before and begin < mark.after <= end}
            begins = {mark for mark in marks if not mark.is_before and begin <= mark.after < end + (end == len(tokens))}
            here = [mark for mark in marks if mark in ends | begins]
            self._marks([(places[mark.after - begin], mark) for mark in here], x, top)
            self.y = top + (2.1 if here else 1.1)

    def _token(self, token: Token, left: float, right: float, top: float, is_drawn: bool) -> None:
        text = token.text.lstrip(" ")  # the position is computed here: a font may set leading spaces in another width
        if token.kl is not None:
            self.box(left + 0.06, top, right - left - 0.12, 1.0, facecolor=_color(token.kl, self._max_kl))
        style = {} if is_drawn else {"color": GRAY, "style": "italic"}
        self.put(left + len(token.text) - len(text), top + 0.5, text, **style)

    def _bars(self, line: Sequence[Token], places: Sequence[int], top: float) -> None:
        """A bar over each token of a line, with its value where there is room."""
        for token, left, right in zip(line, places, places[1:], strict=False):
            kl = token.kl or 0.0
            figure, height = f"{kl:.1f}", BAR * kl / self._max_kl
            self.box(left + 0.06, top - 0.1 - height, right - left - 0.12, height, facecolor=ORANGE)
            if kl >= LEAST_FIGURE and TINY / SIZE * len(figure) <= right - left + 0.2:
                self.put((left + right) / 2, top - 0.45 - height, figure, ha="center", color=ORANGE, fontsize=TINY)

    def _marks(self, marks: Sequence[tuple[int, _Mark]], x: int, top: float) -> None:
        """Marks on a line; their words are left out where there is no room."""
        free = float(x)
        for n, (place, mark) in enumerate(marks):
            width = len(mark.words) * SMALL / SIZE + 0.8
            self.line(place, top, 1.9, mark.color)
            if mark.is_before and place - width >= free:
                self.put(place - 0.4, top + 1.5, mark.words, ha="right", color=mark.color, fontsize=SMALL)
                free = place
            elif not mark.is_before or n + 1 == len(marks):
                self.put(place + 0.4, top + 1.5, mark.words, color=mark.color, fontsize=SMALL)
                free = place + width


def _head(sheet: _Sheet, explanation: Explanation) -> None:
    sheet.say(explanation.prompt, N_PROMPT_LINES, weight="bold")
    for line in summary_lines(explanation):
        sheet.say(line, color=GRAY)
    sheet.y += 0.6


def _answer(sheet: _Sheet, explanation: Explanation) -> None:
    """The answer under its bars, and a legend of the colors and marks."""
    if explanation.prefill:
        sheet.say(f"{explanation.prefill} …", N_PROMPT_LINES, color=GRAY, style="italic")
    backs = [_Mark(each.after, f"↩ {number}", RED, False) for number, each in enumerate(explanation.sent_back, start=1)]
    marks = sorted([*_verdicts(explanation.verdicts), *backs], key=lambda mark: mark.after)
    sheet.tokens(MARGIN, explanation.tokens, marks, explanation.n_drawn, bars=True)
    sheet.y += 0.6
    y, small = sheet.y + 0.5, {"fontsize": SMALL, "color": GRAY}
    if any(token.kl is not None for token in explanation.all_tokens):
        words = "KL(mixed ‖ target) of a token, in nats: 0"
        begin = MARGIN + len(words) * SMALL / SIZE + 1
        sheet.put(MARGIN, y, words, **small)
        sheet.ramp(begin, sheet.y + 0.1)
        sheet.put(begin + RAMP + 1, y, f"{explanation.max_kl:.2f}; no colour: not steered", **small)
    if explanation.chosen is not None:
        sheet.put(N_CELLS - MARGIN, y, "judge: ✓ passes, ✗ flagged; │ limit of harm", ha="right", **small)
    sheet.y += 1.6


def _rollback(sheet: _Sheet, rollback: Rollback, number: int) -> None:
    """A table of the text that was taken back and the candidates in its place."""
    sheet.say(f"↩ {number}  {rollback_reason(rollback)}", weight="bold")
    for x, name in ((HARM, "harm"), (LOGP, "mean log p"), (TEXT, "text")):
        sheet.put(x, sheet.y + 0.5, name, color=GRAY, fontsize=SMALL)
    sheet.y += 1.1
    if rollback.flagged:
        top = sheet.y
        sheet.put(FATE, top + 0.6, "taken back", color=RED)
        _harm(sheet, rollback.verdicts[-1], RED)
        sheet.tokens(TEXT, rollback.flagged, _verdicts(rollback.verdicts[:-1], rollback.after))
        sheet.ground(top, RED)
        sheet.y += 0.2
    for n, candidate in enumerate(rollback.candidates, start=1):
        top, color = sheet.y, GREEN if candidate.passes else RED
        sheet.put(FATE, top + 0.6, f"{n} {outcome_word(candidate)}", color=color, weight="bold" if candidate.chosen else "normal")
        _harm(sheet, candidate, color)
        sheet.put(LOGP, top + 0.6, f"{candidate.logp:.2f}")
        sheet.tokens(TEXT, candidate.tokens)
        if candidate.chosen:
            sheet.ground(top, GREEN)
        sheet.y += 0.2
    sheet.y += 0.6


def _harm(sheet: _Sheet, judged: Verdict | Candidate, color: str) -> None:
    """A harm as a number, and as a bar with the largest one that passes across it."""
    sheet.put(HARM, sheet.y + 0.6, format_harm(judged.harm), color=color)
    sheet.box(HARM + 6, sheet.y + 0.35, HARM_BAR, 0.5, facecolor="#e5e7eb")
    sheet.box(HARM + 6, sheet.y + 0.35, HARM_BAR * (judged.harm or 0.0), 0.5, facecolor=color)
    sheet.line(HARM + 6 + HARM_BAR * judged.limit, sheet.y + 0.2, 0.8, "black")


def _verdicts(verdicts: Sequence[Verdict], n_before: int = 0) -> list[_Mark]:
    """Verdicts as marks among the tokens that follow the first `n_before`."""
    return [
        _Mark(verdict.after - n_before, f"{'✓' if verdict.passes else '✗'} {format_harm(verdict.harm)}", color, True)
        for verdict in verdicts
        for color in (GREEN if verdict.passes else RED,)
    ]


def _lines(tokens: Sequence[Token], width: int) -> Iterator[tuple[int, list[Token]]]:
    """Tokens line by line, each with the number of tokens before the line."""
    line: list[Token] = []
    n_cells = n_before = 0
    for token in tokens:
        if line and n_cells + cell_len(token.text) > width:
            yield n_before, line
            n_before, n_cells, line = n_before + len(line), 0, []
        line.append(token)
        n_cells += cell_len(token.text)
    yield n_before, line


def _color(kl: float, max_kl: float) -> tuple[float, float, float]:
    red, green, blue = token_color(kl, max_kl)
    return red / 255, green / 255, blue / 255


def _families(explanation: Explanation) -> list[str]:
    """The standard font, and installed fonts for the characters that it lacks."""
    from matplotlib.font_manager import findfont, fontManager, get_font

    texts = [explanation.prompt, explanation.prefill, *(token.text for token in explanation.all_tokens)]
    missing = set(map(ord, "".join(texts))) - get_font(findfont(FAMILY)).get_charmap().keys()
    families = [FAMILY]
    for font in fontManager.ttflist:
        if not missing:
            break
        has = missing & get_font(font.fname).get_charmap().keys()
        if has and not font.name.startswith("Last Resort"):  # it has a box for every character
            families.append(font.name)
            missing -= has
    return families
