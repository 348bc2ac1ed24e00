"""How an anchor is run: from a key-value cache wherever its layers keep one that can be masked, else over the whole text.

Knows the kinds of layers that decoders have, and what each of them needs to be exact. Knows ids, masks and positions; no
text and no rows that branch (`anchor.py` decides who sees what).
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

#: A context in which an anchor's forwards run: where it shares its weights with the target, adapters are off in it.
Scope = Callable[[], AbstractContextManager[Any]]

#: The kinds of layers whose tokens can be masked one by one, and the setting that says how far each of them sees.
WINDOW_SETTINGS = {"full_attention": None, "sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}

#: How many continuations of a row one forward is worth asking for: masked, they cost one token each; read anew, a text each.
N_MASKED, N_READ_ANEW = 24, 4


class KeyValueEngine:
    """One batch of texts in a key-value cache. Every token fed takes one slot for all rows; masks and positions are explicit.

    Args:
        anchor: A decoder for which `can_cache` holds.
        scope: A context for its forwards.
    """

    def __init__(self, anchor: PreTrainedModel, scope: Scope = nullcontext):
        self._anchor = anchor
        self._scope = scope
        self._cache = DynamicCache()
        self._windows = windows(anchor)
        self._masked = _takes_masks(anchor)
        self._crops = _takes("logits_to_keep", anchor)
        self.n_leaves = N_MASKED if self._masked else 1
        self.n_positions = max_positions(anchor)
        self.n_forwards = self.n_tokens = 0

    def prefill(self, ids: Tensor, seen: Tensor) -> Tensor:
        """Feed the prompts.

        Args:
            ids: (B, T) ids, padded on the left.
            seen: (B, T) False where there is padding.

        Returns:
            The logits (B, A) after each of them.
        """
        positions = (seen.long().cumsum(-1) - 1).clamp_min(0)
        return self._run(ids, seen.long(), positions, 1)[:, -1]

    def read(self, ids: Tensor, positions: Tensor, seen: Tensor, n_real: Sequence[int], chained: bool) -> Tensor:
        """Feed the last n tokens of every row.

        Args:
            ids: (B, T) the ids in all slots, those of the n new ones last.
            positions: (B, T) their positions in the row's text.
            seen: (B, n, T) what each new token sees, itself included.
            n_real: (B,) how many of each row's new tokens count; the others fill up.
            chained: Whether each new token sees the new ones before it, so that they are one text.

        Returns:
            The logits (B, n, A) after each of them.
        """
        return self._feed(ids, positions, seen, seen.shape[1])

    def feed(self, ids: Tensor, positions: Tensor, seen: Tensor) -> None:
        """The same where nobody asks what follows."""
        self._feed(ids, positions, seen, 1)

    def _feed(self, ids: Tensor, positions: Tensor, seen: Tensor, n_kept: int) -> Tensor:
        n_new = seen.shape[1]
        new = positions[:, -n_new:]
        mask = self._masks(seen, positions, new) if self._masked else seen[:, -1].long()
        return self._run(ids[:, -n_new:], mask, new, n_kept)

    def select_rows(self, index: Tensor) -> None:
        """Make row i go on from row `index[i]`; rows may be dropped and doubled."""
        self._cache.reorder_cache(index.to(input_device(self._anchor)))  # type: ignore[arg-type]

    def keep(self, slots: Tensor) -> None:
        """Drop every slot but these."""
        for layer in cast(list[DynamicLayer], self._cache.layers):
            keys, values = cast(tuple[Tensor, Tensor], (layer.keys, layer.values))
            index = slots.to(keys.device)
            layer.keys, layer.values = keys[:, :, index], values[:, :, index]

    def _masks(self, seen: Tensor, positions: Tensor, new: Tensor) -> Tensor | dict[str, Tensor]:
        """What is added to the attention scores, (B, 1, n, T), for each kind of layer."""
        distance = new[:, :, None] - positions[:, None]  # (B, n, T)
        masks = {}
        for kind, width in self._windows.items():
            if width is None:
                near = seen
            elif kind == "chunked_attention":
                near = seen & (new[:, :, None] // width == positions[:, None] // width)
            else:
                near = seen & (distance < width)
            dtype = self._anchor.dtype
            masks[kind] = ((~near[:, None]) * torch.finfo(dtype).min).to(dtype).to(input_device(self._anchor))
        return masks if _layer_types(self._anchor) - {"full_attention"} else next(iter(masks.values()))

    def _run(self, ids: Tensor, mask: Tensor | dict[str, Tensor], positions: Tensor, n_kept: int) -> Tensor:
        device = input_device(self._anchor)
        with torch.no_grad(), self._scope():
            output = self._anchor(
                input_ids=ids.to(device),
                attention_mask=mask.to(device) if isinstance(mask, Tensor) else mask,
                position_ids=positions.to(device),
                past_key_values=self._cache,
                use_cache=True,
                **({"logits_to_keep": n_kept} if self._crops else {}),
            )
        self.n_forwards += 1
        self.n_tokens += ids.numel()
        return output.logits[:, -n_kept:]


class RecomputeEngine:
    """One batch of texts read from their beginning at every step: exact for every causal model, whatever its layers keep.

    Texts of one length share a forward, so nothing is padded, and neither masks nor positions are needed.
    """

    n_leaves = N_READ_ANEW

    def __init__(self, anchor: PreTrainedModel, scope: Scope = nullcontext):
        self._anchor = anchor
        self._scope = scope
        self._crops = _takes("logits_to_keep", anchor)
        self.n_positions = max_positions(anchor)
        self.n_forwards = self.n_tokens = 0

    def prefill(self, ids: Tensor, seen: Tensor) -> Tensor:
        """As `KeyValueEngine.prefill`."""
        return torch.stack(self._run([row[mask] for row, mask in zip(ids, seen, strict=True)], [1] * len(ids)))[:, 0]

    def read(self, ids: Tensor, positions: Tensor, seen: Tensor, n_real: Sequence[int], chained: bool) -> Tensor:
        """As `KeyValueEngine.read`."""
        places = [(row, n) for row, n_here in enumerate(n_real) for n in ([n_here - 1] if chained and n_here else range(n_here))]
        kept = [n + 1 if chained else 1 for _, n in places]
        found = self._run([ids[row][seen[row, n]] for row, n in places], kept)
        logits = found[0].new_zeros(*seen.shape[:2], found[0].shape[-1])  # (B, n, A)
        for (row, n), n_kept, part in zip(places, kept, found, strict=True):
            logits[row, n + 1 - n_kept : n + 1] = part
        return logits

    def feed(self, ids: Tensor, positions: Tensor, seen: Tensor) -> None:
        """Nothing is kept."""

    def select_rows(self, index: Tensor) -> None:
        """Nothing is kept."""

    def keep(self, slots: Tensor) -> None:
        """Nothing is kept."""

    def _run(self, texts: Sequence[Tensor], n_kept: Sequence[int]) -> list[Tensor]:
        """For each text the logits (n, A) after the last of its tokens."""
        alike: dict[int, list[int]] = defaultdict(list)
        for number, text in enumerate(texts):
            alike[len(text)].append(number)
        found: dict[int, Tensor] = {}
        for numbers in alike.values():
            most = max(n_kept[number] for number in numbers)
            logits = self._together(torch.stack([texts[number] for number in numbers]), most)
            found |= {number: part[most - n_kept[number] :] for number, part in zip(numbers, logits, strict=True)}
        return [found[number] for number in range(len(texts))]

    def _together(self, ids: Tensor, n_kept: int) -> Tensor:
        with torch.no_grad(), self._scope():
            kept = {"logits_to_keep": n_kept} if self._crops else {}
            logits = self._anchor(input_ids=ids.to(input_device(self._anchor)), use_cache=False, **kept).logits
        self.n_forwards += 1
        self.n_tokens += ids.numel()
        return logits[:, -n_kept:]  # (texts, n, A)


Engine = KeyValueEngine | RecomputeEngine


def can_cache(anchor: PreTrainedModel) -> bool:
    """Whether every layer of a decoder keeps keys and values whose use can be masked, as far as its settings tell."""
    config = anchor.config.get_text_config()
    settled = not getattr(anchor, "_is_stateful", False) and _takes("position_ids", anchor)
    if not settled or getattr(config, "alibi", False) or not _layer_types(anchor) <= set(WINDOW_SETTINGS):
        return False
    if any("local" in str(kind) for kind in getattr(config, "attention_types", None) or []):
        return False  # GPT-Neo's windows count slots
    return _takes_masks(anchor) or set(windows(anchor).values()) == {None}


def windows(anchor: PreTrainedModel) -> dict[str, int | None]:
    """How many tokens back each kind of layer sees; None for all of them."""
    config = anchor.config.get_text_config()
    kinds = _layer_types(anchor)
    if kinds - {"full_attention"}:
        return {kind: getattr(config, setting) if setting else None for kind, setting in WINDOW_SETTINGS.items() if kind in kinds}
    width = getattr(config, "sliding_window", None)
    used = not kinds and getattr(config, "use_sliding_window", True) is not False
    return {"sliding_attention": width} if width and used else {"full_attention": None}


def max_positions(anchor: PreTrainedModel) -> int | None:
    """How many positions the anchor has; None where there is no bound."""
    return getattr(anchor.config.get_text_config(), "max_position_embeddings", None)


def input_device(anchor: PreTrainedModel) -> torch.device:
    """Where an anchor takes its ids: offloaded embeddings lie on no device of their own."""
    embeddings = anchor.get_input_embeddings()
    device = getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None)
    return torch.device(device) if device is not None else next(embeddings.parameters()).device


def _layer_types(anchor: PreTrainedModel) -> set[str]:
    return set(getattr(anchor.config.get_text_config(), "layer_types", None) or ())


def _takes_masks(anchor: PreTrainedModel) -> bool:
    """Whether each token of a forward may have a mask of its own."""
    return getattr(anchor.config, "_attn_implementation", None) in ("eager", "sdpa")


def _takes(argument: str, anchor: PreTrainedModel) -> bool:
    """Whether a model's forward has an argument (adapters and compilation are looked through)."""
    inner = getattr(anchor, "_orig_mod", anchor)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner  # type: ignore[operator]
    return argument in inspect.signature(inner.forward).parameters
