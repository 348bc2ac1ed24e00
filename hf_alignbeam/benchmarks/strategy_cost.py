"""`alignbeam bench --decoding`: what the strategy costs beside plain `generate`, on models of realistic shape.

The target says what follows in a real text, sampled, so that candidates differ. What a judge with random weights says decides
nothing: its forward is run, and then the script says what it said.
"""

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
from transformers import BatchEncoding, LlamaConfig, LlamaForCausalLM, LogitsProcessor, PreTrainedModel, set_seed

from hf_alignbeam.benchmarks.realistic_models import ANCHOR, TARGET, ModelPair, Shape, as_dtype, build_sides, padded_size
from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.console import report_user_errors, table_head, table_row, tell
from hf_alignbeam.decoding.strategy import AlignBeam
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.judges.llm_judge import LLMJudge
from hf_alignbeam.presets.published import PAPER

#: A tenth of the target's weights.
JUDGE = Shape(
    hidden_size=320, intermediate_size=960, num_hidden_layers=12, num_attention_heads=5, num_key_value_heads=5, head_dim=64
)
BATCH_SIZES = (1, 4)
N_CONTEXT = 128
N_NEW_TOKENS = 128
#: Every system is run so often, in turn; the mean counts.
N_RUNS = 2
COLUMNS = (
    "batch",
    "prompts",
    "system",
    "seconds",
    "times plain",
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
    """The target's scores replaced by what follows its last token in a text."""

    def __init__(self, sides: ModelPair):
        self._follows = sides.follows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """As `generate` calls it."""
        return cast(Tensor, self._follows(input_ids[:, -1], scores))


class Scripted:
    """A judge that is really asked, and then says what a script has for its call; the last entry goes for all later ones."""

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


@dataclass
class ForwardCount:
    """What a model was fed."""

    n_forwards: int = 0
    n_tokens: int = 0


@dataclass
class Measured:
    """One system on one batch."""

    seconds: list[float] = field(default_factory=list)
    fed: dict[str, ForwardCount] = field(default_factory=dict)
    n_calls: int = 0


def run(
    tokenizer: str,
    anchor_tokenizer: str,
    text: Path | None,
    device: str,
    dtype: str,
    shapes: tuple[Shape, Shape, Shape] = (TARGET, ANCHOR, JUDGE),
) -> None:
    """Print a line for each system, batch and kind of prompt."""
    console = Console(width=220)
    with report_user_errors():
        sides = build_sides(tokenizer, anchor_tokenizer, text, torch.device(device), as_dtype(dtype), *shapes[:2])
    judge = _judge(sides, torch.device(device), as_dtype(dtype), shapes[2])
    ours = AlignBeam(sides.anchor, sides.anchor_tokenizer, sides.tokenizer, lambda c, r: torch.zeros(len(r)))
    models = {"target": sides.target, "anchor": sides.anchor, "judge": judge}
    tell(console, *table_head(COLUMNS))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("answers", total=len(BATCH_SIZES) * N_RUNS * 5)
        for n_rows in BATCH_SIZES:
            conversations = _conversations(sides, n_rows)
            inputs = encode(conversations, sides.tokenizer).to(sides.target.device)
            systems = _systems(sides, judge, conversations, ours)
            measured = {name: Measured() for name in systems}
            for n_run in range(N_RUNS):
                for name, made in systems.items():
                    _measure(measured[name], sides, inputs, made(), models, n_run)
                    progress.advance(task)
            for line in _lines(n_rows, measured):
                tell(console, line)
    n_weights = [f"{name} {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M" for name, model in models.items()]
    where = torch.cuda.get_device_name(sides.target.device) if sides.target.device.type == "cuda" else "CPU"
    tell(
        console,
        "",
        f"{where}, {dtype}, {torch.get_num_threads()} threads; weights, all random: {', '.join(n_weights)}. Prompts of about "
        f"{N_CONTEXT} tokens, {N_NEW_TOKENS} tokens written, means over {N_RUNS} runs in turn. Tokens count with padding.",
    )


def _judge(sides: ModelPair, device: torch.device, dtype: torch.dtype, shape: Shape) -> PreTrainedModel:
    with torch.device(device):
        config = LlamaConfig(vocab_size=padded_size(sides.anchor_tokenizer), tie_word_embeddings=True, **vars(shape))
        network: Any = LlamaForCausalLM(config)
    return cast(PreTrainedModel, network.to(dtype=dtype).eval())


def _conversations(sides: ModelPair, n_rows: int) -> list[list[Message]]:
    ids = sides.tokenizer(sides.text, add_special_tokens=False).input_ids
    starts = [n * max(1, (len(ids) - N_CONTEXT) // n_rows) for n in range(n_rows)]
    return [[{"role": "user", "content": str(sides.tokenizer.decode(ids[start : start + N_CONTEXT]))}] for start in starts]


def _systems(
    sides: ModelPair, judge: PreTrainedModel, conversations: list[list[Message]], ours: AlignBeam
) -> dict[tuple[str, str], Callable[[], AlignBeam | None]]:
    """By kind of prompt and name, what makes a fresh system: the first call flags, or none does."""

    def strategy(script: list[float], **settings: Any) -> Callable[[], AlignBeam]:
        settings = {"translation": ours.translator, **settings}
        return lambda: AlignBeam(
            sides.anchor,
            sides.anchor_tokenizer,
            sides.tokenizer,
            Scripted(LLMJudge(judge, sides.anchor_tokenizer), script),  # a new one, which remembers no earlier run
            conversations=conversations,
            **settings,
        )

    return {
        ("-", "plain generate"): lambda: None,
        ("unflagged", "ours"): strategy([0.0]),
        ("flagged", "ours"): strategy([1.0, 0.0]),
        ("unflagged", "as printed"): strategy([0.0], **PAPER),
        ("nothing passes", "ours"): strategy([1.0]),
    }


@torch.no_grad()
def _measure(
    measured: Measured,
    sides: ModelPair,
    inputs: BatchEncoding,
    strategy: AlignBeam | None,
    models: dict[str, PreTrainedModel],
    seed: int,
) -> None:
    how: dict[str, Any] = {} if strategy is None else {"custom_generate": strategy}
    target: Any = sides.target
    set_seed(seed)
    with _counted(models) as fed:
        began = time.perf_counter()
        target.generate(
            **inputs,
            logits_processor=[ForcedText(sides)],
            do_sample=True,
            top_k=0,
            max_new_tokens=N_NEW_TOKENS,
            min_new_tokens=N_NEW_TOKENS,
            **how,
        )
        if sides.target.device.type == "cuda":
            torch.cuda.synchronize(sides.target.device)
        measured.seconds.append(time.perf_counter() - began)
    measured.fed = fed
    measured.n_calls = 0 if strategy is None else strategy.ledger.judge_calls


@contextmanager
def _counted(models: dict[str, PreTrainedModel]) -> Any:
    """Count what models are fed for the length of a block."""
    fed = {name: ForwardCount() for name in models}

    def count(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            fed[name].n_forwards += 1
            fed[name].n_tokens += kwargs["input_ids"].numel()

        return hook

    hooks = [model.register_forward_pre_hook(count(name), with_kwargs=True) for name, model in models.items()]
    try:
        yield fed
    finally:
        for hook in hooks:
            hook.remove()


def _lines(n_rows: int, measured: dict[tuple[str, str], Measured]) -> list[str]:
    plain = measured["-", "plain generate"]
    lines = []
    for (prompts, system), each in measured.items():
        seconds, tokens = statistics.mean(each.seconds), each.fed["target"].n_tokens
        cells = [
            str(n_rows),
            prompts,
            system,
            f"{seconds:.1f}",
            f"{seconds / statistics.mean(plain.seconds):.2f}",
            str(tokens),
            f"{tokens / plain.fed['target'].n_tokens:.2f}",
            str(each.fed["target"].n_forwards),
            str(each.fed["anchor"].n_forwards),
            str(each.fed["anchor"].n_tokens),
            str(each.n_calls),
            str(each.fed["judge"].n_forwards),
            str(each.fed["judge"].n_tokens),
        ]
        lines.append(table_row(cells))
    return lines
