"""Runs a recipe: every system answers every batch of prompts, shared out over processes, and no batch is answered twice.

Knows batches and their keys. Knows no score and no table.
"""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from transformers import set_seed

from hf_alignbeam.evaluation.answer_store import Batch, Store, commit_of, digest, files_of
from hf_alignbeam.evaluation.generation import Response, count_forwards
from hf_alignbeam.evaluation.prompt_sets import Example, PromptSet
from hf_alignbeam.evaluation.recipe import REQUIRED_MODELS, TESTBED, JudgeSpec, ModelSpec, Recipe, SystemSpec
from hf_alignbeam.evaluation.systems import AnswerFunction, RecipeModels, all_settings, build
from hf_alignbeam.judges.failsafe import JudgeError
from hf_alignbeam.testbed.model_store import WEIGHTS

#: A prompt: the name of its set, and its id.
Case = tuple[str, str]


@dataclass(frozen=True)
class BatchJob:
    """One batch of one prompt set for one system on one target."""

    model: ModelSpec
    system: SystemSpec
    prompts: PromptSet
    examples: tuple[Example, ...]
    key: str


def plan_jobs(recipe: Recipe, prompt_sets: Sequence[PromptSet], left_out: Collection[Case] = ()) -> list[BatchJob]:
    """List all jobs. All systems answer one batch before the next, so that a slow phase of the machine slows all of them.

    Prompts that are left out change no batch but their own.
    """
    jobs = []
    for model in recipe.models:
        systems = [system for system in recipe.systems if not system.models or model.name in system.models]
        all_inputs = [_answer_inputs(recipe, model, system) for system in systems]
        for prompts in prompt_sets:
            for start in range(0, len(prompts.examples), recipe.batch_size):
                for system, inputs in zip(systems, all_inputs, strict=True):
                    planned = prompts.examples[: system.limit][start : start + recipe.batch_size]
                    batch = tuple(each for each in planned if (prompts.name, each.id) not in left_out)
                    if batch:
                        key = digest([inputs, [example.conversation for example in batch]])
                        jobs.append(BatchJob(model, system, prompts, batch, key))
    return jobs


def answer_all(
    jobs: Sequence[BatchJob], recipe: Recipe, store: Store, state: PartialState, after_job: Callable[[BatchJob], None]
) -> None:
    """Do the jobs that are missing from the store, and repeat those in which a judge gave no verdict or a prompt had no answer.

    A batch with a prompt that a system cannot answer, as it is too long for the anchor, say, gets no answers: `unanswered` says
    why, and a plan without these prompts has jobs for the others.

    Args:
        jobs: All jobs of the recipe.
        recipe: The recipe.
        store: The answers so far; new ones are added.
        state: This process and the number of processes. Processes that share a model (`tp_plan`) do every job together.
        after_job: Called with each job that this process has done.
    """
    together = any(model.tp_plan for model in recipe.models)
    is_done = lambda key: key in store and not store[key].cost["no_verdict"] and not _errors(store[key])  # noqa: E731
    left = list({job.key: job for job in jobs if not is_done(job.key)}.values())
    models: RecipeModels | None = None
    built: dict[str, AnswerFunction] = {}
    for job in left if together else left[state.process_index :: state.num_processes]:
        if models is None or job.model is not models.target:
            models, built = RecipeModels(recipe, job.model), {}
        if job.system.name not in built:
            built[job.system.name] = build(job.system, models)
            _why_unanswered(job.examples[0], built[job.system.name])  # one-time work is no cost of this batch
        try:
            responses, cost = _answer(job, built[job.system.name], models, recipe, state)
            records = [_record(job, *pair) for pair in zip(job.examples, responses, strict=True)]
        except (ValueError, JudgeError):
            reasons = {each.id: _why_unanswered(each, built[job.system.name]) for each in job.examples}
            if not any(reasons.values()):
                raise
            records, cost = [{"case": case, "error": reason} for case, reason in reasons.items() if reason], {"no_verdict": 0}
        if not together or state.is_main_process:
            store.add(job.key, records, cost)
        after_job(job)


def unanswered(jobs: Sequence[BatchJob], store: Store) -> dict[Case, str]:
    """The prompts that a system could not answer, each with the first reason."""
    found: dict[Case, str] = {}
    for job in jobs:
        for case, reason in _errors(store[job.key]).items():
            found.setdefault((job.prompts.name, case), f"{job.system.name}: {reason}")
    return found


def _errors(batch: Batch) -> dict[str, str]:
    return {record["case"]: record["error"] for record in batch.records if "error" in record}


def _why_unanswered(example: Example, answer: AnswerFunction) -> str:
    """Why a system cannot answer a prompt that is too long, say; empty where it can. A judge that fails at all ends the run."""
    try:
        answer([example.conversation])
    except ValueError as error:
        return str(error)
    except JudgeError as error:
        if not error.concerns_one_text:
            raise
        return str(error)
    return ""


def _answer(
    job: BatchJob, answer: AnswerFunction, models: RecipeModels, recipe: Recipe, state: PartialState
) -> tuple[list[Response], dict[str, Any]]:
    """The answers to one batch, and their cost: seconds, forwards, calls, tokens, and the machine."""
    conversations = [example.conversation for example in job.examples]
    if recipe.temperature:  # the same random stream for every system, so that an answer that passes is the target's own
        set_seed(int(digest([recipe.seed, conversations]), 16) % 2**32)
    judge = models.judge if "judge" in REQUIRED_MODELS[job.system.system] else None
    before = (judge.n_calls, judge.n_judged, judge.n_missing) if judge is not None else (0, 0, 0)
    with ExitStack() as stack:
        target = stack.enter_context(count_forwards(models.responder.model))
        anchor = stack.enter_context(count_forwards(models.anchor[0])) if models.has_anchor else [0]
        _synchronize(models)
        start = time.perf_counter()
        responses = answer(conversations)
        _synchronize(models)
        seconds = time.perf_counter() - start
    if judge is not None and judge.endpoint_error is not None:
        raise judge.endpoint_error
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
        "machine": _machine(models, state),
    }


def _machine(models: RecipeModels, state: PartialState) -> str:
    on_gpu = models.responder.model.device.type == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    return name + (f", {state.num_processes} processes" if state.num_processes > 1 else "")


def _synchronize(models: RecipeModels) -> None:
    if models.responder.model.device.type == "cuda":
        torch.cuda.synchronize()


def _record(job: BatchJob, example: Example, response: Response) -> dict[str, Any]:
    """One answer as it is stored."""
    names = {"model": job.model.name, "system": job.system.name, "prompts": job.prompts.name, "case": example.id}
    return {**names, **asdict(response)}


def _answer_inputs(recipe: Recipe, model: ModelSpec, system: SystemSpec) -> list[Any]:
    """Everything that a system's answers depend on, for a key. Where things run makes no difference."""
    versions = [version("hf-alignbeam"), transformers.__version__]
    generation = [*versions, recipe.max_new_tokens, recipe.temperature, recipe.seed]
    required = REQUIRED_MODELS[system.system]
    anchor = [describe_model(recipe.anchor, recipe)] if required else []
    judge = [describe_model(recipe.judge, recipe), recipe.refusal] if "judge" in required else []
    return [
        describe_model(model, recipe),
        system.system,
        all_settings(system.system, system.settings),
        *generation,
        *anchor,
        *judge,
    ]


def describe_model(spec: ModelSpec | JudgeSpec | None, recipe: Recipe) -> Any:
    """A model or a judge as a part of a key: its settings, with the files of a folder or the commit of a Hub repository."""
    if spec is None:
        return None
    settings = {name: value for name, value in asdict(spec).items() if name not in ("device", "tp_plan")}
    on_testbed = spec.name.startswith(TESTBED)
    folder = str(Path(recipe.weights or WEIGHTS) / spec.name.removeprefix(TESTBED)) if on_testbed else spec.source
    return {**settings, "files": files_of(folder), "commit": None if on_testbed else commit_of(spec.source, spec.revision)}
