"""`alignbeam bench --speed --model A --anchor B`: what a steered step costs, against the same steps of both models alone.

The limit of a guard is what target and anchor cost anyway. Both are generated with alone, in the same run and with the same
prompts, before and after the guarded answers, as a machine drifts.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

from hf_alignbeam.benchmarks.cleared_caches import clear_method_caches
from hf_alignbeam.benchmarks.realistic_models import as_dtype, device_name
from hf_alignbeam.benchmarks.step_cost import ForwardTimes, time_forwards
from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.console import report_user_errors, table_head, table_row, tell
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.hub.model_loading import load_model, load_tokenizer
from hf_alignbeam.judges.known_exchanges import EXCHANGES
from hf_alignbeam.steering.processor import AnchorLogitsProcessor

BATCH_SIZES = (1, 4, 16)
N_STEPS = 20
#: Each batch size answers at most so many prompts, and at most so many batches.
N_PROMPTS, N_BATCHES = 16, 4
COLUMNS = (
    "batch",
    "words",
    "times target + anchor",
    "own work, ms",
    "step, ms",
    "target alone, ms",
    "anchor alone, ms",
    "anchor forwards a step",
    "tokens fed a row and step",
)

Batches = Sequence[list[list[Message]]]


@dataclass
class Generated:
    """The time of some answers in seconds, and the part of it in each model's forwards."""

    seconds: float
    target: ForwardTimes
    anchor: ForwardTimes


class Pair:
    """A target and an anchor, each with its tokenizer: `models` and `tokenizers`.

    Args:
        model, anchor: A folder or a Hub id of each.
        device: Where they go, as torch names it.
        dtype: The dtype of their weights, as torch names it.
        is_compiled: Whether their forwards are compiled.
    """

    def __init__(self, model: str, anchor: str, device: str, dtype: str, is_compiled: bool = False):
        self.models: list[Any] = [
            load_model(name, dtype=as_dtype(dtype), device=torch.device(device)) for name in (model, anchor)
        ]
        self.tokenizers: list[PreTrainedTokenizerBase] = [load_tokenizer(name, padding_side="left") for name in (model, anchor)]
        self.is_compiled = is_compiled
        for each in self.models if is_compiled else []:
            each.forward = torch.compile(each.forward, dynamic=True)

    def guard(self) -> AnchorLogitsProcessor:
        """A processor that steers every token of every answer, and has seen no word yet."""
        tokenizer, anchor_tokenizer = self.tokenizers
        guard = AnchorLogitsProcessor(self.models[1], anchor_tokenizer, tokenizer, n_steps=None, n_watch=None)
        if not guard.translator.identity:
            clear_method_caches(guard.translator.retokenizer)  # guards of one process share what they know of words
        return guard

    def generate(self, batches: Batches, guard: AnchorLogitsProcessor | None = None, number: int = 0) -> Generated:
        """Answer some batches of prompts, by `N_STEPS` tokens each, with the target (0) or the anchor (1)."""
        with time_forwards(self.models[0]) as target, time_forwards(self.models[1]) as anchor:
            start = time.perf_counter()
            for batch in batches:
                self.answers(batch, guard, number, min_new_tokens=N_STEPS)
            return Generated(time.perf_counter() - start, target, anchor)

    def answers(
        self, batch: Sequence[list[Message]], guard: AnchorLogitsProcessor | None = None, number: int = 0, min_new_tokens: int = 0
    ) -> list[list[int]]:
        """The ids of greedy answers to a batch of prompts, at most `N_STEPS` of each, padded where one has ended."""
        model, tokenizer = self.models[number], self.tokenizers[number]
        inputs = encode(batch, tokenizer).to(model.device)
        output = model.generate(
            **inputs,
            logits_processor=LogitsProcessorList([] if guard is None else [guard]),
            min_new_tokens=min_new_tokens,
            max_new_tokens=N_STEPS,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        ids: list[list[int]] = output[:, inputs["input_ids"].shape[1] :].tolist()
        return ids


def run(model: str, anchor: str, device: str, dtype: str, is_compiled: bool = False) -> None:
    """Print two lines for each batch size: for words that the guard has not seen, and for the same words again."""
    console = Console(width=200)
    with report_user_errors():
        pair = Pair(model, anchor, device, dtype, is_compiled)
        pair.guard()
    asked = conversations()
    tell(console, *table_head(COLUMNS))
    for n_rows in BATCH_SIZES:
        batches = [asked[start : start + n_rows] for start in range(0, len(asked), n_rows)][:N_BATCHES]
        for cells in measured(pair, batches):
            tell(console, table_row([str(n_rows), *cells]))
    console.print(
        f"\n{device_name(torch.device(device))}, {dtype}{', compiled' * is_compiled}, {torch.get_num_threads()} threads; "
        f"{N_STEPS} tokens of each answer, all steered. Alone: the means of a run before and one after. Own work: what is left "
        "of a step without both models' forwards and what `generate` itself takes with the target alone."
    )


def conversations() -> list[list[Message]]:
    """The prompts: harmful and harmless questions of this package."""
    questions = list(dict.fromkeys(each.question for each in EXCHANGES))[:N_PROMPTS]
    return [[{"role": "user", "content": question}] for question in questions]


def measured(pair: Pair, batches: Batches) -> list[list[str]]:
    """The cells of the lines of one batch size."""
    n_steps = N_STEPS * len(batches)
    for number in (0, 1):
        pair.generate(batches[:1], number=number)  # what torch sets up at a first forward is no cost of a step
    if pair.is_compiled:
        pair.generate(batches, pair.guard())  # nor is compiling what other shapes need
    before = [pair.generate(batches, number=number) for number in (0, 1)]
    guard = pair.guard()
    guarded = {words: pair.generate(batches, guard) for words in ("first use", "known")}
    alone = [[first, pair.generate(batches, number=number)] for number, first in enumerate(before)]
    target, anchor = (sum(each.seconds for each in both) / 2 for both in alone)
    rest = sum(each.seconds - each.target.seconds for each in alone[0]) / 2
    lines = []
    for words, each in guarded.items():
        own = each.seconds - each.target.seconds - each.anchor.seconds - rest
        times = (own, each.seconds, target, anchor)
        counts = (each.anchor.n_forwards / n_steps, each.anchor.n_tokens / n_steps / len(batches[0]))
        lines.append(
            [words, f"{each.seconds / (target + anchor):.2f}"]
            + [f"{1000 * seconds / n_steps:.1f}" for seconds in times]
            + [f"{counts[0]:.2f}", f"{counts[1]:.1f}"]
        )
    return lines
