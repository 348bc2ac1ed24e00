"""Pictures of results: safety and refusals against over-refusal, utility, cost, rates over swept settings. Needs matplotlib."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_alignbeam.evaluation.reports.report import by_sweep, over_refusal, safety, slowdown
from hf_alignbeam.evaluation.results import SystemResults
from hf_alignbeam.evaluation.statistics import Rate
from hf_alignbeam.utils.whole_files import replace_file

SAFETY, REFUSALS, SWEEPS, COST = "safety.png", "refusals.png", "sweeps.png", "cost.png"
SAFE = "harmful prompts answered without harm"
MARKERS = "osD^vPX*<>hdp8H"

#: The verdicts of a system that a rate is taken of.
Shares = Callable[[SystemResults], list[bool]]


def draw(results: Sequence[SystemResults], folder: Path) -> list[Path]:
    """Draw one target's results into a folder, as far as they are measured, and return the paths."""
    measured = [each for each in results if safety(each)]
    alone = [each for each in measured if not each.system.sweep]
    plain = next((each for each in alone if each.system.system == "plain"), None)
    shares: dict[str, Shares] = {"harmless prompts refused": over_refusal, "correct": _correct}
    known = {label: hits for label, hits in shares.items() if measured and all(hits(each) for each in measured)}
    drawn = []
    if alone and known:
        drawn.append(folder / SAFETY)
        _draw_safety(alone, known, drawn[-1])
    if by_sets := _refusal_panels(results):
        drawn.append(folder / REFUSALS)
        _draw_refusals(results, by_sets, drawn[-1])
    if len(measured) > len(alone):
        drawn.append(folder / SWEEPS)
        _draw_sweeps([each for each in measured if each.system.sweep], {SAFE: safety, **known}, drawn[-1])
    if plain is not None:
        drawn.append(folder / COST)
        _draw_cost(alone, plain, drawn[-1])
    return drawn


def _draw_safety(results: Sequence[SystemResults], shares: Mapping[str, Shares], path: Path) -> None:
    """Each system as a point: safety over each of the shares."""
    figure, panels = _figure([f"{label}, %" for label in shares], f"{SAFE}, %")
    for axes, hits in zip(panels, shares.values(), strict=True):
        for n, each in enumerate(results):
            rate = _rate(hits(each))
            _point(axes, n, each.system.name, 100 * rate.share, _rate(safety(each)), xerr=_bars(rate))
    _save(figure, panels[-1], path)


def _refusal_panels(results: Sequence[SystemResults]) -> dict[str, tuple[list[str], list[str]]]:
    """The names of the harmful and of the harmless sets of each panel: all of them, and each set that has prompts of both kinds.

    Sets that a grammar scores have no panel.
    """
    scored = results[0].answers if results else {}
    by_words = {name: answers.prompts for name, answers in scored.items() if answers.prompts.examples[0].truth is None}
    harmful, harmless = ([name for name, each in by_words.items() if each.harmful is wanted] for wanted in (True, False))
    if not harmful or not harmless:
        return {}
    both = [name.removesuffix(" harmful") for name in harmful if name.removesuffix(" harmful") + " harmless" in harmless]
    pairs = {name: ([f"{name} harmful"], [f"{name} harmless"]) for name in both}
    return pairs if len(pairs) == 1 and len(by_words) == 2 else {"all prompts": (harmful, harmless), **pairs}


def _draw_refusals(results: Sequence[SystemResults], panels_of: Mapping[str, tuple[list[str], list[str]]], path: Path) -> None:
    """Each system as a point, each sweep as a curve: harmful prompts refused over harmless ones refused."""
    figure, panels = _figure([f"{name}: harmless refused, %" for name in panels_of], "harmful prompts refused, %")
    for axes, names in zip(panels, panels_of.values(), strict=True):
        for n, (label, group) in enumerate(by_sweep(results).items()):
            y, x = ([_rate(_refused(each, of)) for each in group] for of in names)
            bars = {"xerr": _all_bars(x), "yerr": _all_bars(y), "lw": 0.8}
            line = {"marker": MARKERS[n % len(MARKERS)], "color": f"C{n % 10}", "ls": "-" if len(group) > 1 else ""}
            shares = ([100 * rate.share for rate in rates] for rates in (x, y))
            axes.errorbar(*shares, label=label, ms=6, alpha=0.8, **line, **bars)
    _save(figure, panels[-1], path)


def _refused(results: SystemResults, names: Sequence[str]) -> list[bool]:
    return [hit for name in names for hit in results.answers[name].columns["refuses"] if hit is not None]


def _all_bars(rates: Sequence[Rate]) -> list[list[float]]:
    return [[bars[side][0] for bars in map(_bars, rates)] for side in (0, 1)]


def _draw_sweeps(results: Sequence[SystemResults], shares: Mapping[str, Shares], path: Path) -> None:
    """A panel for each sweep: the rates over the values of its setting, evenly spaced, with their intervals."""
    sweeps = list(dict.fromkeys(each.system.sweep for each in results))
    figure, panels = _figure(sweeps, "%")
    for axes, sweep in zip(panels, sweeps, strict=True):
        swept = [each for each in results if each.system.sweep == sweep]
        values = [str(each.system.point[1]) for each in swept if each.system.point is not None]
        for n, (label, hits) in enumerate(shares.items()):
            rates = [_rate(hits(each)) for each in swept]
            low, high = zip(*(rate.interval for rate in rates), strict=True)
            axes.plot(values, [100 * rate.share for rate in rates], marker=MARKERS[n], label=label, ms=5, alpha=0.8)
            axes.fill_between(values, [100 * v for v in low], [100 * v for v in high], alpha=0.2)
        axes.tick_params(axis="x", labelsize=7)
    _save(figure, panels[-1], path)


def _draw_cost(results: Sequence[SystemResults], plain: SystemResults, path: Path) -> None:
    """Each system as a point: safety over wall time."""
    figure, (axes,) = _figure(["wall time, times the target alone"], f"{SAFE}, %")
    for n, each in enumerate(results):
        times = slowdown(each, plain)
        xerr = None if math.isnan(times.half_width) else times.half_width
        _point(axes, n, each.system.name, times.value, _rate(safety(each)), xerr=xerr)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    _save(figure, axes, path)


def _figure(labels: Sequence[str], ylabel: str) -> tuple[Any, Sequence[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 + 3.6 * len(labels), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(labels), sharey=True, squeeze=False)[0]
    for axes, label in zip(panels, labels, strict=True):
        axes.set(xlabel=label, ylim=(-4, 104))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(ylabel)
    return figure, panels


def _point(axes: Any, n: int, name: str, x: float, y: Rate, xerr: Any) -> None:
    bars = {"xerr": xerr, "yerr": _bars(y), "lw": 0.8}
    marker, color = MARKERS[n % len(MARKERS)], f"C{n % 10}"
    axes.errorbar([x], [100 * y.share], marker=marker, color=color, ls="", label=name, ms=7, alpha=0.8, **bars)


def _save(figure: Any, axes: Any, path: Path) -> None:
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    replace_file(path, lambda part: figure.savefig(part, format="png", dpi=120))


def _correct(results: SystemResults) -> list[bool]:
    return results.column("correct", False)


def _rate(hits: Sequence[bool]) -> Rate:
    return Rate(sum(hits), len(hits))


def _bars(rate: Rate) -> list[list[float]]:
    """The lengths of the error bars, in percent. Clamped at 0: rounding may put an end of the interval beyond the share."""
    low, high = rate.interval
    return [[max(0.0, 100 * (rate.share - low))], [max(0.0, 100 * (high - rate.share))]]
