"""`alignbeam publish` and `alignbeam protect`: write Hub folders on the disk, or push them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import typer

from hf_alignbeam.cli.judges.options import JudgeOptions
from hf_alignbeam.cli.judges.settings import judge_settings, judge_values
from hf_alignbeam.cli.strategy_settings import check_settings
from hf_alignbeam.console import check_encodable, report_interrupts, report_user_errors
from hf_alignbeam.decoding.strategy import AlignBeam
from hf_alignbeam.hub.publish import Strategy, push, write_protected, write_strategy


def publish(strategy: str, to: str, pushed: bool, private: bool) -> None:
    """Write or push a strategy's folder."""
    _write(lambda folder: write_strategy(cast(Strategy, strategy), folder, to if pushed else "OWNER/NAME"), to, pushed, private)


def protect(
    model: str,
    revision: str | None,
    to: str,
    guards: dict[str, Any],
    settings: dict[str, Any],
    judge_options: JudgeOptions,
    pushed: bool,
    private: bool,
) -> None:
    """Write or push a protected model's folder."""
    with report_user_errors():
        check_encodable("--refusal", settings.get("refusal"))
        check_settings(settings, AlignBeam)
        for kind in ("anchor", "judge"):
            if pushed and os.path.isdir(guards[kind]):
                raise ValueError(
                    f"--{kind} must be a Hub id with --push, got the folder {guards[kind]}, which is on this machine only."
                )
        if options := [name for name in judge_options.given if name in ("--judge-api", "--judge-model")]:
            raise ValueError(f"{', '.join(options)} must be left out: a protected model loads its judge, and asks no endpoint.")
        judge_settings(judge_options)
        protection = {**guards, **settings} | {f"judge_{name}": value for name, value in judge_values(judge_options).items()}
    _write(lambda folder: write_protected(model, folder, protection, revision, to, linked=pushed), to, pushed, private)


def _write(write: Callable[[Path], None], to: str, pushed: bool, private: bool) -> None:
    if private and not pushed:
        raise typer.BadParameter("--private must come with --push: it says how a repository on the Hub is made")
    remains = f"A push is one commit: {to} has all of it or nothing." if pushed else f"{to} may be incomplete: delete it."
    with report_interrupts(remains), report_user_errors():
        if pushed:
            address = push(write, to, private)
            typer.echo(f"Pushed: {address}\nPin it: revision={address.rsplit('/', 1)[-1]!r}")
        else:
            write(Path(to))
            typer.echo(f"Written: {to}")
