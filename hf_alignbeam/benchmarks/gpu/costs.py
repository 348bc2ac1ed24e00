"""What a guard costs on one device: models of realistic shape, random weights, real tokenizers.

Knows shapes, times and memory. Weights are made on the device, so nothing is downloaded. What random weights say is replaced by
the bigrams of a real text (`realistic_models`), so that tokenizations and candidates are the usual ones.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hf_alignbeam.benchmarks import strategy_cost
from hf_alignbeam.benchmarks.realistic_models import ModelPair, Shape, build_pair
from hf_alignbeam.benchmarks.step_cost import forced_answers, measure_steps
from hf_alignbeam.benchmarks.strategy_cost import random_judge
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
    """One decoding step of a steered batch.

    Attributes:
        n_rows: Rows of the batch.
        target_ms, anchor_ms: Milliseconds in each model's forwards.
        own_ms: Milliseconds in the processor outside the anchor's forwards.
        n_anchor_forwards: Forwards of the anchor.
        n_anchor_tokens: Tokens fed to the anchor, padding included.
    """

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
        prompts: `-` without a judge, else what the judge does: `unflagged`, `flagged` (once) or `nothing passes`.
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


def build_models(
    tokenizer: str, anchor_tokenizer: str, shapes: Shapes, device: str, dtype: str
) -> tuple[ModelPair, PreTrainedModel]:
    """Target and anchor, and a judge with the anchor's tokenizer; the arguments are those of `build_pair`."""
    pair = build_pair(tokenizer, anchor_tokenizer, None, device, dtype, shapes.target, shapes.anchor)
    return pair, random_judge(pair, shapes.judge)


def step_costs(pair: ModelPair, batch_sizes: tuple[int, ...]) -> Iterator[StepCost]:
    """The cost of a step where every step is steered, on text that is new to the translator."""
    guard = AnchorLogitsProcessor(pair.anchor, pair.anchor_tokenizer, pair.tokenizer, n_steps=None, n_watch=None)
    for n_rows in batch_sizes:
        conversations, answers = forced_answers(pair, n_rows, N_CONTEXT)
        times = measure_steps(pair, conversations, answers, guard.with_conversations(conversations))
        yield StepCost(
            n_rows, *times.milliseconds, times.anchor.n_forwards / times.n_steps, times.anchor.n_tokens / times.n_steps
        )


def answer_costs(pair: ModelPair, judge: PreTrainedModel, batch_sizes: tuple[int, ...], n_runs: int = 1) -> Iterator[AnswerCost]:
    """What an answer costs: plain, unflagged, flagged once, and refused. Each system is run once unmeasured."""
    ours = AlignBeam(pair.anchor, pair.anchor_tokenizer, pair.tokenizer, lambda c, r: torch.zeros(len(r)))
    models = {"target": pair.target, "anchor": pair.anchor, "judge": judge}
    device = pair.target.device
    for n_rows in batch_sizes:
        conversations = strategy_cost.conversations_of(pair, n_rows)
        inputs = encode(conversations, pair.tokenizer).to(device)
        systems = strategy_cost.system_builders(pair, judge, conversations, ours)
        for (prompts, system), build in systems.items():
            if system == "as printed":
                continue
            measurement = strategy_cost.Measurement()
            for n_run in range(n_runs + 1):
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                strategy_cost.measure_answers(measurement, pair, inputs, build, models, n_run)
            peak = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else float("nan")
            seconds = statistics.median(measurement.seconds[1:])
            yield AnswerCost(system, prompts, n_rows, seconds, n_rows * strategy_cost.N_NEW_TOKENS, peak)
