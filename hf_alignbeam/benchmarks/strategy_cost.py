"""`alignbeam bench --decoding`: the cost of the strategy compared with plain `generate`, on models of realistic shape.

The target samples from the bigrams of a real text, so that candidates differ. The judge has random weights: its forward runs,
and a script gives the verdict. Knows nothing of how a single step is made up (`step_cost`).
"""

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from transformers import (
    BatchEncoding,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.generation import BaseStreamer

from hf_alignbeam.benchmarks.realistic_models import (
    ANCHOR_SHAPE,
    TARGET_SHAPE,
    ModelPair,
    Shape,
    build_pair,
    device_name,
    made_on,
    padded_size,
)
from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.console import report_user_errors, table_head, table_row, tell
from hf_alignbeam.decoding.strategy import AlignBeam
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.llm_judge import LLMJudge
from hf_alignbeam.presets.published import PAPER

#: The judge's size: a tenth of the target's weights.
JUDGE_SHAPE = Shape(
    hidden_size=320, intermediate_size=960, num_hidden_layers=12, num_attention_heads=5, num_key_value_heads=5, head_dim=64
)
#: The sizes of target, anchor and judge.
SHAPES = (TARGET_SHAPE, ANCHOR_SHAPE, JUDGE_SHAPE)
BATCH_SIZES = (1, 4)
N_CONTEXT = 128
N_NEW_TOKENS = 128
#: After how many tokens the answers of one more system are first judged.
EARLY = 4
#: How many seconds a judge behind an endpoint takes for a verdict.
LATENCY = 0.5
#: How often each system runs, in turn; the table shows means.
N_RUNS = 2
COLUMNS = (
    "batch",
    "prompts",
    "system",
    "seconds",
    "times plain",
    "first text, s",
    "target row-tokens",
    "times plain",
    "target forwards",
    "anchor forwards",
    "anchor tokens",
    "judge calls",
    "judge forwards",
    "judge tokens",
)


class ForcedText(LogitsProcessor):
    """Replaces the target's scores by the bigram logits of a text."""

    def __init__(self, pair: ModelPair):
        self._bigrams = pair.bigrams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """As `generate` calls it."""
        return cast(Tensor, self._bigrams(input_ids[:, -1], scores))


class ScriptedJudge:
    """Runs a judge, then returns the harm that a script has for this call; the last entry holds for all later calls."""

    def __init__(self, judge: LLMJudge, script: Sequence[float]):
        self._judge = judge
        self._script = list(script)
        self.n_calls = 0

    def __call__(self, conversations: Sequence[list[Message]], responses: Sequence[str]) -> Tensor:
        """As `Judge.__call__`."""
        self._judge(conversations, responses)
        harm = self._script[min(self.n_calls, len(self._script) - 1)]
        self.n_calls += 1
        return torch.full((len(responses),), harm)


class DistantJudge:
    """Passes every response after `LATENCY` seconds; where it is remote, the target writes on meanwhile."""

    def __init__(self, is_remote: bool):
        self.is_remote = is_remote

    def __call__(self, conversations: Sequence[list[Message]], responses: Sequence[str]) -> Tensor:
        """As `Judge.__call__`."""
        time.sleep(LATENCY)
        return torch.zeros(len(responses))


@dataclass
class ForwardCount:
    """The number of a model's forwards, and of the tokens fed to them."""

    n_forwards: int = 0
    n_tokens: int = 0


class FirstText(BaseStreamer):
    """Notes when the first text after the prompt comes."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """As `generate` calls it: with the prompt, then with new tokens."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """As `generate` calls it, at the end."""


@dataclass
class Measurement:
    """One system on one batch.

    Attributes:
        seconds: By run, its time.
        first_text: By run, the time until its first text is streamed; empty for a batch of several prompts.
        forwards: By model, the forwards of the last run.
        n_judge_calls: The calls of the judge in the last run.
    """

    seconds: list[float] = field(default_factory=list)
    first_text: list[float] = field(default_factory=list)
    forwards: dict[str, ForwardCount] = field(default_factory=dict)
    n_judge_calls: int = 0


#: Builds a system; plain `generate` is None.
Build = Callable[[BaseStreamer | None], AlignBeam | None]


def run(
    tokenizer: str, anchor_tokenizer: str, text: Path | None, device: str, dtype: str, shapes: tuple[Shape, ...] = SHAPES
) -> None:
    """Print a line for each system, batch and kind of prompt."""
    console = Console(width=220)
    with report_user_errors():
        pair = build_pair(tokenizer, anchor_tokenizer, text, device, dtype, *shapes[:2])
    judge = random_judge(pair, shapes[2])
    ours = AlignBeam(pair.anchor, pair.anchor_tokenizer, pair.tokenizer, lambda c, r: torch.zeros(len(r)))
    models = {"target": pair.target, "anchor": pair.anchor, "judge": judge}
    tell(console, *table_head(COLUMNS))
    batches = {n_rows: conversations_of(pair, n_rows) for n_rows in BATCH_SIZES}
    systems_of = {n_rows: system_builders(pair, judge, batch, ours) for n_rows, batch in batches.items()}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("answers", total=N_RUNS * sum(map(len, systems_of.values())))
        for n_rows, systems in systems_of.items():
            inputs = encode(batches[n_rows], pair.tokenizer).to(pair.target.device)
            measurements = {name: Measurement() for name in systems}
            for n_run in range(N_RUNS):
                for name, build in systems.items():
                    measure_answers(measurements[name], pair, inputs, build, models, n_run)
                    progress.advance(task)
            for line in _lines(n_rows, measurements):
                tell(console, line)
    n_weights = [f"{name} {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M" for name, model in models.items()]
    tell(
        console,
        "",
        f"{device_name(pair.target.device)}, {dtype}, {torch.get_num_threads()} threads; weights, all random: "
        f"{', '.join(n_weights)}. Prompts of about {N_CONTEXT} tokens, {N_NEW_TOKENS} tokens written, means over {N_RUNS} runs "
        "in turn. Token counts include padding.",
    )


def random_judge(pair: ModelPair, shape: Shape) -> PreTrainedModel:
    """A judge with random weights and the anchor's tokenizer, in the target's dtype and on its device."""
    config = LlamaConfig(vocab_size=padded_size(pair.anchor_tokenizer), tie_word_embeddings=True, **vars(shape))
    with made_on(pair.target.device, pair.target.dtype):
        return LlamaForCausalLM(config).eval()


def warned_judge(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LLMJudge:
    """A judge that has said already that random weights give no verdict: what it writes to find out is no cost of an answer."""
    judge = LLMJudge(model, tokenizer, "safe-unsafe", probe=False)
    log = logging.getLogger(LLMJudge.__module__)
    log.disabled = True
    try:
        judge(["?"], ["!"])
    finally:
        log.disabled = False
    return judge


def conversations_of(pair: ModelPair, n_rows: int) -> list[list[Message]]:
    """One conversation for each row, whose question is a stretch of the text."""
    ids = pair.tokenizer(pair.text, add_special_tokens=False).input_ids
    starts = [n * max(1, (len(ids) - N_CONTEXT) // n_rows) for n in range(n_rows)]
    return [[{"role": "user", "content": str(pair.tokenizer.decode(ids[start : start + N_CONTEXT]))}] for start in starts]


def system_builders(
    pair: ModelPair, judge: PreTrainedModel, conversations: list[list[Message]], ours: AlignBeam
) -> dict[tuple[str, str], Build]:
    """For each kind of prompt and each system, a function that builds the system anew, given what its text is streamed to."""

    def judged_by(judge_builder: Callable[[], Judge], **settings: Any) -> Build:
        settings = {"translation": ours.translator, **settings}
        return lambda streamer: AlignBeam(
            pair.anchor,
            pair.anchor_tokenizer,
            pair.tokenizer,
            judge_builder(),  # new: its cache holds nothing of earlier runs
            conversations=conversations,
            streamer=streamer,
            **settings,
        )

    def strategy(script: list[float], **settings: Any) -> Build:
        return judged_by(lambda: ScriptedJudge(warned_judge(judge, pair.anchor_tokenizer), script), **settings)

    return {
        ("-", "plain generate"): lambda streamer: None,
        ("unflagged", "ours"): strategy([0.0]),
        ("unflagged", f"ours, judged after {EARLY}"): strategy([0.0], judge_after=EARLY),
        ("flagged", "ours"): strategy([1.0, 0.0]),
        ("unflagged", "as printed"): strategy([0.0], **PAPER),
        ("nothing passes", "ours"): strategy([1.0]),
        ("unflagged", f"ours, judge {LATENCY:g} s away"): judged_by(lambda: DistantJudge(is_remote=True)),
        ("unflagged", "the same, waited for"): judged_by(lambda: DistantJudge(is_remote=False)),
    }


@torch.no_grad()
def measure_answers(
    measurement: Measurement,
    pair: ModelPair,
    inputs: BatchEncoding,
    build: Build,
    models: dict[str, PreTrainedModel],
    seed: int,
) -> None:
    """Add one run of a system to its measurement."""
    streamer = FirstText() if len(inputs["input_ids"]) == 1 else None
    strategy = build(streamer)
    options: dict[str, Any] = {"streamer": streamer} if strategy is None else {"custom_generate": strategy}
    target: Any = pair.target
    set_seed(seed)
    with _count_forwards(models) as counts:
        start = time.perf_counter()
        target.generate(
            **inputs,
            logits_processor=[ForcedText(pair)],
            do_sample=True,
            top_k=0,
            max_new_tokens=N_NEW_TOKENS,
            min_new_tokens=N_NEW_TOKENS,
            **options,
        )
        if pair.target.device.type == "cuda":
            torch.cuda.synchronize(pair.target.device)
        measurement.seconds.append(time.perf_counter() - start)
    if streamer is not None:
        measurement.first_text.append(streamer.times[1] - start)
    measurement.forwards = counts
    measurement.n_judge_calls = 0 if strategy is None else strategy.ledger.judge_calls


@contextmanager
def _count_forwards(models: dict[str, PreTrainedModel]) -> Any:
    """Count the forwards of models inside a block."""
    counts = {name: ForwardCount() for name in models}

    def count(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            counts[name].n_forwards += 1
            counts[name].n_tokens += kwargs["input_ids"].numel()

        return hook

    hooks = [model.register_forward_pre_hook(count(name), with_kwargs=True) for name, model in models.items()]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def _lines(n_rows: int, measurements: dict[tuple[str, str], Measurement]) -> list[str]:
    """The lines of one batch size."""
    plain = measurements["-", "plain generate"]
    lines = []
    for (prompts, system), measurement in measurements.items():
        seconds, target = statistics.mean(measurement.seconds), measurement.forwards["target"]
        anchor, judge = measurement.forwards["anchor"], measurement.forwards["judge"]
        cells = [
            str(n_rows),
            prompts,
            system,
            f"{seconds:.1f}",
            f"{seconds / statistics.mean(plain.seconds):.2f}",
            f"{statistics.mean(measurement.first_text):.2f}" if measurement.first_text else "-",
            str(target.n_tokens),
            f"{target.n_tokens / plain.forwards['target'].n_tokens:.2f}",
            str(target.n_forwards),
            str(anchor.n_forwards),
            str(anchor.n_tokens),
            str(measurement.n_judge_calls),
            str(judge.n_forwards),
            str(judge.n_tokens),
        ]
        lines.append(table_row(cells))
    return lines
