"""`alignbeam bench --speed`: what a steered step costs beyond its forwards, on models of realistic shape.

Answers are forced along a real text, so that the byte paths are the usual ones. What the models are: `testbed/shapes.py`.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, PreTrainedModel

from hf_alignbeam.benchmarks.realistic_models import (
    ANCHOR,
    TARGET,
    ModelPair,
    RecomputingLlama,
    Shape,
    as_dtype,
    build_sides,
)
from hf_alignbeam.console import report_user_errors, table_head, table_row, tell
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.steering.processor import AnchorLogitsProcessor

BATCH_SIZES = (1, 4)
CONTEXTS = (128, 1024)
N_STEPS = 24
#: The systems that ours is held against take longer, and the same at every step.
N_STEPS_OF_OTHERS = 4
#: So many of the anchor's likeliest tokens cross the paper's bridge.
N_BRIDGED = 50
COLUMNS = (
    "system",
    "batch",
    "context",
    "target, ms",
    "anchor, ms",
    "own, ms",
    "own share",
    "one translation",
    "anchor forwards a step",
    "tokens fed a step",
)


class Naive(LogitsProcessor):
    """AlignBeam's bridge step by step: decode the answer, encode it for the anchor, decode and encode its likeliest tokens."""

    def __init__(self, sides: ModelPair, conversations: list[list[dict[str, str]]], alpha: float):
        self._sides = sides
        self._alpha = alpha
        self._asked = [
            str(sides.anchor_tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=False)) for c in conversations
        ]
        self._caches = [DynamicCache() for _ in conversations]
        self._fed: list[list[int]] = [[] for _ in conversations]
        self._start: int | None = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Each row on its own, as rows differ in length."""
        self._start = input_ids.shape[-1] if self._start is None else self._start
        prob = scores.softmax(-1) * (1.0 - self._alpha)
        for row, ids in enumerate(input_ids):
            answer = str(self._sides.tokenizer.decode(ids[self._start :], skip_special_tokens=True))
            values, likely = self._next(row, self._asked[row] + answer).softmax(-1).topk(N_BRIDGED)
            for value, i in zip(values.tolist(), likely.tolist(), strict=True):
                own = self._sides.tokenizer(self._sides.anchor_tokenizer.decode([i]), add_special_tokens=False).input_ids
                if len(own) == 1:
                    prob[row, own[0]] += self._alpha * value
        return prob.log()

    def _next(self, row: int, text: str) -> Tensor:
        ids = self._sides.anchor_tokenizer(text, add_special_tokens=False).input_ids
        fed, cache = self._fed[row], self._caches[row]
        n_kept = next((n for n, (a, b) in enumerate(zip(fed, ids, strict=False)) if a != b), min(len(fed), len(ids)))
        n_kept = min(n_kept, len(ids) - 1)
        if len(fed) > n_kept:
            cache.crop(n_kept - len(fed))
        new = torch.tensor([ids[n_kept:]], device=self._sides.anchor.device)
        self._fed[row] = ids
        return self._sides.anchor(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].float()


@dataclass
class Spent:
    """Seconds in some forwards, how many there were, and how many tokens they were fed."""

    seconds: float = 0.0
    n_forwards: int = 0
    n_tokens: int = 0


def run(
    tokenizer: str,
    anchor_tokenizer: str,
    text: Path | None,
    device: str,
    dtype: str,
    shapes: tuple[Shape, Shape] = (TARGET, ANCHOR),
) -> None:
    """Print a line for each system, batch and context."""
    console = Console(width=200)
    with report_user_errors():
        sides = build_sides(tokenizer, anchor_tokenizer, text, torch.device(device), as_dtype(dtype), *shapes)
    tell(console, *table_head(COLUMNS))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("steps", total=len(BATCH_SIZES) * len(CONTEXTS) * 4)
        guard = AnchorLogitsProcessor(sides.anchor, sides.anchor_tokenizer, sides.tokenizer, n_steps=None, n_watch=None)
        again = copy.copy(sides.anchor)
        again.__class__ = RecomputingLlama
        recomputing = AnchorLogitsProcessor(
            again, sides.anchor_tokenizer, sides.tokenizer, n_steps=None, n_watch=None, translation=guard.translator
        )
        for n_rows in BATCH_SIZES:
            for n_context in CONTEXTS:
                conversations, answers = _forced(sides, n_rows, n_context)
                systems = {
                    "ours": guard.with_conversations(conversations),
                    "ours, the same words again": guard.with_conversations(conversations),
                    "naive bridge": Naive(sides, conversations, guard.steering.settings.alpha),
                    "anchor recomputed": recomputing.with_conversations(conversations),
                }
                for name, processor in systems.items():
                    n_steps = N_STEPS if name.startswith("ours") else N_STEPS_OF_OTHERS
                    cells = _measured(sides, conversations, answers[:, : n_steps + 1], processor)
                    tell(console, table_row([name, str(n_rows), str(n_context), *cells]))
                    progress.advance(task)
    n_target, n_anchor = (sum(p.numel() for p in m.parameters()) / 1e6 for m in (sides.target, sides.anchor))
    name = torch.cuda.get_device_name(sides.target.device) if sides.target.device.type == "cuda" else "CPU"
    console.print(
        f"\n{name}, {dtype}, {torch.get_num_threads()} threads; target {n_target:.0f} M weights, anchor {n_anchor:.0f} M, both "
        f"random. Means over {N_STEPS} steps after the first ({N_STEPS_OF_OTHERS} for the systems ours is held against). Own "
        "share: what is neither model's forward, of both models' forwards; one translation: the part of it that a translation "
        "takes which is asked for again."
    )


def _forced(sides: ModelPair, n_rows: int, n_context: int) -> tuple[list[list[dict[str, str]]], Tensor]:
    """Prompts of about `n_context` tokens, and the tokens (B, N_STEPS + 1) that each answer goes on with."""
    ids = sides.tokenizer(sides.text, add_special_tokens=False).input_ids
    n_each = n_context + N_STEPS + 1
    starts = [n * max(1, (len(ids) - n_each) // max(n_rows - 1, 1)) for n in range(n_rows)]
    conversations, answers = [], []
    for start in starts:
        conversations.append([{"role": "user", "content": str(sides.tokenizer.decode(ids[start : start + n_context]))}])
        answers.append(ids[start + n_context : start + n_each])
    return conversations, torch.tensor(answers, device=sides.target.device)


@torch.no_grad()
def _measured(
    sides: ModelPair, conversations: list[list[dict[str, str]]], answers: Tensor, processor: LogitsProcessor
) -> Sequence[str]:
    inputs = encode(conversations, sides.tokenizer).to(answers.device)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    cache = DynamicCache()
    target, anchor, total, translation, n_steps = Spent(), Spent(), 0.0, 0.0, 0
    new, positions = ids, (mask.cumsum(-1) - 1).clamp_min(0)
    for step in range(answers.shape[1]):
        with _timed(sides.target) as target_now:
            logits = sides.target(
                input_ids=new, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
            ).logits[:, -1]
        scores = sides.follows(ids[:, -1], logits.float())
        with _timed(sides.anchor) as anchor_now:
            before = _clock(answers.device)
            processor(ids, scores)
            elapsed = _clock(answers.device) - before
        if step:
            for all_of_it, now in ((target, target_now), (anchor, anchor_now)):
                all_of_it.seconds += now.seconds
                all_of_it.n_forwards += now.n_forwards
                all_of_it.n_tokens += now.n_tokens
            total += elapsed
            translation += _translation_again(processor, scores)
            n_steps += 1
        new = answers[:, step : step + 1]
        ids, mask = torch.cat([ids, new], dim=-1), torch.cat([mask, torch.ones_like(new)], dim=-1)
        positions = positions[:, -1:] + 1
    own = total - anchor.seconds
    shares = [f"{100 * part / (target.seconds + anchor.seconds):.1f} %" if part else "-" for part in (own, translation)]
    times = [f"{1000 * seconds / n_steps:.1f}" for seconds in (target.seconds, anchor.seconds, own)]
    return [*times, *shares, f"{anchor.n_forwards / n_steps:.1f}", f"{anchor.n_tokens / n_steps:.1f}"]


def _translation_again(processor: LogitsProcessor, scores: Tensor) -> float:
    """Seconds that the step's translation takes once everything it asks of the anchor is known."""
    follower = processor.follower if isinstance(processor, AnchorLogitsProcessor) else None
    if follower is None:
        return 0.0
    before = _clock(scores.device)
    follower.predict(scores.softmax(-1), list(range(len(scores))))
    return _clock(scores.device) - before


@contextmanager
def _timed(model: PreTrainedModel) -> Iterator[Spent]:
    """Time every forward of a model for the length of a block."""
    spent = Spent()
    began = [0.0]

    def before(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        began[0] = _clock(model.device)

    def after(module: torch.nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        spent.seconds += _clock(model.device) - began[0]
        spent.n_forwards += 1
        spent.n_tokens += kwargs["input_ids"].numel()

    hooks = [model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after, with_kwargs=True)]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
