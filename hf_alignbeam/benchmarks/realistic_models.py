"""Models of realistic shape with random weights, to measure time and memory with.

A forward costs what it costs with trained weights; its logits are replaced by bigram counts of a real text (`BigramLogits`), so
that the anchor's likeliest tokens are words. Knows no guard and measures nothing.
"""

import ast
import inspect
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_alignbeam.evaluation.devices import load_padding_tokenizer
from hf_alignbeam.evaluation.files.text import read_text

#: The chat template of both models, so that any tokenizer will do.
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}{% if add_generation_prompt %}reply:{% endif %}"
)
#: What has a docstring in Python's own modules, and the length from which a docstring counts as prose.
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
MIN_CHARACTERS = 400
#: For each token, how many of its successors are counted.
N_FOLLOWING = 50
#: The probability mass spread over all tokens: nine tenths by their frequency in the text, one tenth uniformly.
BACKOFF = 0.1


@dataclass(frozen=True)
class Shape:
    """A model's size, under the names of transformers' configurations; the defaults are those of Qwen3-0.6B."""

    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128


TARGET_SHAPE = Shape()
#: About half the target's weights.
ANCHOR_SHAPE = Shape(
    hidden_size=896, intermediate_size=2432, num_hidden_layers=20, num_attention_heads=14, num_key_value_heads=2, head_dim=64
)


@dataclass
class ModelPair:
    """Target and anchor with their tokenizers, the text that answers are forced along, and the target's bigram logits."""

    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anchor: PreTrainedModel
    anchor_tokenizer: PreTrainedTokenizerBase
    text: str
    bigrams: "BigramLogits"


class BigramLogits(torch.nn.Module):
    """Bigram counts of a text as logits: how often one token follows another, backed off to how often it occurs at all.

    Args:
        tokenizer: The tokenizer whose tokens are counted.
        text: The text.
        width: The number of logits, at least the tokenizer's size.
    """

    ids: Tensor  # (known + 1, N_FOLLOWING)
    logp: Tensor  # (known + 1, N_FOLLOWING)
    row_of: Tensor  # (width,)
    backoff: Tensor  # (width,)

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, width: int):
        super().__init__()
        written = tokenizer(text, add_special_tokens=False).input_ids
        following: dict[int, Counter[int]] = defaultdict(Counter)
        for before, after in pairwise(written):
            following[before][after] += 1
        rows = [Counter(written), *following.values()]  # the first for tokens that are not in the text
        ids = torch.zeros(len(rows), N_FOLLOWING, dtype=torch.long)
        logp = torch.full((len(rows), N_FOLLOWING), -torch.inf)
        for n, row in enumerate(rows):
            common = row.most_common(N_FOLLOWING)
            ids[n, : len(common)] = torch.tensor([i for i, _ in common])
            logp[n, : len(common)] = torch.tensor([count / row.total() for _, count in common]).log()
        backoff = torch.full((width,), BACKOFF / 10 / width)
        backoff[list(rows[0])] += 0.9 * BACKOFF * torch.tensor(list(rows[0].values())) / rows[0].total()
        row_of = torch.zeros(width, dtype=torch.long)
        row_of[list(following)] = torch.arange(1, len(rows))
        self.register_buffer("backoff", backoff.log())
        self.register_buffer("ids", ids)
        self.register_buffer("logp", logp)
        self.register_buffer("row_of", row_of)

    def forward(self, last: Tensor, logits: Tensor) -> Tensor:
        """The logits (..., width) after each id in `last` (...), in the shape and dtype of those that they replace."""
        rows = self.row_of[last]
        ids = self.ids[rows]
        likely = torch.logaddexp(self.logp[rows] + math.log(1.0 - BACKOFF), self.backoff[ids])
        return self.backoff.to(logits.dtype).expand_as(logits).scatter(-1, ids, likely.to(logits.dtype))


class BigramLlama(LlamaForCausalLM):
    """A Llama whose forward runs in full and whose logits are then replaced by bigram logits."""

    bigrams: BigramLogits

    @wraps(LlamaForCausalLM.forward)  # its signature is read by `generate` and by engines
    def forward(  # type: ignore[override]
        self, input_ids: Tensor, logits_to_keep: int | Tensor = 0, **inputs: Any
    ) -> Any:
        """As Llama's own."""
        output = super().forward(input_ids, logits_to_keep=logits_to_keep, **inputs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        output.logits = self.bigrams(input_ids[:, kept], output.logits)
        return output


class RecomputingLlama(BigramLlama):
    """The same, declared to have a state that cannot be rolled back: its engine recomputes the whole text at every step."""

    _is_stateful = True


def build_pair(
    tokenizer: str,
    anchor_tokenizer: str,
    text: Path | None,
    device: str,
    dtype: str,
    target_shape: Shape,
    anchor_shape: Shape,
) -> ModelPair:
    """Target and anchor with random weights, and the bigram logits of a text.

    Args:
        tokenizer: The target's tokenizer, a folder or a Hub id.
        anchor_tokenizer: The anchor's tokenizer.
        text: A file with the text; None: the docstrings of Python's own modules.
        device: Where both models go, as torch names it.
        dtype: The dtype of their weights, as torch names it.
        target_shape: The target's size.
        anchor_shape: The anchor's size.

    Raises:
        ValueError: torch has no floating-point type of that name.
    """
    place, weights_dtype = torch.device(device), as_dtype(dtype)
    torch.manual_seed(0)
    target_tokenizer, safe_tokenizer = load_tokenizer(tokenizer), load_tokenizer(anchor_tokenizer)
    content = read_text(text) if text is not None else standard_library_text()
    target_size, anchor_size = padded_size(target_tokenizer), padded_size(safe_tokenizer)
    with made_on(place, weights_dtype):
        target = new_target(target_tokenizer, target_shape)
        anchor = BigramLlama(LlamaConfig(vocab_size=anchor_size, tie_word_embeddings=True, **vars(anchor_shape)))
    anchor.bigrams = BigramLogits(safe_tokenizer, content, anchor_size).to(place)
    bigrams = BigramLogits(target_tokenizer, content, target_size).to(place)
    return ModelPair(target.eval(), target_tokenizer, anchor.eval(), safe_tokenizer, content, bigrams)


@contextmanager
def made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Make the parameters of a block's models on a device and in a dtype: in 32 bits they would first take twice the memory."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(default)


def device_name(device: torch.device) -> str:
    """What a table calls a device: the name of the card, or CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer by folder or Hub id, with the chat template of both models."""
    tokenizer = load_padding_tokenizer(name)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def new_target(tokenizer: PreTrainedTokenizerBase, shape: Shape) -> PreTrainedModel:
    """A target of Qwen3's architecture with random weights."""
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=padded_size(tokenizer), tie_word_embeddings=True, **vars(shape)))


def standard_library_text() -> str:
    """Real text that every installation has: the long docstrings of Python's own modules."""
    docstrings = []
    for file in sorted(Path(inspect.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, DOCUMENTED):
                docstrings.append(ast.get_docstring(node) or "")
    return "\n\n".join(text for text in docstrings if len(text) > MIN_CHARACTERS)


def as_dtype(name: str) -> torch.dtype:
    """A floating-point type of torch by name.

    Raises:
        ValueError: torch has no floating-point type of that name.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"`dtype` must name one of torch's floating-point types, got {name!r}. Use float32 or bfloat16.")
    return dtype


def padded_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """The vocabulary size of a model for a tokenizer: the next multiple of 128."""
    return -(-len(tokenizer) // 128) * 128
