"""`alignbeam calibrate`: finds a judge's threshold from labeled responses.

Knows the terminal, and which threshold a judge has without this command. `roc` counts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import track

from hf_alignbeam.cli.judges.options import JudgeOptions
from hf_alignbeam.cli.judges.roc import check_picture, draw, drawn, rates_at, roc, why_not, written
from hf_alignbeam.cli.judges.settings import judge_settings
from hf_alignbeam.console import check_can_plot, report_user_errors, table_head, table_row, tell
from hf_alignbeam.evaluation.devices import load_named_judge, named_device
from hf_alignbeam.evaluation.prompt_files import LabeledResponse, read_labeled_responses
from hf_alignbeam.evaluation.statistics import auc_interval
from hf_alignbeam.hub.judge_loading import JudgeSettings
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.calibration import KnownVerdict, best_threshold, known_verdicts, own_threshold, separation
from hf_alignbeam.judges.known_exchanges import EXCHANGES


@dataclass(frozen=True)
class Request:
    """The options of the command."""

    judge: str
    judge_options: JudgeOptions
    files: list[Path]
    max_flagged: float | None
    limit: int | None
    seed: int
    plot: Path | None
    batch_size: int
    device: str


def run(request: Request) -> None:
    """Judge the labeled responses; print the ROC curve, the best threshold and the judge's own; optionally draw them."""
    console = Console(width=200)
    with report_user_errors():
        if request.plot is not None:
            check_can_plot("--plot")
            check_picture(request.plot)
        labeled = [each for file in request.files for each in drawn(read_labeled_responses(file), request.limit, request.seed)]
        _check_both_kinds(labeled)
        settings = judge_settings(request.judge_options)
        raw = replace(settings, threshold=0.5)  # harm as the model gives it
        options = request.judge_options
        judge = load_named_judge(request.judge, raw, named_device(request.device), options.api, options.model)
        try:
            harm = _all_harm(judge, labeled, request.batch_size)
        except RuntimeError as error:  # an endpoint refuses every request
            raise ValueError(str(error)) from error
        known = [KnownVerdict(h, each.harmful) for h, each in zip(harm, labeled, strict=True)]
        judged = [each for each in known if not math.isnan(each.harm)]
        missing = _why_missing(judge, len(known) - len(judged))
        if {each.harmful for each in judged} != {False, True}:
            raise ValueError(missing)
        verdicts = [each._replace(harm=1.0) if math.isnan(each.harm) else each for each in known]  # flagged in use
        chosen = best_threshold(verdicts, request.max_flagged)
        now, origin = _threshold_now(judge, settings)
        thresholds = [("chosen", chosen), *([] if now is None else [(f"now ({origin})", now)])]
        if now != 0.5:
            thresholds.append(("uncalibrated", 0.5))
        tell(console, *_summary(known, judged), "", *_roc_table(verdicts), "")
        tell(console, *table_head(["threshold", "value", "false alarms", "recall"]))
        for name, value in thresholds:
            false_alarms, recall = rates_at(verdicts, value)
            tell(console, table_row([name, written(verdicts, value), str(false_alarms), str(recall)]))
        tell(console, "", *_advice(verdicts, separation(judged), chosen, now, origin))
        if missing:
            tell(console, "", missing)
        if request.plot is not None:  # last: what is found is out even if drawing fails
            draw(verdicts, thresholds, f"{request.judge.partition('?')[0]}, {len(verdicts)} responses", request.plot)
            tell(console, "", f"Written: {request.plot}")


def _check_both_kinds(labeled: Sequence[LabeledResponse]) -> None:
    """Raise ValueError, before a model is loaded, where all responses are harmful or all are harmless."""
    n_harmful = sum(each.harmful for each in labeled)
    if n_harmful in (0, len(labeled)):
        kind = "harmful" if n_harmful else "harmless"
        raise ValueError(
            f"--file must hold harmful and harmless responses, got {len(labeled)} {kind} ones only. "
            "Add others, or draw more with --limit or others with --seed."
        )


def _all_harm(judge: Judge, labeled: Sequence[LabeledResponse], batch_size: int) -> list[float]:
    """The harm of labeled responses; NaN where there is no verdict."""
    errors = Console(stderr=True)
    harm: list[float] = []
    for start in track(range(0, len(labeled), batch_size), "judging", console=errors, transient=True):
        harm += _harm(judge, labeled[start : start + batch_size], errors)
    return harm


def _harm(judge: Judge, batch: Sequence[LabeledResponse], errors: Console) -> list[float]:
    """The harm of each response; NaN for one that the judge cannot read, which costs no other its verdict."""
    try:
        return list(judge([each.conversation for each in batch], [each.response for each in batch]).tolist())
    except ValueError as error:
        if len(batch) == 1:
            tell(errors, f"{batch[0].place}: {error}")
            return [math.nan]
    return [h for each in batch for h in _harm(judge, [each], errors)]


def _why_missing(judge: Judge, n_missing: int) -> str:
    """Why so many responses have no verdict, as far as the judge can say; empty for none."""
    describe: Callable[[], str] | None = getattr(judge, "describe_missing", None)
    known = "" if describe is None else f" {describe()}"
    return f"{n_missing} responses got no verdict, and count as flagged in use.{known}" if n_missing else ""


def _threshold_now(judge: Judge, settings: JudgeSettings) -> tuple[float | None, str]:
    """The threshold of this judge where none is found here, and where it comes from; None where it has none."""
    if settings.threshold is not None:
        return settings.threshold, "--judge-threshold"
    profile = getattr(judge, "profile", None) or replace(settings, template=None).resolved()  # a classifier keeps none
    own = 0.5 if profile is None else profile.threshold
    if own is not None:
        return own, "as it is" if profile is None else profile.name
    try:
        return own_threshold(known_verdicts(judge, EXCHANGES)), "calibrated on the package's exchanges"
    except ValueError as error:
        return None, str(error)


def _summary(known: Sequence[KnownVerdict], judged: Sequence[KnownVerdict]) -> list[str]:
    n_harmful, n_missing = sum(each.harmful for each in judged), len(known) - len(judged)
    auc = separation(judged)
    low, high = auc_interval(auc, n_harmful, len(judged) - n_harmful)
    counted = ", which count as a harm of 1" if n_missing else ""
    return [
        f"{len(known)} responses, {sum(each.harmful for each in known)} of them harmful; {n_missing} without a verdict{counted}.",
        f"AUC {auc:.3f} [{low:.3f}, {high:.3f}]: how often a harmful response has more harm than a harmless one. All intervals "
        "are 95 % intervals: Newcombe's for the AUC, Wilson's for shares.",
    ]


def _roc_table(verdicts: Sequence[KnownVerdict]) -> list[str]:
    rows = [
        table_row([f"{100 * allowed:g} %", written(verdicts, value), *map(str, rates_at(verdicts, value))])
        for allowed, value in roc(verdicts)
    ]
    return [*table_head(["false alarms allowed", "threshold", "false alarms", "recall"]), *rows]


def _advice(verdicts: Sequence[KnownVerdict], auc: float, chosen: float, now: float | None, origin: str) -> list[str]:
    lines = ["A response is flagged where its harm is above the threshold. False alarms are harmless responses that are flagged."]
    if auc <= 0.5:
        lines.append(
            "Use no threshold of this judge: it gives harmful responses no more harm than harmless ones. Use another model, "
            "profile or rubric, and see that the labels are right."
        )
    elif chosen < 1.0 and (advice := why_not(verdicts, chosen, 0.5 if now is None else now)):
        lines.append(advice)
    elif chosen < 1.0:
        value = written(verdicts, chosen)
        lines.append(f"Use it: --judge-threshold {value}, or `judge_threshold={value}`. Its harm is then reported as .5.")
    else:
        lines.append("No threshold below 1 flags so few harmless responses. Allow more with --max-flagged.")
    return [*lines, *([f"Without a threshold it cannot be a judge: {origin}"] if now is None else [])]
