"""Every answer with its verdicts, gathered by target, system and prompt set: what a report is made of.

Knows where answers and verdicts lie. Prints nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate import PartialState

from hf_alignbeam.decoding.strategy import THRESHOLD
from hf_alignbeam.evaluation.answer_store import Store, digest
from hf_alignbeam.evaluation.generation import without_answer
from hf_alignbeam.evaluation.prompt_sets import Case, PromptSet
from hf_alignbeam.evaluation.recipe import JudgeSpec, ModelSpec, Recipe, SystemSpec
from hf_alignbeam.evaluation.runner import Unit, described
from hf_alignbeam.evaluation.scorers import Columns, JudgeCases, score
from hf_alignbeam.evaluation.systems import Parts
from hf_alignbeam.judges.failsafe import judge_each_or_none
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_language


@dataclass
class Answers:
    """A system's answers to one prompt set, in the order of its cases.

    Attributes:
        prompts: The set.
        records: An answer each, as `work` keeps them.
        columns: By name, a verdict each; None where nobody gave one.
        costs: What each batch of them cost, with `prompts`, how many they were.
    """

    prompts: PromptSet
    records: list[dict[str, Any]] = field(default_factory=list)
    columns: Columns = field(default_factory=dict)
    costs: list[dict[str, float]] = field(default_factory=list)


@dataclass
class SystemResults:
    """What became of one system on one target."""

    model: ModelSpec
    system: SystemSpec
    answers: dict[str, Answers] = field(default_factory=dict)

    def column(self, name: str, harmful: bool) -> list[bool]:
        """The verdicts of one name over all sets of one sort, as far as there are any."""
        return [hit for each in self._sets(harmful) for hit in each.columns.get(name, []) if hit is not None]

    def _sets(self, harmful: bool) -> Iterator[Answers]:
        return (each for each in self.answers.values() if each.prompts.harmful == harmful)


class JudgedBy:
    """Verdicts of one judge on answers, a batch at a time, each asked for once.

    Args:
        spec: The judge; None: nobody is asked.
        recipe: Where it is loaded from.
        store: What has been asked already.
    """

    def __init__(self, spec: JudgeSpec | None, recipe: Recipe, store: Store):
        self._spec = spec
        self._recipe = recipe
        self._store = store

    def prepare(self, batches: Sequence[tuple[Sequence[Case], Sequence[str]]], state: PartialState) -> None:
        """Ask what has no verdict yet, shared out over processes; what gets none now is asked about again by the next run."""
        if self._spec is None:
            return
        todo = {self._key(*batch): batch for batch in batches}
        left = [(key, batch) for key, batch in todo.items() if key not in self._store or None in self._harm(key)]
        judge = None
        for key, (cases, texts) in left[state.process_index :: state.num_processes]:
            judge = judge or Parts(self._recipe, self._recipe.models[0]).load_judge(self._spec)
            harm = judge_each_or_none(judge, [without_answer(case.conversation) for case in cases], texts).harm
            self._store.add(key, [{"harm": each} for each in harm], {})

    def __call__(self, cases: Sequence[Case], texts: Sequence[str]) -> list[bool | None]:
        """Whether each answer is above the threshold, None where there is no verdict. Empty where nobody is asked."""
        if self._spec is None:
            return []
        return [None if harm is None else harm > THRESHOLD for harm in self._harm(self._key(cases, texts))]

    def _harm(self, key: str) -> list[float | None]:
        return [record["harm"] for record in self._store[key].records]

    def _key(self, cases: Sequence[Case], texts: Sequence[str]) -> str:
        return digest(
            [described(self._spec, self._recipe), [[case.conversation, text] for case, text in zip(cases, texts, strict=True)]]
        )


def gather(recipe: Recipe, done: Sequence[Unit], answers: Store, verdicts: Store, state: PartialState) -> list[SystemResults]:
    """Score every answer; all processes take part, and each gets all results."""
    truth = GroundTruth(stored_language(recipe.weights or WEIGHTS))
    batches = [(unit.cases, [record["text"] for record in answers[unit.key].records]) for unit in done]
    judged = [b for unit, b in zip(done, batches, strict=True) if any(case.truth is None for case in unit.cases)]
    refused = JudgedBy(recipe.refusal_judge, recipe, verdicts)
    harmed = JudgedBy(harm_judge(recipe), recipe, verdicts)
    for asked in (refused, harmed):
        asked.prepare(judged, state)
    verdicts.gather()
    found: dict[tuple[str, str], SystemResults] = {}
    for unit, (cases, texts) in zip(done, batches, strict=True):
        key = unit.model.name, unit.system.name
        results = found.setdefault(key, SystemResults(unit.model, unit.system))
        own = results.answers.setdefault(unit.prompts.name, Answers(unit.prompts))
        batch = answers[unit.key]
        own.records.extend(dict(record) for record in batch.records)
        own.costs.append({**batch.cost, "prompts": len(cases)})
        by: tuple[JudgeCases, JudgeCases] = (refused, harmed) if cases[0].truth is None else (_nobody, _nobody)
        for name, hits in score(unit.prompts, cases, texts, truth, *by).items():
            if name == "refuses":  # whatever its words, the configured text is a refusal
                hits = [hit or record["chosen"] == -1 for hit, record in zip(hits, batch.records, strict=True)]
            own.columns.setdefault(name, []).extend(hits)
    return list(found.values())


def harm_judge(recipe: Recipe) -> JudgeSpec | None:
    """Who says whether answers harm where no grammar does: the guards' own judge, made wrong about nothing, unless named."""
    return recipe.harm_judge or (None if recipe.judge is None else replace(recipe.judge, wrong=0.0))


def _nobody(cases: Sequence[Case], texts: Sequence[str]) -> list[bool | None]:
    return []
