"""Results as tables of Markdown and as JSON: rates, differences, who says so, what it cost. Every figure with its interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from hf_alignbeam.console import table_head, table_row
from hf_alignbeam.evaluation.recipe import Recipe
from hf_alignbeam.evaluation.results import Answers, SystemResults, harm_judge
from hf_alignbeam.evaluation.statistics import Rate, Ratio, format_points, paired_difference

#: What is counted of each prompt, by the name of a cost and that of its column.
COUNTS = {
    "target_forwards": "target forwards",
    "anchor_forwards": "anchor forwards",
    "judge_calls": "judge calls",
    "judged": "texts judged",
}


def markdown(recipe: Recipe, results: Sequence[SystemResults], environment: str) -> list[str]:
    """The report."""
    lines = [*([recipe.about.strip(), ""] if recipe.about else []), environment, *_notes(recipe, results)]
    for model in recipe.models:
        own = [each for each in results if each.model == model]
        alone = [each for each in own if not each.system.sweep]
        if len(recipe.models) > 1:
            lines += ["", f"## {model.name}"]
        for table in (_rates, _paired, _sayings, _costs, _choices) if alone else ():
            lines += ["", *found] if (found := table(alone)) else []
        lines += ["", *found] if (found := _sweeps(own)) else []
    return lines


def figures(recipe: Recipe, results: Sequence[SystemResults], environment: str) -> dict[str, Any]:
    """The same for a machine: every count and every interval."""
    by_model = {model.name: _plain([each for each in results if each.model == model]) for model in recipe.models}
    return {
        "about": recipe.about,
        "environment": environment,
        "recipe": asdict(recipe),
        "results": [_figures(each, by_model[each.model.name]) for each in results],
    }


def safety(results: SystemResults) -> list[bool]:
    """Of every harmful prompt, whether its answer does no harm."""
    return [not harms for harms in results.column("harms", True)]


def over_refusal(results: SystemResults) -> list[bool]:
    """Of every harmless prompt, whether it is refused."""
    return results.column("refuses", False)


def slowdown(results: SystemResults, plain: SystemResults) -> Ratio:
    """The wall time in relation to that of the plain target for the same prompts."""
    tops, bottoms = [], []
    for name, answers in results.answers.items():
        for own, other in zip(answers.costs, plain.answers[name].costs, strict=False):
            tops.append(own["seconds"])
            bottoms.append(other["seconds"] / other["prompts"] * own["prompts"])
    return Ratio(tops, bottoms)


def _notes(recipe: Recipe, results: Sequence[SystemResults]) -> list[str]:
    """Who scored, where it ran, and what is missing."""
    all_answers = [answers for each in results for answers in each.answers.values()]
    machines = sorted({str(cost["machine"]) for answers in all_answers for cost in answers.costs})
    notes = [f"Measured on: {'; '.join(machines)}."]
    judged = any(case.truth is None for answers in all_answers for case in answers.prompts.cases)
    scorer = harm_judge(recipe)
    if judged and scorer is not None:
        own = ", the guards' own judge, so that what it passed cannot count as harm" if recipe.harm_judge is None else ""
        notes.append(f"Harm is what {scorer.name} says{own}.")
    if judged and recipe.refusal_judge is not None:
        notes.append(f"Refusals are what {recipe.refusal_judge.name} says.")
    for column, who in (("harms", "the judge of harm"), ("by judge", "the judge of refusals")):
        if n_missing := sum(hit is None for answers in all_answers for hit in answers.columns.get(column, [])):
            notes.append(f"On {n_missing} answers {who} gave no verdict: they are left out. The same command asks again.")
    if n_missing := sum(int(cost["no_verdict"]) for answers in all_answers for cost in answers.costs):
        notes.append(f"The guards' judge gave no verdict {n_missing} times. The same command asks again.")
    return [line for note in notes for line in ("", note)]


def _plain(results: Sequence[SystemResults]) -> SystemResults | None:
    """The target alone."""
    return next((each for each in results if each.system.system == "plain"), None)


def _rate_columns(answers: Answers) -> list[str]:
    wanted = ("refuses", "harms") if answers.prompts.harmful else ("correct", "refuses")
    return [name for name in wanted if name in answers.columns]


def _rates(results: Sequence[SystemResults]) -> list[str]:
    columns = [(name, column) for name, answers in results[0].answers.items() for column in _rate_columns(answers)]
    lines = table_head(["system", "prompts a set", *(f"{name}: {column}" for name, column in columns)])
    for each in results:
        sizes = sorted({len(answers.records) for answers in each.answers.values()})
        n = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        cells = [str(_rate(each.answers[name].columns.get(column, []))) for name, column in columns]
        lines.append(table_row([each.system.name, n, *cells]))
    return lines


def _paired(results: Sequence[SystemResults]) -> list[str]:
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
            lines.append(table_row([each.system.name, *(format_points(*found) if found[0] else "-" for found in pairs)]))
    return lines


def _sayings(results: Sequence[SystemResults]) -> list[str]:
    """Who says that an answer refuses, over all harmful and all harmless prompts."""
    named = {"by strings": "strings", "by judge": "judge", "refuses": "in the first table"}
    columns = [(harmful, name) for harmful in (True, False) for name in named if results[0].column(name, harmful)]
    lines = table_head(
        ["refusals of all prompts", *(f"{'harmful' if harmful else 'harmless'}: {named[name]}" for harmful, name in columns)]
    )
    for each in results:
        lines.append(table_row([each.system.name, *(str(_rate(each.column(name, harmful))) for harmful, name in columns)]))
    return lines


def _costs(results: Sequence[SystemResults]) -> list[str]:
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


def _choices(results: Sequence[SystemResults]) -> list[str]:
    """Where refusals come from, what the judge let pass, and whether what is not flagged is as the target alone has it."""
    plain = _plain(results)
    choosing = [each for each in results if any(told.chosen is not None for told in _choices_of(each, plain))]
    if not choosing:
        return []
    columns = ["refused in the model's words", "by the configured text", "harmful answers", "harmless flagged"]
    lines = table_head(["system", "harmful prompts", *columns, "unflagged", "of these as plain generate"])
    for each in choosing:
        told = _choices_of(each, plain)
        harmful, kept = [one for one in told if one.harmful], [one for one in told if one.chosen == 0]
        compared = [one.as_plain for one in kept if one.as_plain is not None]
        own, fixed = sum(one.refuses and one.chosen != -1 for one in harmful), sum(one.chosen == -1 for one in harmful)
        cells = [
            str(len(harmful)),
            f"{own} ({100 * own / max(own + fixed, 1):.1f} % of refusals)",
            f"{fixed} ({100 * fixed / max(len(harmful), 1):.1f} % of prompts)",
            str(sum(one.harms for one in harmful)),
            str(sum(one.chosen != 0 for one in told if not one.harmful)),
            str(len(kept)),
            f"{100 * sum(compared) / len(compared):.1f} %" if compared else "-",
        ]
        lines.append(table_row([each.system.name, *cells]))
    return lines


class _Choice(NamedTuple):
    """One answer: what it is, which candidate, and whether the plain target, where it was asked, says the same tokens."""

    harmful: bool
    chosen: int | None
    refuses: bool
    harms: bool
    as_plain: bool | None


def _choices_of(each: SystemResults, plain: SystemResults | None) -> list[_Choice]:
    found = []
    for name, answers in each.answers.items():
        harms = answers.columns.get("harms") or [None] * len(answers.records)
        before = {} if plain is None else {record["case"]: record["ids"] for record in plain.answers[name].records}
        for record, refuses, harm in zip(answers.records, answers.columns["refuses"], harms, strict=True):
            same = record["ids"] == before[record["case"]] if record["case"] in before else None
            found.append(_Choice(answers.prompts.harmful, record["chosen"], bool(refuses), bool(harm), same))
    return found


def _sweeps(results: Sequence[SystemResults]) -> list[str]:
    swept = [each for each in results if each.system.point is not None]
    if not swept:
        return []
    utility = any(each.column("correct", False) for each in swept)
    columns = ["harmful prompts without harm", "harmless prompts refused", *(["correct"] if utility else [])]
    lines = table_head(["system", "setting", "value", "prompts", *columns])
    for each in swept:
        setting, value = each.system.point or ("", 0.0)
        told = [safety(each), over_refusal(each), *([each.column("correct", False)] if utility else [])]
        n = sum(len(answers.records) for answers in each.answers.values())
        lines.append(table_row([each.system.sweep, setting, str(value), str(n), *(str(_rate(hits)) for hits in told)]))
    return lines


def _pairs(after: Answers, before: Answers, column: str) -> tuple[list[bool], list[bool]]:
    """The verdicts on the prompts that both answered and have one on."""
    known = {record["case"]: hit for record, hit in zip(before.records, before.columns.get(column, []), strict=False)}
    both = [
        (hit, other)
        for record, hit in zip(after.records, after.columns.get(column, []), strict=False)
        if hit is not None and (other := known.get(record["case"])) is not None
    ]
    return [hit for hit, _ in both], [other for _, other in both]


def _rate(hits: Sequence[bool | None]) -> Rate | str:
    told = [hit for hit in hits if hit is not None]
    return Rate(sum(told), len(told)) if told else "-"


def _figures(each: SystemResults, plain: SystemResults | None) -> dict[str, Any]:
    sets = {}
    for name, answers in each.answers.items():
        rates: dict[str, Any] = {}
        for column, hits in answers.columns.items():
            if not isinstance(rate := _rate(hits), Rate):
                continue
            rates[column] = {"hits": rate.n_hits, "n": rate.n, "share": rate.share, "interval": rate.interval}
            after, before = _pairs(answers, plain.answers[name], column) if plain is not None and plain is not each else ([], [])
            if after:
                mean, half = paired_difference(after, before)
                rates[column]["against_plain"] = {"difference": mean, "half_width": half}
        sets[name] = {"harmful": answers.prompts.harmful, "rates": rates, "batches": answers.costs}
    batches = [cost for answers in each.answers.values() for cost in answers.costs]
    asked = [cost["prompts"] for cost in batches]
    ratios = {name: Ratio([cost[name] for cost in batches], asked) for name in ("seconds", "tokens", *COUNTS)}
    ratios["tokens_per_second"] = Ratio([cost["tokens"] for cost in batches], [cost["seconds"] for cost in batches])
    if plain is not None:
        ratios["times_plain"] = slowdown(each, plain)
    costs: Mapping[str, Any] = {
        name: {"value": ratio.value, "half_width": None if math.isnan(ratio.half_width) else ratio.half_width}
        for name, ratio in ratios.items()
    }
    named = {"model": each.model.name, "system": each.system.name, "sweep": each.system.sweep, "point": each.system.point}
    return {**named, "prompt_sets": sets, "costs": costs}
