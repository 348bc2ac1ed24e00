"""`alignbeam bench --speed`: what a steered step costs beyond its forwards, on models of realistic shape.

The weights are random, so what they say is replaced by how often one token follows another in a real text (`Follows`);
their forwards cost what they cost. Answers are forced along the text, so that the byte paths are the usual ones.
"""

import ast
import copy
import inspect
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from transformers import (
    AutoTokenizer,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_alignbeam.commands import told_plainly
from hf_alignbeam.processor import AnchorLogitsProcessor
from hf_alignbeam.testbed.measure import encode

#: Of both models, so that any tokenizer will do.
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}{% if add_generation_prompt %}reply:{% endif %}"
)
#: What has a description in Python's own modules, and how long one has to be to be read as prose.
DESCRIBED = (ast.Module, ast.ClassDef, ast.FunctionDef)
N_CHARACTERS = 400
BATCH_SIZES = (1, 4)
CONTEXTS = (128, 1024)
N_STEPS = 24
#: The systems that ours is held against take longer, and the same at every step.
N_STEPS_OF_OTHERS = 4
#: Of the tokens that follow another, so many are remembered; the paper's bridge looks at as many of the anchor's.
N_FOLLOWING = N_BRIDGED = 50
#: The share of the mass that goes to whatever the text holds anywhere, and a tenth of it to every token alike.
TAIL = 0.1
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


@dataclass(frozen=True)
class Shape:
    """A model's size; the defaults are those of Qwen3-0.6B."""

    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128


TARGET = Shape()
#: Half the target's weights, most of the rest in the vocabulary.
ANCHOR = Shape(
    hidden_size=896, intermediate_size=2432, num_hidden_layers=20, num_attention_heads=14, num_key_value_heads=2, head_dim=64
)


@dataclass
class Sides:
    """Both models with their tokenizers, and the text that they are forced along, in the target's tokens."""

    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anchor: PreTrainedModel
    anchor_tokenizer: PreTrainedTokenizerBase
    text: str


class Follows(torch.nn.Module):
    """How often one token follows another in a text, as logits: a tenth of the mass is spread as the text's tokens are.

    Args:
        tokenizer: Whose tokens.
        text: What is counted.
        width: How many logits there are.
    """

    ids: Tensor  # (known + 1, N_FOLLOWING)
    logp: Tensor  # (known + 1, N_FOLLOWING)
    place: Tensor  # (width,)
    tail: Tensor  # (width,)

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, width: int):
        super().__init__()
        written = tokenizer(text, add_special_tokens=False).input_ids
        following: dict[int, Counter[int]] = defaultdict(Counter)
        for before, after in pairwise(written):
            following[before][after] += 1
        rows = [Counter(written), *following.values()]  # the first for what was never seen
        ids = torch.zeros(len(rows), N_FOLLOWING, dtype=torch.long)
        logp = torch.full((len(rows), N_FOLLOWING), -torch.inf)
        for n, row in enumerate(rows):
            common = row.most_common(N_FOLLOWING)
            ids[n, : len(common)] = torch.tensor([i for i, _ in common])
            logp[n, : len(common)] = torch.tensor([count / row.total() for _, count in common]).log()
        tail = torch.full((width,), TAIL / 10 / width)
        tail[list(rows[0])] += 0.9 * TAIL * torch.tensor(list(rows[0].values())) / rows[0].total()
        place = torch.zeros(width, dtype=torch.long)
        place[list(following)] = torch.arange(1, len(rows))
        self.register_buffer("tail", tail.log())
        self.register_buffer("ids", ids)
        self.register_buffer("logp", logp)
        self.register_buffer("place", place)

    def forward(self, last: Tensor, logits: Tensor) -> Tensor:
        """The logits (..., width) after each id in `last` (...), instead of those of random weights."""
        place = self.place[last]
        ids = self.ids[place]
        likely = torch.logaddexp(self.logp[place] + math.log(1.0 - TAIL), self.tail[ids])
        return self.tail.to(logits.dtype).expand_as(logits).scatter(-1, ids, likely.to(logits.dtype))


class ReadingLlama(LlamaForCausalLM):
    """A Llama that says what follows in a text, whatever its weights say."""

    follows: Follows

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        logits_to_keep: int | Tensor = 0,
        **inputs: Any,
    ) -> Any:
        """As Llama's own."""
        output = super().forward(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            logits_to_keep=logits_to_keep,
            **inputs,
        )
        assert input_ids is not None
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        output.logits = self.follows(input_ids[:, kept], output.logits)
        return output


class RecomputingLlama(ReadingLlama):
    """The same, said to keep a state that nobody can go back to: its whole text is read at every step."""

    _is_stateful = True


class Naive(LogitsProcessor):
    """AlignBeam's bridge step by step: decode the answer, encode it for the anchor, decode and encode its likeliest tokens."""

    def __init__(self, sides: Sides, conversations: list[list[dict[str, str]]], alpha: float):
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
    with told_plainly():
        sides = _sides(tokenizer, anchor_tokenizer, text, torch.device(device), as_dtype(dtype), *shapes)
    for line in ("| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
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
                    "naive bridge": Naive(sides, conversations, guard.alpha),
                    "anchor recomputed": recomputing.with_conversations(conversations),
                }
                for name, processor in systems.items():
                    n_steps = N_STEPS if name.startswith("ours") else N_STEPS_OF_OTHERS
                    cells = _measured(sides, conversations, answers[:, : n_steps + 1], processor)
                    line = "| " + " | ".join([name, str(n_rows), str(n_context), *cells]) + " |"
                    console.print(line, soft_wrap=True, markup=False, highlight=False)
                    progress.advance(task)
    n_target, n_anchor = (sum(p.numel() for p in m.parameters()) / 1e6 for m in (sides.target, sides.anchor))
    name = torch.cuda.get_device_name(sides.target.device) if sides.target.device.type == "cuda" else "CPU"
    console.print(
        f"\n{name}, {dtype}, {torch.get_num_threads()} threads; target {n_target:.0f} M weights, anchor {n_anchor:.0f} M, both "
        f"random. Means over {N_STEPS} steps after the first ({N_STEPS_OF_OTHERS} for the systems ours is held against). Own "
        "share: what is neither model's forward, of both models' forwards; one translation: the part of it that a translation "
        "takes which is asked for again."
    )


def _sides(
    tokenizer: str,
    anchor_tokenizer: str,
    text: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    shape: Shape,
    anchor: Shape,
) -> Sides:
    torch.manual_seed(0)
    own, safe = AutoTokenizer.from_pretrained(tokenizer, padding_side="left"), AutoTokenizer.from_pretrained(anchor_tokenizer)
    for some in (own, safe):
        some.chat_template = TEMPLATE
        some.pad_token = some.pad_token or some.eos_token
    written = text.read_text() if text is not None else standard_library_text()
    with torch.device(device):
        target = Qwen3ForCausalLM(Qwen3Config(vocab_size=padded_size(own), tie_word_embeddings=True, **vars(shape)))
        model = ReadingLlama(LlamaConfig(vocab_size=padded_size(safe), tie_word_embeddings=True, **vars(anchor)))
    model.follows = Follows(safe, written, padded_size(safe)).to(device)
    for network in (target, model):
        network.to(dtype=dtype).eval()  # type: ignore[call-arg]
    return Sides(target, own, model, safe, written)


def standard_library_text() -> str:
    """Real text that every installation has: the descriptions in Python's own modules."""
    found = []
    for file in sorted(Path(inspect.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, DESCRIBED):
                found.append(ast.get_docstring(node) or "")
    return "\n\n".join(text for text in found if len(text) > N_CHARACTERS)


def as_dtype(name: str) -> torch.dtype:
    """A floating-point type of torch's by its name.

    Raises:
        ValueError: There is none of that name.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"`dtype` must name one of torch's floating-point types, got {name!r}. Use float32 or bfloat16.")
    return dtype


def padded_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """A vocabulary's size as models have it: a multiple of 128."""
    return -(-len(tokenizer) // 128) * 128


def _forced(sides: Sides, n_rows: int, n_context: int) -> tuple[list[list[dict[str, str]]], Tensor]:
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
    sides: Sides, conversations: list[list[dict[str, str]]], answers: Tensor, processor: LogitsProcessor
) -> Sequence[str]:
    follows = Follows(sides.tokenizer, sides.text, padded_size(sides.tokenizer)).to(answers.device)
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
        scores = follows(ids[:, -1], logits.float())
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
    follower.translate(scores.softmax(-1), list(range(len(scores))))
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
