"""`alignbeam bench --speed`: the time of a steered decoding step beyond the models' forwards, on models of realistic shape.

Answers are forced along a real text, so that anchor and target split it as in use. Knows no strategy and no judge.
"""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, PreTrainedModel

from hf_alignbeam.benchmarks.realistic_models import (
    ANCHOR_SHAPE,
    TARGET_SHAPE,
    ModelPair,
    RecomputingLlama,
    Shape,
    build_pair,
    device_name,
)
from hf_alignbeam.console import report_user_errors, table_head, table_row, tell
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.inference.engines import cache_argument
from hf_alignbeam.steering.processor import AnchorLogitsProcessor

#: The sizes of target and anchor.
SHAPES = (TARGET_SHAPE, ANCHOR_SHAPE)
BATCH_SIZES = (1, 4)
CONTEXTS = (128, 1024)
N_STEPS = 24
#: Steps of the systems that ours is compared with: they are slower, and equally slow at every step.
N_STEPS_OF_OTHERS = 4
#: How many of the anchor's likeliest tokens the published bridge translates.
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


class NaiveBridge(LogitsProcessor):
    """The published bridge: decode the answer, encode it for the anchor, decode and re-encode the anchor's likeliest tokens."""

    def __init__(self, pair: ModelPair, conversations: list[list[dict[str, str]]], alpha: float):
        self._pair = pair
        self._alpha = alpha
        self._prompts = [
            str(pair.anchor_tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=False)) for c in conversations
        ]
        self._caches = [DynamicCache() for _ in conversations]
        self._cache_name = cache_argument(pair.anchor)
        self._fed: list[list[int]] = [[] for _ in conversations]
        self._start: int | None = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mix the scores row by row: the anchor's texts differ in length."""
        self._start = input_ids.shape[-1] if self._start is None else self._start
        prob = scores.softmax(-1) * (1.0 - self._alpha)
        for row, ids in enumerate(input_ids):
            answer = str(self._pair.tokenizer.decode(ids[self._start :], skip_special_tokens=True))
            values, likely = self._next(row, self._prompts[row] + answer).softmax(-1).topk(N_BRIDGED)
            for value, i in zip(values.tolist(), likely.tolist(), strict=True):
                own = self._pair.tokenizer(self._pair.anchor_tokenizer.decode([i]), add_special_tokens=False).input_ids
                if len(own) == 1:
                    prob[row, own[0]] += self._alpha * value
        return prob.log()

    def _next(self, row: int, text: str) -> Tensor:
        ids = self._pair.anchor_tokenizer(text, add_special_tokens=False).input_ids
        fed, cache = self._fed[row], self._caches[row]
        n_kept = next((n for n, (a, b) in enumerate(zip(fed, ids, strict=False)) if a != b), min(len(fed), len(ids)))
        n_kept = min(n_kept, len(ids) - 1)
        if len(fed) > n_kept:
            cache.crop(n_kept - len(fed))
        new = torch.tensor([ids[n_kept:]], device=self._pair.anchor.device)
        self._fed[row] = ids
        cached = {self._cache_name: cache}
        return self._pair.anchor(input_ids=new, use_cache=True, logits_to_keep=1, **cached).logits[0, -1].float()


@dataclass
class ForwardTimes:
    """The time of some forwards in seconds, their number, and the number of tokens fed to them."""

    seconds: float = 0.0
    n_forwards: int = 0
    n_tokens: int = 0

    def add(self, other: "ForwardTimes") -> None:
        """Add those of another step."""
        self.seconds += other.seconds
        self.n_forwards += other.n_forwards
        self.n_tokens += other.n_tokens


@dataclass
class StepTimes:
    """What `n_steps` decoding steps of a batch take.

    Attributes:
        target: The target's forwards.
        anchor: The anchor's forwards.
        own: Seconds in the processor outside the anchor's forwards.
        translation: Seconds of one translation a step, repeated with the anchor's distributions at hand.
    """

    target: ForwardTimes = field(default_factory=ForwardTimes)
    anchor: ForwardTimes = field(default_factory=ForwardTimes)
    own: float = 0.0
    translation: float = 0.0
    n_steps: int = 0

    @property
    def milliseconds(self) -> tuple[float, float, float]:
        """Of one step: the target's forward, the anchor's, and the processor's own work."""
        target, anchor, own = (1000 * s / self.n_steps for s in (self.target.seconds, self.anchor.seconds, self.own))
        return target, anchor, own

    def cells(self) -> list[str]:
        """The cells of one line of the table."""
        both = self.target.seconds + self.anchor.seconds
        shares = [f"{100 * part / both:.1f} %" if part else "-" for part in (self.own, self.translation)]
        counts = [f"{count / self.n_steps:.1f}" for count in (self.anchor.n_forwards, self.anchor.n_tokens)]
        return [*(f"{ms:.1f}" for ms in self.milliseconds), *shares, *counts]


def run(
    tokenizer: str, anchor_tokenizer: str, text: Path | None, device: str, dtype: str, shapes: tuple[Shape, Shape] = SHAPES
) -> None:
    """Print a line for each system, batch and context."""
    console = Console(width=200)
    with report_user_errors():
        pair = build_pair(tokenizer, anchor_tokenizer, text, device, dtype, *shapes)
    tell(console, *table_head(COLUMNS))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("steps", total=len(BATCH_SIZES) * len(CONTEXTS) * 4)
        guard = AnchorLogitsProcessor(pair.anchor, pair.anchor_tokenizer, pair.tokenizer, n_steps=None, n_watch=None)
        recomputing_anchor = copy.copy(pair.anchor)
        recomputing_anchor.__class__ = RecomputingLlama
        recomputing = AnchorLogitsProcessor(
            recomputing_anchor, pair.anchor_tokenizer, pair.tokenizer, n_steps=None, n_watch=None, translation=guard.translator
        )
        for n_rows in BATCH_SIZES:
            for n_context in CONTEXTS:
                conversations, answers = forced_answers(pair, n_rows, n_context)
                systems = {
                    "ours": guard.with_conversations(conversations),
                    "ours, the same words again": guard.with_conversations(conversations),
                    "naive bridge": NaiveBridge(pair, conversations, guard.steering.settings.alpha),
                    "anchor recomputed": recomputing.with_conversations(conversations),
                }
                for name, processor in systems.items():
                    n_steps = N_STEPS if name.startswith("ours") else N_STEPS_OF_OTHERS
                    times = measure_steps(pair, conversations, answers[:, : n_steps + 1], processor)
                    tell(console, table_row([name, str(n_rows), str(n_context), *times.cells()]))
                    progress.advance(task)
    n_target, n_anchor = (sum(p.numel() for p in m.parameters()) / 1e6 for m in (pair.target, pair.anchor))
    console.print(
        f"\n{device_name(pair.target.device)}, {dtype}, {torch.get_num_threads()} threads; target {n_target:.0f} M weights, "
        f"anchor {n_anchor:.0f} M, both random. Means over {N_STEPS} steps after the first ({N_STEPS_OF_OTHERS} for the systems "
        "ours is compared with). Own share: the time outside both models' forwards, relative to the time inside them; one "
        "translation: the part of it that one translation takes when it is repeated."
    )


def forced_answers(pair: ModelPair, n_rows: int, n_context: int) -> tuple[list[list[dict[str, str]]], Tensor]:
    """Prompts of about `n_context` tokens, and the tokens (B, N_STEPS + 1) of the answers forced after them."""
    ids = pair.tokenizer(pair.text, add_special_tokens=False).input_ids
    n_each = n_context + N_STEPS + 1
    starts = [n * max(1, (len(ids) - n_each) // max(n_rows - 1, 1)) for n in range(n_rows)]
    conversations, answers = [], []
    for start in starts:
        conversations.append([{"role": "user", "content": str(pair.tokenizer.decode(ids[start : start + n_context]))}])
        answers.append(ids[start + n_context : start + n_each])
    return conversations, torch.tensor(answers, device=pair.target.device)


@torch.no_grad()
def measure_steps(
    pair: ModelPair, conversations: list[list[dict[str, str]]], answers: Tensor, processor: LogitsProcessor
) -> StepTimes:
    """Time the steps after the first, each answer forced along its tokens."""
    inputs = encode(conversations, pair.tokenizer).to(answers.device)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    cached = {cache_argument(pair.target): DynamicCache()}
    times = StepTimes()
    new, positions = ids, (mask.cumsum(-1) - 1).clamp_min(0)
    for step in range(answers.shape[1]):
        with time_forwards(pair.target) as target_step:
            logits = pair.target(input_ids=new, attention_mask=mask, position_ids=positions, logits_to_keep=1, **cached).logits[
                :, -1
            ]
        scores = pair.bigrams(ids[:, -1], logits.float())
        with time_forwards(pair.anchor) as anchor_step:
            before = _synchronized_time(answers.device)
            processor(ids, scores)
            elapsed = _synchronized_time(answers.device) - before
        if step:
            times.target.add(target_step)
            times.anchor.add(anchor_step)
            times.own += elapsed - anchor_step.seconds
            times.translation += _repeated_translation(processor, scores)
            times.n_steps += 1
        new = answers[:, step : step + 1]
        ids, mask = torch.cat([ids, new], dim=-1), torch.cat([mask, torch.ones_like(new)], dim=-1)
        positions = positions[:, -1:] + 1
    return times


def _repeated_translation(processor: LogitsProcessor, scores: Tensor) -> float:
    """Seconds of the step's translation when it is repeated, with the anchor's distributions at hand."""
    follower = processor.follower if isinstance(processor, AnchorLogitsProcessor) else None
    if follower is None:
        return 0.0
    before = _synchronized_time(scores.device)
    follower.predict(scores.softmax(-1), list(range(len(scores))))
    return _synchronized_time(scores.device) - before


@contextmanager
def time_forwards(model: PreTrainedModel) -> Iterator[ForwardTimes]:
    """Time every forward of a model inside a block."""
    times = ForwardTimes()
    start = [0.0]

    def before(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        start[0] = _synchronized_time(model.device)

    def after(module: torch.nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        times.seconds += _synchronized_time(model.device) - start[0]
        times.n_forwards += 1
        times.n_tokens += kwargs["input_ids"].numel()

    hooks = [model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after, with_kwargs=True)]
    try:
        yield times
    finally:
        for hook in hooks:
            hook.remove()


def _synchronized_time(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
