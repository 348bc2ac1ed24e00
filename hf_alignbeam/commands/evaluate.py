"""`alignbeam evaluate`: the main job measured on the testbed, by the grammar's own ground truth."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.commands import points, table_head, table_row, tell, told_plainly
from hf_alignbeam.processor import AnchorLogitsProcessor
from hf_alignbeam.testbed.language import KINDS, Prompt
from hf_alignbeam.testbed.measure import Rate, answers, verdicts
from hf_alignbeam.testbed.store import WEIGHTS, load, stored_language
from hf_alignbeam.testbed.truth import Truth

#: The anchor alone, in the target's tokens; and AlignBeam's rule as printed.
BLIND: dict[str, Any] = {"alpha": 1.0, "n_watch": None}
WHOLE: dict[str, Any] = {**BLIND, "n_steps": None}
PAPER: dict[str, Any] = {"mixing": "paper", "translation": "drop", "alpha": 0.5, "n_steps": 6, "n_watch": None}
#: The name of the model under the testbed's LoRA; as its anchor it is the adapted model with its adapter off.
BASE = "base"
ALPHAS = (0.5, 0.6, 0.65, 0.7, 0.75, 0.8)
STEPS = (4, 8, 12, 20, None)
#: The main table's columns: kind of prompt, and the share that counts there.
RATES = (
    ("harmful", "refuses"),
    ("harmful", "harms"),
    ("prefill", "refuses"),
    ("late", "refuses"),
    ("domain", "correct"),
    ("general", "correct"),
    ("borderline", "correct"),
    ("borderline", "refuses"),
)

Verdicts = dict[str, dict[str, list[bool]]]  # by kind of prompt, by name of the rate, one a prompt


@dataclass(frozen=True)
class System:
    """Something that answers prompts: a model, alone or with a guard in front of its scores."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    guard: AnchorLogitsProcessor | None = None


@dataclass(frozen=True)
class Asked:
    """What to measure: on which prompts, which of the testbed's models, one table or the sweep."""

    split: str
    weights: Path | None
    limit: int | None
    sweep: bool
    anchor: str
    specialist: str
    judge: str | None = None
    judge_errors: float = 0.0
    steering: bool = False


def run(asked: Asked, given: Mapping[str, Any]) -> None:
    """Print the table of all guards, of all strategies where a judge is named, of embedding search, or the sweep."""
    from hf_alignbeam.commands import searches, strategies

    with told_plainly():
        if asked.steering:
            searches.run(asked.weights, asked.split, asked.limit, asked.judge)
        else:
            (_run if asked.judge is None else strategies.run)(asked, given)


def _run(asked: Asked, given: Mapping[str, Any]) -> None:
    sweep = asked.sweep
    if sweep and given:
        raise ValueError(f"--sweep compares every setting, so {', '.join(given)} must be left out, got {dict(given)}.")
    console = Console(width=200)
    folder = asked.weights or WEIGHTS
    language = stored_language(folder)
    truth = Truth(language)
    split = "validation" if sweep else asked.split
    prompts = {kind: language.prompts(split, kind)[: asked.limit] for kind in KINDS}
    anchor, anchor_tokenizer = load(asked.anchor, folder)
    model, tokenizer = load(asked.specialist, folder)

    def guarded(**arguments: Any) -> AnchorLogitsProcessor:
        if asked.anchor == BASE and isinstance(model, PeftModel):
            return AnchorLogitsProcessor("base", tokenizer, tokenizer, model=model, **arguments)
        return AnchorLogitsProcessor(anchor, anchor_tokenizer, tokenizer, **arguments)

    plain = System("specialist alone", model, tokenizer)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        if sweep:
            kinds = ("harmful", "domain", "general", "borderline", "prefill")
            swept = {kind: prompts[kind] for kind in kinds}
            before = measure(plain, swept, truth, progress)
            lines = table_head(["mixing", "alpha", "n_steps", *SWEEP_COLUMNS])
            for mixing, alpha, n_steps in product(("log_linear", "linear"), ALPHAS, STEPS):
                guard = guarded(mixing=mixing, alpha=alpha, n_steps=n_steps)
                after = measure(System(f"{mixing} {alpha} {n_steps}", model, tokenizer, guard), swept, truth, progress)
                lines.append(table_row([mixing, str(alpha), str(n_steps), *_sweep_cells(after, before)]))
        else:
            guard = guarded(**given)
            steering = guard.steering
            systems = [
                plain,
                System("anchor alone", anchor, anchor_tokenizer),
                System("guarded", model, tokenizer, guard),
                System(
                    f"alpha = 1 for {steering.n_steps} tokens",
                    model,
                    tokenizer,
                    guarded(**{**given, "alpha": 1.0, "n_watch": None}),
                ),
                System("alpha = 1, whole answer", model, tokenizer, guarded(**{**given, **WHOLE})),
                System("paper's rule", model, tokenizer, guarded(**PAPER)),
            ]
            console.print(
                f"{asked.anchor} for {asked.specialist}, language {language.seed}, {split} split, greedy, 95 % intervals. "
                f"Guarded: {steering.mixing}, alpha {steering.alpha}, n_steps {steering.n_steps}, n_watch {steering.n_watch}, "
                f"n_lookahead {steering.n_lookahead}.\n"
            )
            results = {system.name: measure(system, prompts, truth, progress) for system in systems}
            lines = [*_rates_lines(results), "", *paired_lines(results), "", *_cost_lines(systems)]
    tell(console, *lines)


def measure(system: System, prompts: Mapping[str, list[Prompt]], truth: Truth, progress: Progress) -> Verdicts:
    """A system's verdicts on every kind of prompt."""
    task = progress.add_task(system.name, total=sum(map(len, prompts.values())))
    n_before = 0
    results = {}
    for kind, asked in prompts.items():
        done = lambda n_done, start=n_before: progress.update(task, completed=start + n_done)  # noqa: E731
        processors = [system.guard] if system.guard else []
        texts = answers(system.model, system.tokenizer, asked, processors, after_batch=done)
        results[kind] = verdicts(truth, asked, texts)
        n_before += len(asked)
    progress.remove_task(task)
    return results


def _rates_lines(results: Mapping[str, Verdicts]) -> list[str]:
    """One line a system: the rates that matter for each kind of prompt."""
    sizes = {kind: len(columns["refuses"]) for kind, columns in next(iter(results.values())).items()}
    lines = table_head(["system", *(f"{kind}: {rate}" for kind, rate in RATES)])
    lines.append(table_row(["n", *(str(sizes[kind]) for kind, _ in RATES)]))
    for name, kinds in results.items():
        lines.append(table_row([name, *(str(Rate(sum(kinds[kind][rate]), sizes[kind])) for kind, rate in RATES)]))
    return lines


def paired_lines(results: Mapping[str, Verdicts]) -> list[str]:
    """The differences to the specialist alone over the same prompts, in points."""
    lines = table_head(["against the specialist alone, paired", "domain correct", "general correct", "borderline refuses"])
    before = results["specialist alone"]
    for name, after in results.items():
        if name not in ("specialist alone", "anchor alone"):
            cells = (("domain", "correct"), ("general", "correct"), ("borderline", "refuses"))
            lines.append(table_row([name, *(points(after[k][r], before[k][r]) for k, r in cells)]))
    return lines


def _cost_lines(systems: list[System]) -> list[str]:
    lines = table_head(["system", "anchor forwards", "tokens fed", "tokens steered", "mass lost"])
    for system in systems:
        if system.guard is not None:
            ledger = system.guard.ledger
            lost = 100 * ledger.lost_mass / max(ledger.steered_tokens, 1)
            counts = (ledger.anchor_forwards, ledger.anchor_tokens, ledger.steered_tokens)
            lines.append(table_row([system.name, *map(str, counts), f"{lost:.3f} %"]))
    return lines


SWEEP_COLUMNS = ("harmful refused", "prefill refused", "domain correct", "general correct", "borderline refused")


def _sweep_cells(after: Verdicts, before: Verdicts) -> list[str]:
    def share(hits: list[bool]) -> float:
        return 100 * sum(hits) / len(hits)

    cells = [f"{share(after[kind]['refuses']):.1f} %" for kind in ("harmful", "prefill")]
    for kind, rate in (("domain", "correct"), ("general", "correct"), ("borderline", "refuses")):
        cells.append(f"{share(after[kind][rate]):.1f} % ({share(after[kind][rate]) - share(before[kind][rate]):+.1f})")
    return cells
