"""`python -m hf_alignbeam.benchmarks.gpu`: the laws and the costs on one card, as tables with the card's name.

Takes less than seven minutes and downloads nothing. It ends with status 1 where a law does not hold.
"""

import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from rich.console import Console

from hf_alignbeam.benchmarks.gpu.costs import AnswerCost, answer_costs, build_models, choose_shapes, step_costs
from hf_alignbeam.benchmarks.gpu.laws import LawResult, check_laws
from hf_alignbeam.benchmarks.realistic_models import as_dtype, device_name
from hf_alignbeam.console import command, report_user_errors, table_head, table_row, tell

BATCH_SIZES = (1, 8, 32)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@command(app)
def gpu(
    tokenizer: Annotated[str | None, typer.Option(help="The target's, a folder or a Hub id; left out: no costs.")] = None,
    anchor_tokenizer: Annotated[str | None, typer.Option(help="The anchor's and the judge's tokenizer.")] = None,
    device: Annotated[str, typer.Option(help="As torch names it.")] = "cuda",
    dtype: Annotated[str, typer.Option(help="Of all weights, as torch names it.")] = "bfloat16",
    to: Annotated[Path | None, typer.Option(help="Also write the tables into this file.")] = None,
) -> None:
    """Check the laws and measure the costs on one device."""
    with report_user_errors():
        if (tokenizer is None) != (anchor_tokenizer is None):
            raise ValueError("--tokenizer and --anchor-tokenizer must come together, got one of them.")
        place, weights_dtype = torch.device(device), as_dtype(dtype)
        if place.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"--device {device} needs CUDA, which this torch does not have. Use --device cpu.")
        began = time.perf_counter()
        console, lines = Console(width=200), [f"{device_name(place)}, {dtype}; {_versions()}"]
        tell(console, lines[0])
        results = []
        for result in check_laws(place, weights_dtype):
            results.append(result)
            if not result.holds:
                tell(console, f"does not hold in all cases: {_law_row(result)}")
        report = chain(["", *_laws_table(results)], _costs(tokenizer, anchor_tokenizer, place, dtype))
        for line in chain(report, _time_in_all(began)):
            lines.append(line)
            tell(console, line)
            if to is not None:
                to.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not all(result.holds for result in results):
        raise typer.Exit(1)


def _versions() -> str:
    return f"torch {torch.__version__}, transformers {transformers.__version__}"


def _laws_table(results: Sequence[LawResult]) -> list[str]:
    return [*table_head(["law", "mode", "held in", "total variation"]), *map(_law_row, results)]


def _law_row(result: LawResult) -> str:
    distance = "-" if result.distance is None else f"{result.distance:.1e}"
    return table_row([result.law, result.mode, f"{result.n_held} of {result.n_cases}", distance])


def _costs(tokenizer: str | None, anchor_tokenizer: str | None, device: torch.device, dtype: str) -> Iterator[str]:
    """The lines of both tables, each as soon as it is measured, so that a run cut short leaves what it has."""
    if tokenizer is None or anchor_tokenizer is None:
        return
    shapes = choose_shapes(device)
    pair, judge = build_models(tokenizer, anchor_tokenizer, shapes, str(device), dtype)
    yield from ["", f"Target, anchor and judge of {shapes.name} random weights; every step of the first table is steered.", ""]
    yield from table_head(
        ["batch", "target, ms", "anchor, ms", "own, ms", "times target + anchor", "anchor forwards a step", "tokens fed a step"]
    )
    for step in step_costs(pair, BATCH_SIZES):
        times = [f"{step.target_ms:.1f}", f"{step.anchor_ms:.1f}", f"{step.own_ms:.1f}", f"{step.times_models:.2f}"]
        yield table_row([str(step.n_rows), *times, f"{step.n_anchor_forwards:.1f}", f"{step.n_anchor_tokens:.1f}"])
    yield ""
    yield from table_head(["batch", "answers", "system", "seconds", "times plain", "tokens a second", "peak memory, GiB"])
    plain: AnswerCost | None = None
    for cost in answer_costs(pair, judge, BATCH_SIZES):
        plain = cost if cost.prompts == "-" else plain
        ratio = "-" if plain is None else f"{cost.seconds / plain.seconds:.2f}"
        figures = [f"{cost.seconds:.2f}", ratio, f"{cost.n_tokens / cost.seconds:.0f}", f"{cost.peak_gib:.1f}"]
        yield table_row([str(cost.n_rows), cost.prompts, cost.system, *figures])


def _time_in_all(began: float) -> Iterator[str]:
    yield from ["", f"{time.perf_counter() - began:.0f} seconds in all."]


if __name__ == "__main__":
    app()
