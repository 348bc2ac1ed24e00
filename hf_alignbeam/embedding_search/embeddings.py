"""Prompts as a model's input embeddings: embedded, padded, and with the positions that a search may perturb.

Knows a model's embedding module and a tokenizer's template. Knows no search and no judge.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.chat.target_prompts import bytes_after_last_user
from hf_alignbeam.chat.templates import bytes_with_special_tokens
from hf_alignbeam.inference.engines import input_device

Positions = Literal["all", "user"]


@dataclass(frozen=True)
class EmbeddedPrompt:
    """One prompt.

    Attributes:
        ids: Its T token ids.
        embeds: (T, D) their embeddings, in the model's dtype and on its device.
        perturbable: (T,) bool, the positions that a search may perturb.
    """

    ids: list[int]
    embeds: Tensor
    perturbable: Tensor


class Embedder:
    """Embeds prompts as the model itself does.

    Args:
        model: A decoder whose `generate` takes `inputs_embeds`.
        tokenizer: The model's tokenizer.
        pieces: The tokenizer's `token_bytes`.
        positions: `"user"`: the words of the last user message may be perturbed, or every position if the rendered prompt does
            not hold these words as they are; `"all"`: every position.

    Raises:
        ValueError: The model does not generate from embeddings what it generates from ids.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pieces: list[bytes | None], positions: Positions
    ):
        _check_generates_from_embeds(model)
        self._model = model
        self._tokenizer = tokenizer
        self._pieces = pieces
        self._positions = positions

    @torch.no_grad()
    def embed(self, ids: Sequence[int], messages: Sequence[Message]) -> EmbeddedPrompt:
        """Embed one prompt.

        Args:
            ids: The rendered prompt, without padding.
            messages: Its conversation; a prefill is its last message.
        """
        return EmbeddedPrompt(list(ids), token_embeddings(self._model, ids), self._perturbable(ids, messages))

    def _perturbable(self, ids: Sequence[int], messages: Sequence[Message]) -> Tensor:
        if self._positions == "all":
            return torch.ones(len(ids), dtype=torch.bool)
        words = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "").strip().encode()
        after = bytes_after_last_user(self._tokenizer, self._pieces, list(messages))
        texts = [bytes_with_special_tokens(self._tokenizer, self._pieces, [i]) for i in ids]
        before, separator, rest = b"".join(texts).rpartition(after) if after else (b"", b"", b"")
        start = len(before) - len(words)
        if not separator or rest or not words or not before.endswith(words):
            return torch.ones(len(ids), dtype=torch.bool)
        ends = torch.tensor([len(text) for text in texts]).cumsum(0)
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        return (ends > start) & (starts < start + len(words))


def token_embeddings(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """The (T, D) embeddings of ids by the model's own module, scaled if the model family scales them."""
    module: Any = model.get_input_embeddings()
    return torch.as_tensor(module(torch.tensor(ids, dtype=torch.long, device=input_device(model))))


def left_padded(embeds: Sequence[Tensor]) -> dict[str, Tensor]:
    """Batch prompts of any lengths.

    Args:
        embeds: (T, D) of each prompt.

    Returns:
        `inputs_embeds` (B, T, D), zeros at padding, and `attention_mask` (B, T).
    """
    width = max(len(prompt) for prompt in embeds)
    batch = embeds[0].new_zeros(len(embeds), width, embeds[0].shape[-1])
    mask = torch.zeros(len(embeds), width, dtype=torch.long, device=batch.device)
    for row, prompt in enumerate(embeds):
        batch[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return {"inputs_embeds": batch, "attention_mask": mask}


def padded_ids(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Batch ids in the same way: `input_ids` (B, T), `pad` at padding, and `attention_mask` (B, T)."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def _check_generates_from_embeds(model: PreTrainedModel) -> None:
    """Try on the model itself whether it answers embeddings as it answers ids, and whether they can be perturbed."""
    name = type(model).__name__
    if model.training:
        raise ValueError(f"`model` must be in evaluation mode, but {name} is training. Call `model.eval()`.")
    config: Any = model.config
    if getattr(config.get_text_config(), "hidden_size_per_layer_input", None):
        raise ValueError(
            f"`model` must read nothing but its input embeddings, but every layer of {name} also looks up the token ids, which "
            "`generate` does not pass on with embeddings. Use AlignBeam for it."
        )
    module: Any = model.get_input_embeddings()
    ids = torch.arange(3, device=input_device(model))[None] % module.weight.shape[0]
    embeds = module(ids)
    noise = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(0)).to(embeds)

    plain = _without_generation_settings(model)

    def first_logits(**inputs: Tensor) -> Tensor:
        one_token = GenerationConfig(
            max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True, pad_token_id=0
        )
        output = type(plain).generate(plain, **inputs, attention_mask=torch.ones_like(ids), generation_config=one_token)
        return torch.as_tensor(output.logits[0]).float()

    try:
        by_ids, by_embeds = first_logits(input_ids=ids), first_logits(inputs_embeds=embeds)
        first_logits(inputs_embeds=embeds + embeds.norm(dim=-1).mean() / embeds.shape[-1] ** 0.5 * noise)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise ValueError(f"`model` must generate from `inputs_embeds`, but {name} does not: {error}") from error
    # the same numbers by two paths: a difference beyond rounding in half precision means another function
    if not torch.allclose(by_ids, by_embeds, rtol=1e-2, atol=1e-2 * float(by_ids.std())):
        raise ValueError(
            f"`model` must read its input embeddings as it reads its ids, but the logits of {name} differ by up to "
            f"{float((by_ids - by_embeds).abs().max()):.3g}. Use AlignBeam for it."
        )


def _without_generation_settings(model: Any) -> Any:
    """A copy that shares a model's weights, and of what its adapters wrap, with generation configurations that set nothing."""
    plain = copy.copy(model)
    plain.generation_config = GenerationConfig()
    plain._modules = {
        name: _without_generation_settings(child) if getattr(child, "generation_config", None) else child
        for name, child in model._modules.items()
    }
    return plain
