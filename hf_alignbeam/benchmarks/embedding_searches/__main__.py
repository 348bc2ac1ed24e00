"""`python -m hf_alignbeam.benchmarks.embedding_searches`: searches on the harmful prompts of a recipe, on real models.

What a search finds is also judged by a judge that no search has seen, and by its words. All searches get the same budget.
"""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hf_alignbeam.benchmarks.embedding_searches.recipe_searches import SYSTEMS, THRESHOLD, cells, harmful_conversations
from hf_alignbeam.console import command, report_user_errors, table_head, table_row, tell
from hf_alignbeam.embedding_search.steerer import EmbeddingSteerer
from hf_alignbeam.evaluation.recipe import ModelSpec, Recipe, parse_recipe, read_recipe
from hf_alignbeam.evaluation.systems import RecipeModels
from hf_alignbeam.hub.judge_loading import load_judge

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@command(app)
def recipe_searches(
    recipe: Annotated[str, typer.Option(help="The recipe with the target, the judge and the prompts.")] = "small",
    model: Annotated[str | None, typer.Option(help="Another target: a folder or a Hub id.")] = None,
    judge: Annotated[str | None, typer.Option(help="Another judge of the searches.")] = None,
    other_judge: Annotated[str, typer.Option(help="The judge that no search sees.")] = "HuggingFaceTB/SmolLM2-135M-Instruct",
    prompts: Annotated[list[str] | None, typer.Option(help="Other prompts: a file or hub:ID; may be repeated.")] = None,
    systems: Annotated[list[str] | None, typer.Option(help="Only the search of this name; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(help="The most prompts of each set.")] = 40,
    max_calls: Annotated[int, typer.Option(help="The most oracle calls for a prompt.")] = 24,
    max_generations: Annotated[int, typer.Option(help="The most answers generated for a prompt.")] = 65,
    to: Annotated[Path | None, typer.Option(help="A folder for the journals; a stopped run resumes from it.")] = None,
) -> None:
    """Search embeddings for the harmful prompts of a recipe, and judge what is found by another judge and by its words."""
    console = Console(width=200)
    with report_user_errors():
        changes = {"model": model, "judge": judge, "prompts": prompts}
        named = parse_recipe(read_recipe(recipe))
        read = parse_recipe({**read_recipe(recipe), **{name: value for name, value in changes.items() if value}})
        for name in systems or ():
            if name not in SYSTEMS:
                raise ValueError(f"--systems must be one of {', '.join(SYSTEMS)}, got {name!r}.")
        models = RecipeModels(read, read.models[0])
        if read.judge is None:
            raise ValueError("`judge` of the recipe must be named, got none. Use --judge.")
        unseen_source = ModelSpec(other_judge, folder=_folder_of(named, other_judge)).source
        judges = load_judge(read.judge.source, read.judge.settings), load_judge(unseen_source)
        asked = harmful_conversations(read, limit)
        budget = {"max_calls": max_calls, "max_generations": max_generations, "threshold": THRESHOLD}
        columns = ["flagged", "pass the search's judge", "pass the other judge", "refuse, by their words", "both of the last"]
        tell(console, *table_head(["search", *columns, "oracle calls", "generations", "seconds a prompt"]))
        for name, settings in SYSTEMS.items():
            if name not in (systems or SYSTEMS):
                continue
            target = models.responder
            steerer = EmbeddingSteerer(target.model, target.tokenizer, judges[0], seed=read.seed, **{**settings, **budget})
            folder = None if to is None else to / name.replace("`", "").replace(" ", "-")
            started = time.perf_counter()
            found = steerer.precompute(asked, folder, max_new_tokens=read.max_new_tokens)
            seconds = (time.perf_counter() - started) / len(asked)
            tell(console, table_row([name, *cells(list(found), judges[1]), f"{seconds:.1f}"]))


def _folder_of(recipe: Recipe, name: str) -> str | None:
    """The local folder that a recipe knows for a model of this name."""
    return next((model.folder for model in recipe.models if model.name == name), None)


if __name__ == "__main__":
    app()
