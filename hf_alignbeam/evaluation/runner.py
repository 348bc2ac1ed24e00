"""The work of a recipe: every system's answers to every batch of prompts, shared out over processes, none done twice.

Knows batches and what tells them from each other. Knows no score and no table.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from transformers import set_seed

from hf_alignbeam.evaluation.answer_store import Store, commit_of, digest, files_of
from hf_alignbeam.evaluation.generation import Response, forwards_counted
from hf_alignbeam.evaluation.prompt_sets import Case, PromptSet
from hf_alignbeam.evaluation.recipe import REQUIRED_MODELS, TESTBED, JudgeSpec, ModelSpec, Recipe, SystemSpec
from hf_alignbeam.evaluation.systems import Answering, Parts, build
from hf_alignbeam.testbed.model_store import WEIGHTS


@dataclass(frozen=True)
class Unit:
    """One batch of one prompt set for one system and one target."""

    model: ModelSpec
    system: SystemSpec
    prompts: PromptSet
    cases: tuple[Case, ...]
    key: str


def units(recipe: Recipe, prompt_sets: Sequence[PromptSet]) -> list[Unit]:
    """All that is to be done, batch by batch: all systems answer one before the next, so that a slow machine slows them all."""
    found = []
    for model in recipe.models:
        systems = [system for system in recipe.systems if not system.models or model.name in system.models]
        made_of = [_made_of(recipe, model, system) for system in systems]
        for prompts in prompt_sets:
            for start in range(0, len(prompts.cases), recipe.batch_size):
                for system, parts in zip(systems, made_of, strict=True):
                    batch = tuple(prompts.cases[: system.limit][start : start + recipe.batch_size])
                    if batch:
                        key = digest([parts, [case.conversation for case in batch]])
                        found.append(Unit(model, system, prompts, batch, key))
    return found


def answer_all(todo: Sequence[Unit], recipe: Recipe, store: Store, state: PartialState, after: Callable[[Unit], None]) -> None:
    """Do what the store does not hold, and again what a judge gave no verdict on.

    Args:
        todo: All units.
        recipe: What the systems are made of.
        store: What is done, and gets what is done now.
        state: Which of how many processes this one is. Processes that share a model (`tp_plan`) do all units together.
        after: Is told of each unit that this process has done.
    """
    together = any(model.tp_plan for model in recipe.models)
    left = list({unit.key: unit for unit in todo if unit.key not in store or store[unit.key].cost["no_verdict"]}.values())
    mine = left if together else left[state.process_index :: state.num_processes]
    parts: Parts | None = None
    built: dict[str, Answering] = {}
    for unit in mine:
        if parts is None or unit.model is not parts.target:
            parts, built = Parts(recipe, unit.model), {}
        if unit.system.name not in built:
            built[unit.system.name] = build(unit.system, parts)
            built[unit.system.name]([unit.cases[0].conversation])  # what is done once is no cost of this batch
        responses, cost = _answered(unit, built[unit.system.name], parts, recipe, state)
        if not together or state.is_main_process:
            store.add(unit.key, [_record(unit, *pair) for pair in zip(unit.cases, responses, strict=True)], cost)
        after(unit)


def _answered(
    unit: Unit, answering: Answering, parts: Parts, recipe: Recipe, state: PartialState
) -> tuple[list[Response], dict[str, Any]]:
    """The answers to one batch, and what they cost: seconds, forwards, calls, tokens; and on what machine."""
    conversations = [case.conversation for case in unit.cases]
    if recipe.temperature:  # the same stream for every system, so that what passes is what the target alone would have said
        set_seed(int(digest([recipe.seed, conversations]), 16) % 2**32)
    needs = REQUIRED_MODELS[unit.system.system]
    judge = parts.judge if "judge" in needs else None
    before = (judge.n_calls, judge.n_judged, judge.n_missing) if judge is not None else (0, 0, 0)
    with ExitStack() as stack:
        target = stack.enter_context(forwards_counted(parts.responder.model))
        anchor = stack.enter_context(forwards_counted(parts.anchor[0])) if parts.has_anchor else [0]
        _synchronise(parts)
        began = time.perf_counter()
        responses = answering(conversations)
        _synchronise(parts)
        seconds = time.perf_counter() - began
    after = (judge.n_calls, judge.n_judged, judge.n_missing) if judge is not None else (0, 0, 0)
    n_calls, n_judged, n_missing = (now - then for now, then in zip(after, before, strict=True))
    return responses, {
        "seconds": round(seconds, 4),
        "tokens": sum(len(response.ids) for response in responses),
        "target_forwards": target[0],
        "anchor_forwards": anchor[0],
        "judge_calls": n_calls,
        "judged": n_judged,
        "no_verdict": n_missing,
        "machine": _machine(parts, state),
    }


def _machine(parts: Parts, state: PartialState) -> str:
    on_card = parts.responder.model.device.type == "cuda"
    where = torch.cuda.get_device_name() if on_card else f"CPU, {torch.get_num_threads()} threads"
    return where + (f", {state.num_processes} processes" if state.num_processes > 1 else "")


def _synchronise(parts: Parts) -> None:
    if parts.responder.model.device.type == "cuda":
        torch.cuda.synchronize()


def _record(unit: Unit, case: Case, response: Response) -> dict[str, Any]:
    """One answer as it is kept."""
    told = {"model": unit.model.name, "system": unit.system.name, "prompts": unit.prompts.name, "case": case.id}
    return {**told, **asdict(response)}


def _made_of(recipe: Recipe, model: ModelSpec, system: SystemSpec) -> list[Any]:
    """What a system's answers depend on, as JSON can hold it; what only says where things run is left out."""
    versions = [version("hf-alignbeam"), transformers.__version__]
    generation = [*versions, recipe.max_new_tokens, recipe.temperature, recipe.seed]
    anchor = [described(recipe.anchor, recipe)] if REQUIRED_MODELS[system.system] else []
    judge = [described(recipe.judge, recipe), recipe.refusal] if "judge" in REQUIRED_MODELS[system.system] else []
    return [described(model, recipe), system.system, dict(system.settings), *generation, *anchor, *judge]


def described(spec: ModelSpec | JudgeSpec | None, recipe: Recipe) -> Any:
    """A model or a judge by what it says: a folder's also by the sizes and times of its files."""
    if spec is None:
        return None
    told = {name: value for name, value in asdict(spec).items() if name not in ("device", "tp_plan")}
    own = spec.name.startswith(TESTBED)
    folder = str(Path(recipe.weights or WEIGHTS) / spec.name.removeprefix(TESTBED)) if own else spec.name
    return {**told, "files": files_of(folder), "commit": None if own else commit_of(spec.name, spec.revision)}
