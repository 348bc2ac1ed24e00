"""Prompts as a model's input embeddings: rendered, embedded, padded, and told apart by the model they belong to.

Knows a model's embedding module and a tokenizer's template. Knows no search and no judge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.chat.templates import bytes_after_last_user, bytes_with_special_tokens
from hf_alignbeam.inference.engines import input_device

Positions = Literal["all", "user"]


@dataclass(frozen=True)
class Embedded:
    """One prompt.

    Attributes:
        ids: T of them.
        embeds: (T, D) what the model makes of them, in its dtype, on its device.
        moves: (T,) which positions may be perturbed.
    """

    ids: list[int]
    embeds: Tensor
    moves: Tensor


class Embedder:
    """Embeds prompts as a model itself does.

    Args:
        model: A decoder whose `generate` takes `inputs_embeds`.
        tokenizer: Its tokenizer.
        tokens: Its `token_bytes`.
        positions: `"user"`: the last user's words may be perturbed, or every position where a template or a tokenizer wrote them
            otherwise than they were said; `"all"`: every position.

    Raises:
        ValueError: The model does not generate from embeddings what it generates from ids.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: list[bytes | None], positions: Positions
    ):
        if positions not in ("all", "user"):
            raise ValueError(f'`positions` must be "all" or "user", got {positions!r}.')
        _check_takes_embeds(model)
        self._model = model
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._positions = positions

    @torch.no_grad()
    def embed(self, ids: Sequence[int], messages: Sequence[Message]) -> Embedded:
        """Embed one prompt.

        Args:
            ids: Its ids, without padding.
            messages: What it says, the start of an answer as an answer at the end.
        """
        return Embedded(list(ids), embedded(self._model, ids), self._moves(ids, messages))

    def _moves(self, ids: Sequence[int], messages: Sequence[Message]) -> Tensor:
        if self._positions == "all":
            return torch.ones(len(ids), dtype=torch.bool)
        words = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "").strip().encode()
        after = bytes_after_last_user(self._tokenizer, self._tokens, list(messages))
        pieces = [bytes_with_special_tokens(self._tokenizer, self._tokens, [i]) for i in ids]
        before, found, rest = b"".join(pieces).rpartition(after) if after else (b"", b"", b"")
        start = len(before) - len(words)
        if not found or rest or not words or not before.endswith(words):
            return torch.ones(len(ids), dtype=torch.bool)
        ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0)
        begins = torch.cat([ends.new_zeros(1), ends[:-1]])
        return (ends > start) & (begins < start + len(words))


def embedded(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """What a model's own embedding module makes of ids: (T, D), scaled where the family scales."""
    table: Any = model.get_input_embeddings()
    return torch.as_tensor(table(torch.tensor(ids, dtype=torch.long, device=input_device(model))))


def left_padded(embeds: Sequence[Tensor]) -> dict[str, Tensor]:
    """Prompts of any lengths as one batch.

    Args:
        embeds: (T, D) each.

    Returns:
        `inputs_embeds` (B, T, D), zeros where there is padding, and `attention_mask` (B, T).
    """
    width = max(len(each) for each in embeds)
    batch = embeds[0].new_zeros(len(embeds), width, embeds[0].shape[-1])
    mask = torch.zeros(len(embeds), width, dtype=torch.long, device=batch.device)
    for row, each in enumerate(embeds):
        batch[row, width - len(each) :] = each
        mask[row, width - len(each) :] = 1
    return {"inputs_embeds": batch, "attention_mask": mask}


def padded_ids(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """The same of ids: `input_ids` (B, T), `pad` where there is padding, and `attention_mask` (B, T)."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def _check_takes_embeds(model: PreTrainedModel) -> None:
    """Try on the model itself whether embeddings are as good as ids, and whether they may be perturbed."""
    name = type(model).__name__
    if model.training:
        raise ValueError(f"`model` must be in evaluation mode, but {name} is training. Call `model.eval()`.")
    config: Any = model.config
    if getattr(config.get_text_config(), "hidden_size_per_layer_input", None):
        raise ValueError(
            f"`model` must read nothing but its input embeddings, but {name} also looks its tokens up in every layer, which "
            "`generate` does not hand on. Use AlignBeam for it."
        )
    table: Any = model.get_input_embeddings()
    ids = torch.arange(3, device=input_device(model))[None] % table.weight.shape[0]
    embeds = table(ids)
    noise = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(0)).to(embeds)

    def logits(**inputs: Tensor) -> Tensor:
        once = GenerationConfig(
            max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True, pad_token_id=0
        )
        kind: Any = type(model)
        made = kind.generate(model, **inputs, attention_mask=torch.ones_like(ids), generation_config=once)
        return torch.as_tensor(made.logits[0]).float()

    try:
        by_ids, by_embeds = logits(input_ids=ids), logits(inputs_embeds=embeds)
        logits(inputs_embeds=embeds + embeds.norm(dim=-1).mean() / embeds.shape[-1] ** 0.5 * noise)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise ValueError(f"`model` must generate from `inputs_embeds`, but {name} does not: {error}") from error
    # the same numbers by two paths: what differs by more than rounding in half precision is another function
    if not torch.allclose(by_ids, by_embeds, rtol=1e-2, atol=1e-2 * float(by_ids.std())):
        raise ValueError(
            f"`model` must read its input embeddings as it reads its ids, but of {name} the logits differ by up to "
            f"{float((by_ids - by_embeds).abs().max()):.3g}. Use AlignBeam for it."
        )
