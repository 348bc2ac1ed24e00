"""`alignbeam doctor`: finds what is wrong with a set-up before it is used."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.markup import escape

from hf_alignbeam.cli.diagnosis.examination import Finding, examine
from hf_alignbeam.cli.diagnosis.examined import ExaminedModel, Status
from hf_alignbeam.cli.diagnosis.judge_checks import KNOWN_PAIRS
from hf_alignbeam.cli.judges.options import JudgeOptions
from hf_alignbeam.cli.judges.settings import judge_settings
from hf_alignbeam.console import printable, report_user_errors
from hf_alignbeam.evaluation.devices import load_causal, load_named_judge, named_device
from hf_alignbeam.evaluation.prompt_files import read_labeled_responses
from hf_alignbeam.hub.judge_loading import JudgeSettings
from hf_alignbeam.judges.base import Judge

#: The exit status by the worst finding.
EXIT_STATUS: dict[Status, int] = {"green": 0, "yellow": 1, "red": 2}


def run(
    model: str, anchor: str, judge: str | None, options: JudgeOptions, pairs: Path | None, device_name: str, as_json: bool
) -> None:
    """Load the models, run the checks, print the findings, and exit with the worst status."""
    errors = Console(stderr=True)
    findings: list[Finding] = []
    with report_user_errors():
        labeled = [] if pairs is None else read_labeled_responses(pairs)
        known = KNOWN_PAIRS if pairs is None else tuple((each.conversation, each.response, each.harmful) for each in labeled)
        settings = judge_settings(options)
        with errors.status("loading"):
            device = named_device(device_name)
            target = ExaminedModel("target", *load_causal(model, device))
            safe = ExaminedModel("anchor", *load_causal(anchor, device))
            load = None if judge is None else _loader(judge, options, settings, device)
        console = Console(width=200)
        for finding in examine(target, safe, load, known):
            findings.append(finding)
            if not as_json:
                line = f"[{finding.status}]{finding.status:<6}[/] {escape(finding.check)}: {escape(printable(finding.text))}"
                console.print(line, soft_wrap=True, emoji=False)
        worst = max((finding.status for finding in findings), key=lambda status: EXIT_STATUS[status])
        if as_json:
            typer.echo(json.dumps({"status": worst, "findings": [asdict(finding) for finding in findings]}, indent=1))
    raise typer.Exit(EXIT_STATUS[worst])


def _loader(judge: str, options: JudgeOptions, settings: JudgeSettings, device: torch.device) -> Callable[[], Judge]:
    """Hands out the judge, or raises what is wrong with it as a judge, which is a finding.

    Raises:
        OSError: The judge cannot be loaded.
    """
    try:
        loaded = load_named_judge(judge, settings, device, options.api, options.model)
    except ValueError as error:
        failure = error

        def fail() -> Judge:
            raise failure

        return fail
    return lambda: loaded
