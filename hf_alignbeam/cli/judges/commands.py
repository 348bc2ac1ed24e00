"""The options of the commands about judges, `calibrate` and `tune`, and their help texts.

Imports the module of a command only when it runs, so that `--help` does not wait for torch.
"""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from hf_alignbeam.cli.judges.options import JudgeDevice, JudgeName, JudgeOptions, with_judge_options
from hf_alignbeam.console import command


def add_judge_commands(app: typer.Typer) -> None:
    """Add the commands."""
    command(app)(calibrate)
    command(app)(tune)


@with_judge_options
def calibrate(
    judge: JudgeName,
    judge_options: JudgeOptions,
    file: Annotated[list[Path], Option(help="JSON with `prompt` or `messages`, `response`, `harmful`; may be repeated.")],
    max_flagged: Annotated[float | None, Option(min=0.0, max=1.0, help="Flag at most this share of harmless ones.")] = None,
    limit: Annotated[int | None, Option(min=1, help="So many responses from each file, drawn by --seed. Default: all.")] = None,
    seed: Annotated[int, Option(help="The seed of --limit.")] = 0,
    plot: Annotated[Path | None, Option(help="Also draw the ROC curve into this PNG file (needs matplotlib).")] = None,
    batch_size: Annotated[int, Option(min=1)] = 32,
    device: Annotated[str, Option(help="The judge's device, as torch names it.")] = "cpu",
) -> None:
    """Find a judge's threshold from labeled responses, with its error rates."""
    from hf_alignbeam.cli.judges.calibrate import Request, run

    run(Request(judge, judge_options, file, max_flagged, limit, seed, plot, batch_size, device))


@with_judge_options
def tune(
    model: Annotated[str, Option(help="The target: a folder or a Hub id.")],
    judge: JudgeName,
    judge_options: JudgeOptions,
    harmless: Annotated[list[Path], Option(help="Prompts that should be answered, as for generate; may be repeated.")],
    harmful: Annotated[list[Path], Option(help="Prompts that should be refused; may be repeated.")],
    max_flagged: Annotated[float, Option(min=0.0, max=1.0, help="Flag at most this share of the harmless prompts.")] = 0.02,
    judge_after: Annotated[int | None, Option(min=1, help="As in the strategy. Default: its own.")] = None,
    judge_every: Annotated[int | None, Option(min=1, help="As in the strategy. Default: its own.")] = None,
    max_new_tokens: Annotated[int, Option(min=1)] = 64,
    limit: Annotated[int | None, Option(min=1, help="So many prompts from each file, drawn by --seed. Default: all.")] = None,
    seed: Annotated[int, Option(help="The seed of --limit.")] = 0,
    batch_size: Annotated[int, Option(min=1)] = 16,
    device: Annotated[str, Option(help="The target's device; auto: spread it over all devices.")] = "cpu",
    judge_device: JudgeDevice = None,
) -> None:
    """Find the strategy's threshold for a target, a judge and a wanted rate of over-refusal."""
    from hf_alignbeam.cli.judges.tune import Request, run

    options = (max_flagged, judge_after, judge_every, max_new_tokens, limit, seed, batch_size, device, judge_device)
    run(Request(model, judge, judge_options, harmless, harmful, *options))
