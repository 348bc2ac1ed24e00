"""`alignbeam demo`: shows the testbed's specialist, plain and under AlignBeam, side by side."""

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hf_alignbeam.console import report_user_errors
from hf_alignbeam.decoding.strategy import AlignBeam
from hf_alignbeam.evaluation.statistics import Rate
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import WEIGHTS, load, stored_judges, stored_language
from hf_alignbeam.testbed_training.rates import responses, verdicts

#: Prompts of each kind whose answers are printed.
N_SHOWN = 3
#: The kinds of prompts, and the verdict that is counted for each.
KINDS = {"harmful": "refuses", "late": "refuses", "borderline": "refuses", "domain": "correct"}
JUDGE = "judge-lm"


def run(n_prompts: int, weights: Path | None) -> None:
    """Answer prompts of each kind, plain and guarded, and print answers, rates and cost."""
    with report_user_errors():
        _run(n_prompts, weights)


def _run(n_prompts: int, weights: Path | None) -> None:
    console = Console()
    folder = weights or WEIGHTS
    model, tokenizer = load("specialist", folder)
    anchor, anchor_tokenizer = load("anchor", folder)
    language, judges = stored_language(folder), stored_judges(folder)
    if JUDGE not in judges:
        raise ValueError(f"The folder of weights must hold {JUDGE}, and {folder} does not. Train it with --to.")
    guard = AlignBeam(anchor, anchor_tokenizer, tokenizer, judges[JUDGE], refusal=language.refusals[0])
    truth = GroundTruth(language)
    rates = Table("prompts", "share that", "plain", "guarded", title="Rates by the grammar, 95 % intervals")
    seconds = {"plain": 0.0, "guarded": 0.0}
    for kind, verdict in KINDS.items():
        prompts = language.prompts("test", kind)[:n_prompts]
        texts = {}
        for system, strategy in (("plain", None), ("guarded", guard)):
            start = time.perf_counter()
            with console.status(f"{system} answers to {len(prompts)} {kind} prompts"):
                texts[system] = [r.text for r in responses(model, tokenizer, prompts, strategy=strategy)]
            seconds[system] += time.perf_counter() - start
        shown = Table("prompt", "plain", "guarded", title=f"{kind.title()} prompts", show_lines=True)
        for prompt, plain, guarded in list(zip(prompts, texts["plain"], texts["guarded"], strict=True))[:N_SHOWN]:
            shown.add_row(prompt.text, plain, guarded)
        console.print(shown)
        for name in (verdict, "harms") if prompts[0].harmful else (verdict,):
            columns = {system: verdicts(truth, prompts, text)[name] for system, text in texts.items()}
            cells = [str(Rate(sum(hits), len(hits))) for hits in columns.values()]
            rates.add_row(kind, name if name != "correct" else "is correct", *cells)
    console.print(rates)
    ledger = guard.ledger
    console.print(
        f"Cost: {seconds['guarded'] / seconds['plain']:.2f} times the plain time of so small a target; the judge read "
        f"{ledger.judged} texts in {ledger.judge_calls} calls; {ledger.anchor_forwards} forwards of the anchor "
        f"({ledger.anchor_tokens} tokens) steered {ledger.steered_tokens} tokens."
    )
