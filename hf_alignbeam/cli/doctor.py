"""`alignbeam doctor`: what is wrong with a set-up, before it matters."""

import json
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from hf_alignbeam.cli.doctor_checks import PAIRS, Finding, Side, Status, examine
from hf_alignbeam.console import report_user_errors
from hf_alignbeam.evaluation.devices import load_causal, named_device
from hf_alignbeam.evaluation.prompt_files import read_labeled_responses
from hf_alignbeam.hub.judge_loading import load_judge

#: What the command exits with, by the worst finding.
EXITS: dict[Status, int] = {"green": 0, "yellow": 1, "red": 2}


def run(model: str, anchor: str, judge: str | None, pairs: Path | None, device: str, as_json: bool) -> None:
    """Load, examine, print; exit with the worst status."""
    errors = Console(stderr=True)
    found: list[Finding] = []
    with report_user_errors():
        known = (
            PAIRS
            if pairs is None
            else tuple((each.conversation, each.response, each.harmful) for each in read_labeled_responses(pairs))
        )
        with errors.status("loading"):
            place = named_device(device)
            target, safe = Side("target", *load_causal(model, place)), Side("anchor", *load_causal(anchor, place))
            judging = None if judge is None else load_judge(judge, device=place)
        console = Console(width=200)
        for finding in examine(target, safe, judging, known):
            found.append(finding)
            if not as_json:
                console.print(
                    f"[{finding.status}]{finding.status:<6}[/] {escape(finding.check)}: {escape(finding.text)}", soft_wrap=True
                )
    worst = max((finding.status for finding in found), key=lambda status: EXITS[status])
    if as_json:
        typer.echo(json.dumps({"status": worst, "findings": [asdict(finding) for finding in found]}, indent=1))
    raise typer.Exit(EXITS[worst])
