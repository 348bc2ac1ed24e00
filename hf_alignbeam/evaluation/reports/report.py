"""Results as Markdown tables and as JSON: rates, paired differences, scorers and costs, each with its interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from hf_alignbeam.console import table_head, table_row
from hf_alignbeam.evaluation.recipe import Recipe
from hf_alignbeam.evaluation.results import Answers, SystemResults, harm_judge
from hf_alignbeam.evaluation.scorers import PUBLISHED
from hf_alignbeam.evaluation.statistics import HullArea, Rate, Ratio, format_points, paired_difference

#: The counted costs: their key in a record, and their column in a table.
COUNTS = {
    "target_forwards": "target forwards",
    "anchor_forwards": "anchor forwards",
    "judge_calls": "judge calls",
    "judged": "texts judged",
}


def markdown(recipe: Recipe, results: Sequence[SystemResults], environment: str) -> list[str]:
    """The report as lines of Markdown."""
    lines = [*([recipe.about.strip(), ""] if recipe.about else []), environment, *_notes(recipe, results)]
    for model in recipe.models:
        of_model = [each for each in results if each.model == model]
        without_sweeps = [each for each in of_model if not each.system.sweep]
        if len(recipe.models) > 1:
            lines += ["", f"## {model.name}"]
        for table in (
            (_rate_table, _paired_table, _harmless_table, _refusal_table, _cost_table, _choice_table) if without_sweeps else ()
        ):
            lines += ["", *rows] if (rows := table(without_sweeps)) else []
        for table in (_sweep_table, _area_table):
            lines += ["", *rows] if (rows := table(of_model)) else []
    return lines


def figures(recipe: Recipe, results: Sequence[SystemResults], environment: str) -> dict[str, Any]:
    """The report as JSON: every count and every interval."""
    plain = {model.name: _plain([each for each in results if each.model == model]) for model in recipe.models}
    return {
        "about": recipe.about,
        "environment": environment,
        "recipe": asdict(recipe),
        "results": [_figures(each, plain[each.model.name]) for each in results],
    }


def safety(results: SystemResults) -> list[bool]:
    """For each harmful prompt, whether its answer does no harm."""
    return [not harms for harms in results.column("harms", True)]


def over_refusal(results: SystemResults) -> list[bool]:
    """For each harmless prompt, whether it is refused."""
    return results.column("refuses", False)


def refusal(results: SystemResults) -> list[bool]:
    """For each harmful prompt, whether it is refused."""
    return results.column("refuses", True)


def by_sweep(results: Sequence[SystemResults]) -> dict[str, list[SystemResults]]:
    """The results of each sweep by its name, and those of each other system by its own."""
    groups: dict[str, list[SystemResults]] = {}
    for each in results:
        groups.setdefault(each.system.sweep or each.system.name, []).append(each)
    return groups


def slowdown(results: SystemResults, plain: SystemResults) -> Ratio:
    """The wall time divided by that of the plain target on the same prompts."""
    numerators, denominators = [], []
    for name, answers in results.answers.items():
        for cost, plain_cost in zip(answers.costs, plain.answers[name].costs, strict=False):
            numerators.append(cost["seconds"])
            denominators.append(plain_cost["seconds"] / plain_cost["prompts"] * cost["prompts"])
    return Ratio(numerators, denominators)


def _notes(recipe: Recipe, results: Sequence[SystemResults]) -> list[str]:
    """The scorers, the machines, and the missing verdicts."""
    all_answers = [answers for each in results for answers in each.answers.values()]
    machines = sorted({str(cost["machine"]) for answers in all_answers for cost in answers.costs})
    notes = [f"Measured on: {'; '.join(machines)}."]
    judged = any(example.truth is None for answers in all_answers for example in answers.prompts.examples)
    scorer = harm_judge(recipe)
    if judged and scorer is not None:
        caveat = ", the guards' own judge, so that what it passed cannot count as harm" if recipe.harm_judge is None else ""
        notes.append(f"Harm is what {scorer.name} says{caveat}.")
    if judged and recipe.refusal_judge is not None:
        notes.append(f"Refusals are what {recipe.refusal_judge.name} says.")
    for column, who in (("harms", "the judge of harm"), ("by judge", "the judge of refusals")):
        if n_missing := sum(hit is None for answers in all_answers for hit in answers.columns.get(column, [])):
            notes.append(f"On {n_missing} answers {who} gave no verdict: they are left out. The same command asks again.")
    if n_missing := sum(int(cost["no_verdict"]) for answers in all_answers for cost in answers.costs):
        notes.append(f"The guards' judge gave no verdict {n_missing} times. The same command asks again.")
    return [line for note in notes for line in ("", note)]


def _plain(results: Sequence[SystemResults]) -> SystemResults | None:
    """The results of the target without a guard."""
    return next((each for each in results if each.system.system == "plain"), None)


def _rate_columns(answers: Answers) -> list[str]:
    wanted = ("refuses", "harms") if answers.prompts.harmful else ("correct", "refuses")
    return [name for name in wanted if name in answers.columns]


def _rate_table(results: Sequence[SystemResults]) -> list[str]:
    columns = [(name, column) for name, answers in results[0].answers.items() for column in _rate_columns(answers)]
    lines = table_head(["system", "prompts a set", *(f"{name}: {column}" for name, column in columns)])
    for each in results:
        sizes = sorted({len(answers.records) for answers in each.answers.values()})
        n = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        cells = [str(_rate(each.answers[name].columns.get(column, []))) for name, column in columns]
        lines.append(table_row([each.system.name, n, *cells]))
    return lines


def _paired_table(results: Sequence[SystemResults]) -> list[str]:
    plain = _plain(results)
    if plain is None:
        return []
    columns = [
        (name, column)
        for name, answers in plain.answers.items()
        for column in _rate_columns(answers)
        if not answers.prompts.harmful
    ]
    lines = table_head([f"against {plain.system.name}, paired", *(f"{name}: {column}" for name, column in columns)])
    for each in results:
        if each is not plain:
            pairs = [_pairs(each.answers[name], plain.answers[name], column) for name, column in columns]
            lines.append(table_row([each.system.name, *(format_points(*pair) if pair[0] else "-" for pair in pairs)]))
    return lines


def _harmless_table(results: Sequence[SystemResults]) -> list[str]:
    """What the plain target answers and the system refuses, and which answers are the plain target's token for token."""
    plain = _plain(results)
    names = [name for name, answers in plain.answers.items() if not answers.prompts.harmful] if plain is not None else []
    if plain is None or not names:
        return []
    columns = [f"{name}: {what}" for name in names for what in ("refused of those that plain answers", "same tokens as plain")]
    lines = table_head(["harmless prompts", *columns])
    for each in results:
        cells = []
        for name in names:
            refused, before = _pairs(each.answers[name], plain.answers[name], "refuses")
            cells.append(str(_rate([hit for hit, other in zip(refused, before, strict=True) if not other])))
            cells.append(str(_rate(_as_plain(each.answers[name], plain.answers[name]))))
        lines.append(table_row([each.system.name, *cells]))
    return lines


def _as_plain(after: Answers, before: Answers) -> list[bool | None]:
    """For each answer, whether the plain target's has the same tokens; None where it has none."""
    ids = {record["case"]: record["ids"] for record in before.records}
    return [record["ids"] == ids[record["case"]] if record["case"] in ids else None for record in after.records]


def _refusal_table(results: Sequence[SystemResults]) -> list[str]:
    """Refusals by each scorer, over all harmful and all harmless prompts."""
    scorers = {"by strings": "strings", **{name: name.removeprefix("by ") for name in PUBLISHED}}
    scorers |= {"by judge": "judge", "refuses": "in the first table"}
    columns = [(harmful, name) for harmful in (True, False) for name in scorers if results[0].column(name, harmful)]
    lines = table_head(
        ["refusals of all prompts", *(f"{'harmful' if harmful else 'harmless'}: {scorers[name]}" for harmful, name in columns)]
    )
    for each in results:
        lines.append(table_row([each.system.name, *(str(_rate(each.column(name, harmful))) for harmful, name in columns)]))
    return lines


def _cost_table(results: Sequence[SystemResults]) -> list[str]:
    plain = _plain(results)
    lines = table_head(["cost a prompt", "answer tokens a second", "wall time, times plain", "answer tokens", *COUNTS.values()])
    for each in results:
        batches = [cost for answers in each.answers.values() for cost in answers.costs]
        n = [cost["prompts"] for cost in batches]
        counts = [str(Ratio([cost[name] for cost in batches], n)) for name in ("tokens", *COUNTS)]
        speed = str(Ratio([cost["tokens"] for cost in batches], [cost["seconds"] for cost in batches]))
        times = "-" if plain is None else "1" if each is plain else str(slowdown(each, plain))
        lines.append(table_row([each.system.name, speed, times, *counts]))
    return lines


def _choice_table(results: Sequence[SystemResults]) -> list[str]:
    """Where refusals come from, what the judge passed, and whether unflagged answers equal those of the plain target."""
    plain = _plain(results)
    strategies = [each for each in results if any(choice.chosen is not None for choice in _choices(each, plain))]
    if not strategies:
        return []
    columns = ["refused in the model's words", "by the configured text", "harmful answers", "harmless replaced"]
    lines = table_head(["system", "harmful prompts", *columns, "unflagged", "of these as plain generate"])
    for each in strategies:
        choices = _choices(each, plain)
        harmful, unflagged = [c for c in choices if c.harmful], [c for c in choices if c.chosen == 0]
        compared = [c.as_plain for c in unflagged if c.as_plain is not None]
        own, fixed = sum(c.refuses and c.chosen != -1 for c in harmful), sum(c.chosen == -1 for c in harmful)
        cells = [
            str(len(harmful)),
            f"{own} ({100 * own / max(own + fixed, 1):.1f} % of refusals)",
            f"{fixed} ({100 * fixed / max(len(harmful), 1):.1f} % of prompts)",
            str(sum(harms)) if (harms := each.column("harms", True)) else "-",
            str(sum(c.chosen != 0 for c in choices if not c.harmful)),
            str(len(unflagged)),
            f"{100 * sum(compared) / len(compared):.1f} %" if compared else "-",
        ]
        lines.append(table_row([each.system.name, *cells]))
    return lines


class _Choice(NamedTuple):
    """One answer: its verdicts, the chosen candidate, and whether the plain target gave the same tokens (None: not measured)."""

    harmful: bool
    chosen: int | None
    refuses: bool
    as_plain: bool | None


def _choices(results: SystemResults, plain: SystemResults | None) -> list[_Choice]:
    choices = []
    for name, answers in results.answers.items():
        same_as_plain = [None] * len(answers.records) if plain is None else _as_plain(answers, plain.answers[name])
        for record, refuses, same in zip(answers.records, answers.columns["refuses"], same_as_plain, strict=True):
            choices.append(_Choice(answers.prompts.harmful, record["chosen"], bool(refuses), same))
    return choices


def _sweep_table(results: Sequence[SystemResults]) -> list[str]:
    swept = [each for each in results if each.system.point is not None]
    if not swept:
        return []
    utility = any(each.column("correct", False) for each in swept)
    safe, safe_name = (safety, "harmful prompts without harm") if safety(swept[0]) else (refusal, "harmful prompts refused")
    columns = [safe_name, "harmless prompts refused", *(["correct"] if utility else [])]
    lines = table_head(["system", "setting", "value", "prompts", *columns])
    for each in swept:
        setting, value = each.system.point or ("", 0.0)
        verdicts = [safe(each), over_refusal(each), *([each.column("correct", False)] if utility else [])]
        n = sum(len(answers.records) for answers in each.answers.values())
        lines.append(table_row([each.system.sweep, setting, str(value), str(n), *(str(_rate(hits)) for hits in verdicts)]))
    return lines


def _area_table(results: Sequence[SystemResults]) -> list[str]:
    """What each system's settings reach: harmful prompts refused against harmless ones refused."""
    groups = by_sweep(results)
    if len(groups) == len(results) or not (refusal(results[0]) and over_refusal(results[0])):
        return []
    lines = table_head(["system", "settings", "area under harmful prompts refused against harmless prompts refused"])
    for name, group in groups.items():
        hits = [[over_refusal(each) for each in group], [refusal(each) for each in group]]
        has_all = all(len(set(map(len, of_kind))) == 1 for of_kind in hits)  # without a verdict, prompts are not the same
        lines.append(table_row([name, str(len(group)), str(HullArea(*hits)) if has_all else "-"]))
    return lines


def _pairs(after: Answers, before: Answers, column: str) -> tuple[list[bool], list[bool]]:
    """The verdicts of one column on the prompts where both systems have one."""
    known = {record["case"]: hit for record, hit in zip(before.records, before.columns.get(column, []), strict=False)}
    both = [
        (hit, other)
        for record, hit in zip(after.records, after.columns.get(column, []), strict=False)
        if hit is not None and (other := known.get(record["case"])) is not None
    ]
    return [hit for hit, _ in both], [other for _, other in both]


def _rate(hits: Sequence[bool | None]) -> Rate | str:
    verdicts = [hit for hit in hits if hit is not None]
    return Rate(sum(verdicts), len(verdicts)) if verdicts else "-"


def _figures(results: SystemResults, plain: SystemResults | None) -> dict[str, Any]:
    sets = {}
    for name, answers in results.answers.items():
        rates: dict[str, Any] = {}
        for column, hits in answers.columns.items():
            if not isinstance(rate := _rate(hits), Rate):
                continue
            rates[column] = {"hits": rate.n_hits, "n": rate.n, "share": rate.share, "interval": rate.interval}
            if plain is None or plain is results:
                continue
            after, before = _pairs(answers, plain.answers[name], column)
            if after:
                mean, half = paired_difference(after, before)
                rates[column]["against_plain"] = {"difference": mean, "half_width": half}
        sets[name] = {"harmful": answers.prompts.harmful, "rates": rates, "batches": answers.costs}
        if plain is not None and not answers.prompts.harmful:
            same = [hit for hit in _as_plain(answers, plain.answers[name]) if hit is not None]
            sets[name]["same_tokens_as_plain"] = {"hits": sum(same), "n": len(same)}
    batches = [cost for answers in results.answers.values() for cost in answers.costs]
    n = [cost["prompts"] for cost in batches]
    ratios = {name: Ratio([cost[name] for cost in batches], n) for name in ("seconds", "tokens", *COUNTS)}
    ratios["tokens_per_second"] = Ratio([cost["tokens"] for cost in batches], [cost["seconds"] for cost in batches])
    if plain is not None:
        ratios["times_plain"] = slowdown(results, plain)
    costs: Mapping[str, Any] = {
        name: {"value": ratio.value, "half_width": None if math.isnan(ratio.half_width) else ratio.half_width}
        for name, ratio in ratios.items()
    }
    system = results.system
    names = {"model": results.model.name, "system": system.name, "sweep": system.sweep, "point": system.point}
    return {**names, "prompt_sets": sets, "costs": costs}
