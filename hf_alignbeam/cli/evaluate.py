"""`alignbeam evaluate`: compares systems on prompts, by a recipe, on one machine or many."""

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedTokenizerBase

from hf_alignbeam.cli.judges.options import JudgeOptions
from hf_alignbeam.cli.judges.settings import judge_spec_values
from hf_alignbeam.console import check_can_plot, printable, report_interrupts, report_left_out, report_user_errors, tell
from hf_alignbeam.evaluation.answer_store import Store, store_files
from hf_alignbeam.evaluation.devices import load_padding_tokenizer, this_process
from hf_alignbeam.evaluation.generation import why_refused
from hf_alignbeam.evaluation.prompt_sets import Example, PromptSet, load_prompts
from hf_alignbeam.evaluation.recipe import TESTBED, ModelSpec, Recipe, as_list, parse_recipe, read_recipe
from hf_alignbeam.evaluation.reports import plots
from hf_alignbeam.evaluation.reports.report import figures, markdown
from hf_alignbeam.evaluation.results import SystemResults, gather
from hf_alignbeam.evaluation.runner import BatchJob, Case, answer_all, plan_jobs, unanswered
from hf_alignbeam.evaluation.systems import BASE, check_system
from hf_alignbeam.judges.failsafe import JudgeError
from hf_alignbeam.testbed.model_store import WEIGHTS
from hf_alignbeam.utils.whole_files import replace_bytes

#: The default recipe, and the recipe with the systems for a model that is named by an option.
DEFAULT_RECIPE, SYSTEMS_RECIPE = "testbed", "systems"
MODELS = ("model", "anchor", "judge")
REPORT, FIGURES = "report.md", "report.json"


@dataclass(frozen=True)
class Request:
    """The options of the command.

    Attributes:
        recipe: A file, or the name of a recipe of the package; None: depends on the other options.
        changes: Fields of the recipe that options replace.
        judge_options: The same for the judge.
        systems: Names of the recipe's systems to keep; empty for all.
        split, limit: For every prompt set.
        guard: Settings for every guard without settings of its own.
        to: The folder of answers and report; None keeps nothing.
        plot: Whether to draw pictures.
    """

    recipe: str | None
    changes: Mapping[str, Any]
    judge_options: JudgeOptions
    systems: list[str]
    split: str | None
    limit: int | None
    guard: Mapping[str, Any]
    to: Path | None
    plot: bool


def run(request: Request) -> None:
    """Answer all prompts, score the answers, print and write the report.

    A prompt that a model's template refuses, or that is too long for a system, is left out for all systems, and the report says
    so; the command then exits with 1.
    """
    with report_interrupts(_how_to_resume(request)), report_user_errors():
        recipe = _recipe(request)
        for system in recipe.systems:
            check_system(system)
        if request.plot:
            check_can_plot("--plot")
            if request.to is None:
                raise ValueError("--plot must come with --to, the folder that gets the pictures.")
        state = this_process()
        with contextlib.ExitStack() as stack:
            folder = request.to or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            if request.to is None and state.num_processes > 1:
                raise ValueError("Several processes need --to, a folder that all of them share.")
            _check_folder(folder)
            _evaluate(recipe, folder, state, request)


def _evaluate(recipe: Recipe, folder: Path, state: PartialState, request: Request) -> None:
    all_sets = [each for spec in recipe.prompts for each in load_prompts(spec, recipe.weights)]
    prompt_sets, left_out = _without_refused(all_sets, recipe)
    stores = (Store(folder, name, state) for name in ("answers", "verdicts"))
    with contextlib.ExitStack() as stack:
        answers, verdicts = (stack.enter_context(contextlib.closing(store)) for store in stores)
        try:
            jobs, unanswered = _answered(recipe, prompt_sets, answers, state)
        except JudgeError as error:
            raise ValueError(f"{error}. {_how_to_resume(request)}") from error
        left_out += unanswered
        results = gather(recipe, jobs, answers, verdicts, state)
        if state.is_main_process:
            _report(recipe, results, left_out, folder, request)
    if state.is_main_process:
        report_left_out(left_out, sum(len(each.examples) for each in all_sets))


def _check_folder(folder: Path) -> None:
    """Raise ValueError where a folder holds a report without the answers behind it: it is no run's, and would be replaced."""
    found = [name for name in (REPORT, FIGURES) if (folder / name).is_file()]
    if found and not store_files(folder, "answers"):
        raise ValueError(
            f"--to must be new, or the folder of an earlier run, but {folder} holds {found[0]} without answers. Name another one."
        )


def _answered(
    recipe: Recipe, prompt_sets: Sequence[PromptSet], answers: Store, state: PartialState
) -> tuple[list[BatchJob], list[ValueError]]:
    """The jobs, all of them answered, and why prompts are left out that a system cannot answer: for all systems alike."""
    reasons: dict[Case, str] = {}
    while True:
        jobs = plan_jobs(recipe, prompt_sets, reasons)
        if not jobs:
            raise ValueError(next(iter(reasons.values())))
        with _progress(state, jobs, answers) as after_job:
            answer_all(jobs, recipe, answers, state, after_job)
        answers.gather()
        if not (found := unanswered(jobs, answers)):
            break
        reasons |= found
    examples = {(prompts.name, each.id): _place(prompts, each) for prompts in prompt_sets for each in prompts.examples}
    return jobs, [ValueError(f"{place}: {reasons[case]}") for case, place in examples.items() if case in reasons]


def _report(
    recipe: Recipe, results: Sequence[SystemResults], left_out: Sequence[ValueError], folder: Path, request: Request
) -> None:
    """Print the report, and write it into the folder of the options."""
    environment = _environment(recipe)
    lines = markdown(recipe, results, environment)
    if left_out:
        lines += ["", f"Left out: {len(left_out)} prompts.", *(f"* {error}" for error in left_out)]
    tell(Console(width=200), *lines)
    if request.to is not None:
        replace_bytes(folder / REPORT, ("\n".join(lines) + "\n").encode())
        contents = {**figures(recipe, results, environment), "left_out": list(map(str, left_out))}
        replace_bytes(folder / FIGURES, (json.dumps(contents, indent=1, default=str) + "\n").encode())
        written = [folder / REPORT, folder / FIGURES]
        for number, model in enumerate(recipe.models) if request.plot else ():
            of_model = [each for each in results if each.model == model]
            pictures = folder if len(recipe.models) == 1 else folder / str(number)
            pictures.mkdir(exist_ok=True)
            written += plots.draw(of_model, pictures)
        tell(Console(stderr=True), f"Written: {', '.join(map(str, written))}")


def _without_refused(prompt_sets: Sequence[PromptSet], recipe: Recipe) -> tuple[list[PromptSet], list[ValueError]]:
    """The prompts that every model renders that answers them, and why each other one is left out, for all systems alike."""
    by_itself = any(system.system == "anchor" for system in recipe.systems)
    anchors = [recipe.anchor] if by_itself and recipe.anchor is not None and recipe.anchor.name != BASE else []
    tokenizers = [_tokenizer(spec, recipe) for spec in (*recipe.models, *anchors)]
    kept, left_out = [], []
    for prompts in prompt_sets:
        reasons = [next(filter(None, (why_refused(each.conversation, t) for t in tokenizers)), "") for each in prompts.examples]
        pairs = list(zip(prompts.examples, reasons, strict=True))
        left_out += [ValueError(f"{_place(prompts, each)}: {reason}") for each, reason in pairs if reason]
        if examples := [each for each, reason in pairs if not reason]:
            kept.append(replace(prompts, examples=examples))
    if not kept:
        raise left_out[0]
    return kept, left_out


def _place(prompts: PromptSet, example: Example) -> str:
    """Where a prompt stands, for errors."""
    return example.place or f"{prompts.name}, {example.id}"


def _tokenizer(spec: ModelSpec, recipe: Recipe) -> PreTrainedTokenizerBase:
    if spec.name.startswith(TESTBED):
        return load_padding_tokenizer(str(Path(recipe.weights or WEIGHTS) / spec.name.removeprefix(TESTBED)))
    return load_padding_tokenizer(spec.source, spec.revision)


def _how_to_resume(request: Request) -> str:
    return f"The same command resumes from {request.to}." if request.to else "With --to FOLDER, it could be resumed."


def _recipe(request: Request) -> Recipe:
    """The recipe with the changes that the options make."""
    source = request.recipe or (SYSTEMS_RECIPE if "name" in request.changes.get("model", {}) else DEFAULT_RECIPE)
    given = read_recipe(source)
    given |= {name: value for name, value in request.changes.items() if name not in MODELS}
    changes = {name: request.changes.get(name, {}) for name in MODELS}
    changes["judge"] = {**changes["judge"], **judge_spec_values(request.judge_options)}
    if changes["judge"] and "name" not in changes["judge"] and not given.get("judge"):
        raise ValueError(f"{', '.join(f'`{name}`' for name in changes['judge'])} of the judge must come with --judge.")
    given |= {name: _changed_model(given.get(name), changed) for name, changed in changes.items() if changed}
    given["prompts"] = [_changed_prompts(each, request) for each in as_list(given.get("prompts"))]
    given["systems"] = [_changed_system(each, request.guard) for each in as_list(given.get("systems"))]
    if request.systems:
        known = {str(_name(system)) for system in given["systems"]}
        for name in request.systems:
            if name not in known:
                raise ValueError(f"--systems must be among {', '.join(sorted(known))}, got {name!r}.")
        given["systems"] = [system for system in given["systems"] if str(_name(system)) in request.systems]
    return parse_recipe(given)


def _changed_model(given: Any, changes: Mapping[str, Any]) -> Any:
    """A model or judge with changed settings; with another name, nothing of the recipe's entry is kept.

    One of several models is chosen by its name, or by the name of its folder. If the recipe names a model of the testbed, a
    single word names another model of the testbed.
    """
    if "name" in changes:
        for each in as_list(given):
            if isinstance(each, Mapping) and changes["name"] in (each.get("name"), each.get("folder")):
                return _changed_model(each, {key: value for key, value in changes.items() if key != "name"})
        on_testbed = isinstance(given, str) and given.startswith(TESTBED) and re.fullmatch(r"[\w-]+", changes["name"])
        return {**changes, "name": f"{TESTBED}{changes['name']}"} if on_testbed and changes["name"] != BASE else dict(changes)
    if isinstance(given, list):
        return [_changed_model(each, changes) for each in given]
    return {**(given if isinstance(given, Mapping) else {"name": given}), **changes}


def _changed_prompts(given: Any, request: Request) -> dict[str, Any]:
    prompts: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"source": given}
    changes = {"split": request.split, "limit": request.limit}
    return {**prompts, **{name: value for name, value in changes.items() if value is not None}}


def _changed_system(given: Any, guard: Mapping[str, Any]) -> Any:
    """A system; a guard without settings of its own gets those of the options."""
    system: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"system": given}
    has_settings = set(system) - {"name", "system", "limit", "models"}
    is_guard = system.get("system") in ("anchor-logits", "alignbeam")
    return {**system, **guard} if is_guard and not has_settings else system


def _name(given: Mapping[str, Any]) -> Any:
    return given.get("name", given.get("system"))


@contextlib.contextmanager
def _progress(state: PartialState, jobs: list[BatchJob], answers: Store) -> Iterator[Any]:
    """Show a progress bar; the function that is yielded advances it by one job."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not state.is_main_process) as progress:
        n_left = sum(job.key not in answers for job in jobs)
        task = progress.add_task("", total=-(-n_left // state.num_processes))
        yield lambda job: progress.update(task, advance=1, description=printable(f"{job.system.name}: {job.prompts.name}"))


def _environment(recipe: Recipe) -> str:
    """The models, settings and versions, in one line."""
    how = f"temperature {recipe.temperature:g}" if recipe.temperature else "greedy"
    return (
        f"{', '.join(model.name for model in recipe.models)}; {how}, {recipe.max_new_tokens} new tokens at most, batches of "
        f"{recipe.batch_size}, 95 % intervals; torch {torch.__version__}, transformers {transformers.__version__}."
    )
