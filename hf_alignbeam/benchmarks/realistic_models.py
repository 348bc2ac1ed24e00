"""Models of realistic shape with random weights, which say what follows in a real text: for times and memory.

Their forwards cost what they cost; what random weights say is replaced by how often one token follows another (`Follows`),
so that the anchor's likeliest tokens are words. Knows no guard and measures nothing.
"""

import ast
import inspect
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
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

#: Of both models, so that any tokenizer will do.
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}{% if add_generation_prompt %}reply:{% endif %}"
)
#: What has a description in Python's own modules, and how long one has to be to be read as prose.
DESCRIBED = (ast.Module, ast.ClassDef, ast.FunctionDef)
N_CHARACTERS = 400
#: Of the tokens that follow another, so many are remembered.
N_FOLLOWING = 50
#: The share of the mass that goes to whatever the text holds anywhere, and a tenth of it to every token alike.
TAIL = 0.1


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
class ModelPair:
    """Both models with their tokenizers, the text that they are forced along, and what the target says along it."""

    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anchor: PreTrainedModel
    anchor_tokenizer: PreTrainedTokenizerBase
    text: str
    follows: "Follows"


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


def build_sides(
    tokenizer: str,
    anchor_tokenizer: str,
    text: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    shape: Shape,
    anchor: Shape,
) -> ModelPair:
    """Both models with random weights, and a text for them to follow (Python's own documentation by default).

    Args:
        tokenizer: The target's, a folder or a Hub id.
        anchor_tokenizer: The anchor's.
        text: A file.
        device: Where both models go.
        dtype: Of their weights.
        shape: The target's.
        anchor: The anchor's.
    """
    torch.manual_seed(0)
    own, safe = load_tokenizer(tokenizer), load_tokenizer(anchor_tokenizer)
    written = text.read_text() if text is not None else standard_library_text()
    with torch.device(device):
        target = new_target(own, shape)
        model = ReadingLlama(LlamaConfig(vocab_size=padded_size(safe), tie_word_embeddings=True, **vars(anchor)))
    model.follows = Follows(safe, written, padded_size(safe)).to(device)
    follows = Follows(own, written, padded_size(own)).to(device)
    for network in (target, model):
        network.to(dtype=dtype).eval()  # type: ignore[call-arg]
    return ModelPair(target, own, model, safe, written, follows)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer by its folder or Hub id, with the template of both models."""
    tokenizer = load_padding_tokenizer(name)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def new_target(tokenizer: PreTrainedTokenizerBase, shape: Shape) -> PreTrainedModel:
    """A target with random weights."""
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=padded_size(tokenizer), tie_word_embeddings=True, **vars(shape)))


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
