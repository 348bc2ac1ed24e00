"""What a guard costs on one device: models of realistic shape, random weights, real tokenizers.

Knows shapes, times and memory. Weights are made on the device, so nothing is downloaded. What random weights say is replaced by
what follows in a real text (`realistic_models`), so that byte paths and candidates are the usual ones.
"""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hf_alignbeam.benchmarks import step_cost, strategy_cost
from hf_alignbeam.benchmarks.realistic_models import (
    Follows,
    ModelPair,
    ReadingLlama,
    Shape,
    load_tokenizer,
    new_target,
    padded_size,
    standard_library_text,
)
from hf_alignbeam.decoding.strategy import AlignBeam
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.steering.processor import AnchorLogitsProcessor

GIB = 2**30


@dataclass(frozen=True)
class Shapes:
    """The sizes of target, anchor and judge, and what to call them."""

    name: str
    target: Shape
    anchor: Shape
    judge: Shape


#: Those of Qwen3-8B, Llama-3.2-3B and Llama-Guard-3-1B: 27 GiB in 16 bits.
LARGE = Shapes(
    "8 B, 3 B, 1 B",
    Shape(4096, 12288, 36, 32, 8, 128),
    Shape(3072, 8192, 28, 24, 8, 128),
    Shape(2048, 8192, 16, 32, 8, 64),
)
#: Those of Qwen3-1.7B, Qwen3-0.6B and half of that, for a card with less memory.
SMALL = Shapes("1.7 B, 0.6 B, 0.3 B", Shape(2048, 6144, 28, 16, 8, 128), Shape(), Shape(1024, 2048, 14, 16, 8, 64))
#: For a test of the script itself.
TINY = Shapes("tiny", Shape(64, 96, 2, 4, 2, 16), Shape(48, 64, 2, 4, 2, 12), Shape(32, 48, 2, 4, 2, 8))
#: The memory that the large ones and the caches of the largest batch take.
LARGE_NEEDS = 44 * GIB

N_CONTEXT = 128


@dataclass(frozen=True)
class StepCost:
    """One decoding step of a steered batch, in milliseconds."""

    n_rows: int
    target_ms: float
    anchor_ms: float
    own_ms: float
    n_anchor_forwards: float
    n_anchor_tokens: float

    @property
    def times_models(self) -> float:
        """The step against target and anchor alone."""
        return (self.target_ms + self.anchor_ms + self.own_ms) / (self.target_ms + self.anchor_ms)


@dataclass(frozen=True)
class AnswerCost:
    """One batch of answers by one system.

    Attributes:
        system: What decodes.
        prompts: Whether the judge flags the answers.
        n_rows: Answers in the batch.
        seconds: The median of its runs.
        n_tokens: Tokens of all answers.
        peak_gib: The most memory that tensors took, in GiB; NaN where the device does not tell.
    """

    system: str
    prompts: str
    n_rows: int
    seconds: float
    n_tokens: int
    peak_gib: float


def choose_shapes(device: torch.device) -> Shapes:
    """The largest shapes that fit a device's memory."""
    if device.type != "cuda":
        return TINY
    return LARGE if torch.cuda.get_device_properties(device).total_memory >= LARGE_NEEDS else SMALL


@contextmanager
def _made_as(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Make parameters on a device and in a dtype from the start: in 32 bits they would take twice the memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def build_models(
    tokenizer: str, anchor_tokenizer: str, shapes: Shapes, device: torch.device, dtype: torch.dtype
) -> tuple[ModelPair, PreTrainedModel]:
    """Target and anchor, and a judge with the anchor's tokenizer.

    Args:
        tokenizer: The target's, a folder or a Hub id.
        anchor_tokenizer: The anchor's.
        shapes: The sizes.
        device: Where the weights are made.
        dtype: Of the weights.
    """
    torch.manual_seed(0)
    own, safe = load_tokenizer(tokenizer), load_tokenizer(anchor_tokenizer)
    text = standard_library_text()
    with _made_as(device, dtype):
        target: Any = new_target(own, shapes.target)
        anchor: Any = ReadingLlama(LlamaConfig(vocab_size=padded_size(safe), tie_word_embeddings=True, **vars(shapes.anchor)))
        judge: Any = LlamaForCausalLM(LlamaConfig(vocab_size=padded_size(safe), tie_word_embeddings=True, **vars(shapes.judge)))
    anchor.follows = Follows(safe, text, padded_size(safe)).to(device)
    follows = Follows(own, text, padded_size(own)).to(device)
    pair = ModelPair(target.eval(), own, anchor.eval(), safe, text, follows)
    return pair, cast(PreTrainedModel, judge.eval())


def step_costs(pair: ModelPair, batch_sizes: tuple[int, ...]) -> Iterator[StepCost]:
    """What a step costs that is always steered, for words that the translator has not met."""
    guard = AnchorLogitsProcessor(pair.anchor, pair.anchor_tokenizer, pair.tokenizer, n_steps=None, n_watch=None)
    for n_rows in batch_sizes:
        conversations, answers = step_cost._forced(pair, n_rows, N_CONTEXT)
        cells = step_cost._measured(pair, conversations, answers, guard.with_conversations(conversations))
        target, anchor, own = map(float, cells[:3])
        yield StepCost(n_rows, target, anchor, own, float(cells[5]), float(cells[6]))


def answer_costs(pair: ModelPair, judge: PreTrainedModel, batch_sizes: tuple[int, ...], n_runs: int = 2) -> Iterator[AnswerCost]:
    """What an answer costs: plain, unflagged, flagged once, and refused. Each system is run once unmeasured."""
    ours = AlignBeam(pair.anchor, pair.anchor_tokenizer, pair.tokenizer, lambda c, r: torch.zeros(len(r)))
    models = {"target": pair.target, "anchor": pair.anchor, "judge": judge}
    device = pair.target.device
    for n_rows in batch_sizes:
        conversations = strategy_cost._conversations(pair, n_rows)
        inputs = encode(conversations, pair.tokenizer).to(device)
        systems = strategy_cost._systems(pair, judge, conversations, ours)
        for (prompts, system), build in systems.items():
            if system == "as printed":
                continue
            measured = strategy_cost.Measured()
            for n_run in range(n_runs + 1):
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                strategy_cost._measure(measured, pair, inputs, build(), models, n_run)
            peak = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else float("nan")
            seconds = statistics.median(measured.seconds[1:])
            yield AnswerCost(system, prompts, n_rows, seconds, n_rows * strategy_cost.N_NEW_TOKENS, peak)
