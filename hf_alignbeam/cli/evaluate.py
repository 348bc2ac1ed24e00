"""`alignbeam evaluate`: systems held against prompts, by a recipe; on one machine or many."""

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import typer
from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hf_alignbeam.console import check_can_plot, report_user_errors, tell
from hf_alignbeam.evaluation.answer_store import Store
from hf_alignbeam.evaluation.devices import this_process
from hf_alignbeam.evaluation.prompt_sets import load_prompts
from hf_alignbeam.evaluation.recipe import TESTBED, Recipe, as_list, parse_recipe, read_recipe
from hf_alignbeam.evaluation.reports import plots
from hf_alignbeam.evaluation.reports.report import figures, markdown
from hf_alignbeam.evaluation.results import gather
from hf_alignbeam.evaluation.runner import BatchJob, answer_all, plan_jobs
from hf_alignbeam.evaluation.systems import BASE
from hf_alignbeam.judges.failsafe import JudgeError

#: The recipe where neither one nor a model is named, and the one whose systems are taken where a model is.
STANDARD, OWN = "testbed", "systems"
MODELS = ("model", "anchor", "judge")
REPORT, FIGURES = "report.md", "report.json"


@dataclass(frozen=True)
class Request:
    """What was asked for at the terminal.

    Attributes:
        recipe: A file or a name of the package's; None: by what else is given.
        changes: Fields of the recipe that were given besides.
        systems: Names of the recipe's systems, to be the only ones.
        split, limit: Of every prompt set.
        guard: Settings of every guard that is not a preset.
        to: The folder of answers and report; None: nothing is kept.
        plot: Whether to draw.
    """

    recipe: str | None
    changes: Mapping[str, Any]
    systems: list[str]
    split: str | None
    limit: int | None
    guard: Mapping[str, Any]
    to: Path | None
    plot: bool


def run(request: Request) -> None:
    """Answer, score, report."""
    with report_user_errors():
        recipe = _recipe(request)
        if request.plot:
            check_can_plot("--plot")
            if request.to is None:
                raise ValueError("--plot must come with --to, the folder that gets the pictures.")
        state = this_process()
        with contextlib.ExitStack() as stack:
            folder = request.to or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            if request.to is None and state.num_processes > 1:
                raise ValueError("Several processes need --to, a folder that all of them share.")
            _evaluate(recipe, folder, state, request)


def _evaluate(recipe: Recipe, folder: Path, state: PartialState, request: Request) -> None:
    prompt_sets = [each for spec in recipe.prompts for each in load_prompts(spec, recipe.weights)]
    jobs = plan_jobs(recipe, prompt_sets)
    stores = (Store(folder, name, state) for name in ("answers", "verdicts"))
    with contextlib.ExitStack() as stack:
        answers, verdicts = (stack.enter_context(contextlib.closing(store)) for store in stores)
        try:
            with _progress(state, jobs, answers) as after:
                answer_all(jobs, recipe, answers, state, after)
        except JudgeError as error:
            raise ValueError(f"{error}. {_way_on(request)}") from error
        except KeyboardInterrupt:
            typer.echo(f"Stopped. {_way_on(request)}", err=True)
            raise typer.Exit(130) from None
        answers.gather()
        results = gather(recipe, jobs, answers, verdicts, state)
    if not state.is_main_process:
        return
    environment = _environment(recipe)
    lines = markdown(recipe, results, environment)
    tell(Console(width=200), *lines)
    if request.to is not None:
        (folder / REPORT).write_text("\n".join(lines) + "\n")
        (folder / FIGURES).write_text(json.dumps(figures(recipe, results, environment), indent=1, default=str) + "\n")
        written = [folder / REPORT, folder / FIGURES]
        for number, model in enumerate(recipe.models) if request.plot else ():
            own = [each for each in results if each.model == model]
            place = folder if len(recipe.models) == 1 else folder / str(number)
            place.mkdir(exist_ok=True)
            written += plots.draw(own, place)
        Console(stderr=True).print("Written:", ", ".join(map(str, written)), soft_wrap=True)


def _way_on(request: Request) -> str:
    return f"The same command goes on from what lies in {request.to}." if request.to else "With --to FOLDER, it could go on."


def _recipe(request: Request) -> Recipe:
    """The recipe that is meant, with what was given besides."""
    source = request.recipe or (OWN if "name" in request.changes.get("model", {}) else STANDARD)
    given = read_recipe(source)
    given |= {name: value for name, value in request.changes.items() if name not in MODELS}
    given |= {name: _changed_model(given.get(name), request.changes[name]) for name in MODELS if request.changes.get(name)}
    given["prompts"] = [_changed_prompts(each, request) for each in as_list(given.get("prompts"))]
    given["systems"] = [_changed_system(each, request.guard) for each in as_list(given.get("systems"))]
    recipe = parse_recipe(given)
    if request.systems:
        known = {str(_name(each)) for each in given["systems"]}
        for name in request.systems:
            if name not in known:
                raise ValueError(f"--systems must be among {', '.join(sorted(known))}, got {name!r}.")
        kept = [each for each in given["systems"] if _name(each) in request.systems]
        recipe = parse_recipe({**given, "systems": kept})
    return recipe


def _changed_model(given: Any, changes: Mapping[str, Any]) -> Any:
    """A model or judge with what was given besides; another name is another model, of which nothing else is known.

    Where the recipe names one of the testbed's, a bare word is another one of those.
    """
    if "name" in changes:
        here = isinstance(given, str) and given.startswith(TESTBED) and re.fullmatch(r"[\w-]+", changes["name"])
        return {**changes, "name": f"{TESTBED}{changes['name']}"} if here and changes["name"] != BASE else dict(changes)
    if isinstance(given, list):
        return [_changed_model(each, changes) for each in given]
    return {**(given if isinstance(given, Mapping) else {"name": given}), **changes}


def _changed_prompts(given: Any, request: Request) -> dict[str, Any]:
    told: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"source": given}
    changes = {"split": request.split, "limit": request.limit}
    return {**told, **{name: value for name, value in changes.items() if value is not None}}


def _changed_system(given: Any, guard: Mapping[str, Any]) -> Any:
    """A system with the settings that were given for guards, where it is one without settings of its own."""
    told: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"system": given}
    fixed = set(told) - {"name", "system", "limit", "models"} or told.get("system") not in ("anchor-logits", "alignbeam")
    return told if fixed else {**told, **guard}


def _name(given: Mapping[str, Any]) -> Any:
    return given.get("name", given["system"])


@contextlib.contextmanager
def _progress(state: PartialState, jobs: list[BatchJob], answers: Store) -> Iterator[Any]:
    """What is told of each batch that is done, and tells the user."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not state.is_main_process) as progress:
        n_left = sum(job.key not in answers for job in jobs)
        task = progress.add_task("", total=-(-n_left // state.num_processes))
        yield lambda job: progress.update(task, advance=1, description=f"{job.system.name}: {job.prompts.name}")


def _environment(recipe: Recipe) -> str:
    """What was measured with, in a line."""
    how = f"temperature {recipe.temperature:g}" if recipe.temperature else "greedy"
    return (
        f"{', '.join(model.name for model in recipe.models)}; {how}, {recipe.max_new_tokens} new tokens at most, batches of "
        f"{recipe.batch_size}, 95 % intervals; torch {torch.__version__}, transformers {transformers.__version__}."
    )
