"""One answer as a picture: a bar over each token for how far it was moved, the judge's verdicts under it, what was tried.

Knows explanations, and where things stand on a sheet of character cells. Matplotlib, an extra, is loaded when one is drawn.
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

from hf_alignbeam.cli.explain import Explanation, SentBack, Token, Verdict, fate, headlines, shade, spoken, why

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAMILY = "DejaVu Sans Mono"  # comes with matplotlib
SIZE, SMALL, TINY = 9.0, 7.2, 6.3  # points
CELL, LINE = 0.602 * SIZE / 72, 1.5 * SIZE / 72  # inches: how wide a character is in that font, how high a line
N_CELLS, MARGIN = 112, 2
DPI, MOST_PIXELS = 150, 60_000  # Agg draws nothing higher than 2^16
N_PROMPT_LINES = 4
BAR = 1.4  # lines: the highest bar
LEAST_FIGURE = 0.05  # nats: below it, a bar says enough
#: Where the columns of what was tried begin, in cells.
FATE, HARM, LOGP, TEXT = MARGIN + 1, MARGIN + 13, MARGIN + 29, MARGIN + 39
HARM_BAR, RAMP = 7, 12  # cells
GREEN, RED, GREY, ORANGE = "#1a7f37", "#c62828", "#6b7280", "#c2570c"


def draw(explanation: Explanation, path: Path) -> None:
    """Write an explanation as a PNG, as high as it needs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    sheet = _Sheet(axes, _families(explanation), explanation.most)
    _head(sheet, explanation)
    _answer(sheet, explanation)
    for number, each in enumerate(explanation.sent_back, start=1):
        _tried(sheet, each, number, explanation.threshold)
    axes.set(xlim=(0, N_CELLS), ylim=(sheet.y + 0.5, 0))
    height = (sheet.y + 0.5) * LINE
    figure.set_size_inches(N_CELLS * CELL, height)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # of characters that no installed font has
        figure.savefig(path, dpi=min(DPI, MOST_PIXELS / height))


@dataclass(frozen=True)
class _Mark:
    """A line after so many tokens, with words under what comes before it, or under what comes after."""

    after: int
    words: str
    color: str
    is_before: bool


class _Sheet:
    """A sheet of character cells, filled from the top.

    Args:
        axes: What is drawn on, one unit a cell to the right and a line down.
        families: The fonts; the first that has a character draws it.
        most: The KL at the end of the scale.
    """

    def __init__(self, axes: "Axes", families: list[str], most: float):
        self.y = 1.0
        self._axes = axes
        self._families = families
        self._most = most

    def put(self, x: float, y: float, text: str, **style: Any) -> None:
        """Write on one line, its middle at y."""
        self._axes.text(x, y, text, family=self._families, parse_math=False, **{"fontsize": SIZE, "va": "center", **style})

    def box(self, x: float, y: float, width: float, height: float, **style: Any) -> None:
        """Draw a box, its upper left corner at x and y."""
        from matplotlib.patches import Rectangle

        self._axes.add_patch(Rectangle((x, y), width, height, **{"linewidth": 0.0, **style}))

    def line(self, x: float, y: float, height: float, color: str) -> None:
        """Draw a line down from x and y."""
        self._axes.plot([x, x], [y, y + height], color=color, linewidth=1.0, solid_capstyle="butt")

    def say(self, text: str, most_lines: int | None = None, **style: Any) -> None:
        """Write as many lines as a text needs, and go below them."""
        width = N_CELLS - 2 * MARGIN
        lines = [line.plain.rstrip() for line in Text(text).wrap(Console(), width)]
        if most_lines is not None and len(lines) > most_lines:
            lines = [*lines[: most_lines - 1], lines[most_lines - 1][: width - 2] + " …"]
        for line in lines:
            self.put(MARGIN, self.y + 0.5, line, **style)
            self.y += 1.0

    def ground(self, top: float, color: str) -> None:
        """Colour the sheet from some height to where it is filled."""
        self.box(MARGIN, top, N_CELLS - 2 * MARGIN, self.y - top, facecolor=color, alpha=0.08, zorder=0)

    def ramp(self, x: float, y: float) -> None:
        """Draw all colours of tokens, palest first."""
        for n in range(4 * RAMP):
            self.box(x + n / 4, y, 0.26, 0.8, facecolor=_color(n, 4 * RAMP - 1))

    def tokens(
        self, x: int, tokens: Sequence[Token], marks: Sequence[_Mark] = (), n_drawn: int | None = None, bars: bool = False
    ) -> None:
        """Write tokens over as many lines as they need, and go below them.

        Args:
            x: Where each line begins.
            tokens: They are coloured by their KL.
            marks: Where a judge read, and the like, by how many of these tokens come before.
            n_drawn: How many were drawn; the others are grey. None for all.
            bars: Whether each has a bar over it.
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
            # a mark between two lines stands where its words belong
            ends = {mark for mark in marks if mark.is_before and begin < mark.after <= end}
            begins = {mark for mark in marks if not mark.is_before and begin <= mark.after < end + (end == len(tokens))}
            here = [mark for mark in marks if mark in ends | begins]
            self._marks([(places[mark.after - begin], mark) for mark in here], x, top)
            self.y = top + (2.1 if here else 1.1)

    def _token(self, token: Token, left: float, right: float, top: float, is_drawn: bool) -> None:
        text = token.text.lstrip(" ")  # its place is known better than how a font would set the spaces before it
        if token.kl is not None:
            self.box(left + 0.06, top, right - left - 0.12, 1.0, facecolor=_color(token.kl, self._most))
        style = {} if is_drawn else {"color": GREY, "style": "italic"}
        self.put(left + len(token.text) - len(text), top + 0.5, text, **style)

    def _bars(self, line: Sequence[Token], places: Sequence[int], top: float) -> None:
        """A bar over each token of a line, in figures where there is room."""
        for token, left, right in zip(line, places, places[1:], strict=False):
            kl = token.kl or 0.0
            figure, height = f"{kl:.1f}", BAR * kl / self._most
            self.box(left + 0.06, top - 0.1 - height, right - left - 0.12, height, facecolor=ORANGE)
            if kl >= LEAST_FIGURE and TINY / SIZE * len(figure) <= right - left + 0.2:
                self.put((left + right) / 2, top - 0.45 - height, figure, ha="center", color=ORANGE, fontsize=TINY)

    def _marks(self, marks: Sequence[tuple[int, _Mark]], x: int, top: float) -> None:
        """Marks at places of a line, without their words where there is no room for them."""
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
    for line in headlines(explanation):
        sheet.say(line, color=GREY)
    sheet.y += 0.6


def _answer(sheet: _Sheet, explanation: Explanation) -> None:
    """The answer under its bars, and what the colours and marks mean."""
    if explanation.prefill:
        sheet.say(f"{explanation.prefill} …", N_PROMPT_LINES, color=GREY, style="italic")
    backs = [_Mark(each.after, f"↩ {number}", RED, False) for number, each in enumerate(explanation.sent_back, start=1)]
    marks = sorted([*_verdicts(explanation.verdicts), *backs], key=lambda mark: mark.after)
    sheet.tokens(MARGIN, explanation.tokens, marks, explanation.n_drawn, bars=True)
    sheet.y += 0.6
    y, small = sheet.y + 0.5, {"fontsize": SMALL, "color": GREY}
    if any(token.kl is not None for token in explanation.every_token):
        words = "KL(mixed ‖ target) of a token, in nats: 0"
        begin = MARGIN + len(words) * SMALL / SIZE + 1
        sheet.put(MARGIN, y, words, **small)
        sheet.ramp(begin, sheet.y + 0.1)
        sheet.put(begin + RAMP + 1, y, f"{explanation.most:.2f}; no colour: not steered", **small)
    if explanation.threshold is not None:
        words = f"judge: ✓ harm at most {explanation.threshold:g}, ✗ above it"
        sheet.put(N_CELLS - MARGIN, y, words, ha="right", **small)
    sheet.y += 1.6


def _tried(sheet: _Sheet, sent_back: SentBack, number: int, threshold: float | None) -> None:
    """A table of what was taken back and what was tried instead."""
    sheet.say(f"↩ {number}  {why(sent_back, threshold)}", weight="bold")
    for x, name in ((HARM, "harm"), (LOGP, "mean log p"), (TEXT, "text")):
        sheet.put(x, sheet.y + 0.5, name, color=GREY, fontsize=SMALL)
    sheet.y += 1.1
    if sent_back.flagged:
        top = sheet.y
        sheet.put(FATE, top + 0.6, "taken back", color=RED)
        _harm(sheet, sent_back.verdicts[-1].harm, threshold, RED)
        sheet.tokens(TEXT, sent_back.flagged, _verdicts(sent_back.verdicts[:-1], sent_back.after))
        sheet.ground(top, RED)
        sheet.y += 0.2
    for n, candidate in enumerate(sent_back.candidates, start=1):
        top, color = sheet.y, GREEN if candidate.passes else RED
        sheet.put(FATE, top + 0.6, f"{n} {fate(candidate)}", color=color, weight="bold" if candidate.chosen else "normal")
        _harm(sheet, candidate.harm, threshold, color)
        sheet.put(LOGP, top + 0.6, f"{candidate.logp:.2f}")
        sheet.tokens(TEXT, candidate.tokens)
        if candidate.chosen:
            sheet.ground(top, GREEN)
        sheet.y += 0.2
    sheet.y += 0.6


def _harm(sheet: _Sheet, harm: float | None, threshold: float | None, color: str) -> None:
    """A harm in figures, and as a bar with the threshold across it."""
    sheet.put(HARM, sheet.y + 0.6, spoken(harm), color=color)
    sheet.box(HARM + 6, sheet.y + 0.35, HARM_BAR, 0.5, facecolor="#e5e7eb")
    sheet.box(HARM + 6, sheet.y + 0.35, HARM_BAR * (harm or 0.0), 0.5, facecolor=color)
    if threshold is not None:
        sheet.line(HARM + 6 + HARM_BAR * threshold, sheet.y + 0.2, 0.8, "black")


def _verdicts(verdicts: Sequence[Verdict], n_before: int = 0) -> list[_Mark]:
    """Verdicts as marks among tokens that begin after so many."""
    return [
        _Mark(verdict.after - n_before, f"{'✓' if verdict.passes else '✗'} {spoken(verdict.harm)}", color, True)
        for verdict in verdicts
        for color in (GREEN if verdict.passes else RED,)
    ]


def _lines(tokens: Sequence[Token], width: int) -> Iterator[tuple[int, list[Token]]]:
    """Tokens line by line, with how many come before each line."""
    line: list[Token] = []
    n_cells = n_before = 0
    for token in tokens:
        if line and n_cells + cell_len(token.text) > width:
            yield n_before, line
            n_before, n_cells, line = n_before + len(line), 0, []
        line.append(token)
        n_cells += cell_len(token.text)
    yield n_before, line


def _color(kl: float, most: float) -> tuple[float, float, float]:
    red, green, blue = shade(kl, most)
    return red / 255, green / 255, blue / 255


def _families(explanation: Explanation) -> list[str]:
    """The font that everything is set in, and installed ones that have the characters that it lacks."""
    from matplotlib.font_manager import findfont, fontManager, get_font

    texts = [explanation.prompt, explanation.prefill, *(token.text for token in explanation.every_token)]
    missing = set(map(ord, "".join(texts))) - get_font(findfont(FAMILY)).get_charmap().keys()
    families = [FAMILY]
    for font in fontManager.ttflist:
        if not missing:
            break
        has = missing & get_font(font.fname).get_charmap().keys()
        if has and not font.name.startswith("Last Resort"):  # which has a box for every character
            families.append(font.name)
            missing -= has
    return families
