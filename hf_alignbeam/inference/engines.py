"""The forwards of a batch of texts: from a key-value cache where every layer's cache can be masked, else recomputed.

Knows the kinds of layers that decoders have and what each needs to be exact. Knows ids, masks and positions. Knows no text
and no branches; `branching_cache` decides what each token sees.
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

#: Makes the context in which a model's forwards run: it turns adapters off where the anchor shares the target's weights.
Scope = Callable[[], AbstractContextManager[Any]]
#: The kinds of layers whose cached tokens can be masked one by one, and the setting that holds the window of each.
WINDOW_SETTINGS = {"full_attention": None, "sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
#: How many leaves of a row one forward should take: a leaf costs one token with a cache, and a whole text without.
N_LEAVES_CACHED, N_LEAVES_RECOMPUTED = 24, 4


class KeyValueEngine:
    """One batch of texts in a key-value cache. Every token fed takes one slot in all rows; masks and positions are explicit.

    Args:
        model: A decoder for which `can_cache` holds.
        scope: Makes the context for its forwards.
    """

    def __init__(self, model: PreTrainedModel, scope: Scope = nullcontext):
        self._model, self._scope = model, scope
        self._cache = DynamicCache()
        self._windows = windows(model)
        self._takes_masks, self._has_kinds = _takes_masks(model), bool(_layer_types(model) - {"full_attention"})
        self._device, self._dtype = input_device(model), model.dtype
        self._crops, self._cache_name = takes_argument("logits_to_keep", model), cache_argument(model)
        self.n_leaves = N_LEAVES_CACHED if self._takes_masks else 1
        self.name, self.n_positions = model.config._name_or_path or type(model).__name__, max_positions(model)
        self.n_forwards = self.n_tokens = 0

    def prefill(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Feed the prompts.

        Args:
            ids: (B, T) ids, padded on the left.
            mask: (B, T) False at padding.

        Returns:
            The logits (B, A) after each prompt.
        """
        positions = (mask.long().cumsum(-1) - 1).clamp_min(0)
        return self._run(ids, mask.long(), positions, torch.tensor([ids.shape[1] - 1]))[:, -1]

    def read(self, ids: Tensor, positions: Tensor, visible: Tensor, real: Tensor, n_chained: Sequence[int]) -> Tensor:
        """Feed the last n tokens of every row.

        Args:
            ids: (B, T) the ids in all slots, the n new ones last.
            positions: (B, T) their positions in the row's text.
            visible: (B, n, T) the slots that each new token sees, its own included.
            real: (B, n) False at padding.
            n_chained: (B,) how many of each row's new tokens, its first ones, see the new ones before them, as in one text.

        Returns:
            The logits (N, A) after each of the N real tokens, row by row.
        """
        logits = self._feed(ids, positions, visible, torch.arange(visible.shape[1]))
        return logits[real.to(logits.device)]

    def feed(self, ids: Tensor, positions: Tensor, visible: Tensor, real: Tensor) -> None:
        """Feed the last n tokens of every row as `read` does, without their logits."""
        self._feed(ids, positions, visible, torch.zeros(0, dtype=torch.long))

    def _feed(self, ids: Tensor, positions: Tensor, visible: Tensor, kept: Tensor) -> Tensor:
        n_new = visible.shape[1]
        new = positions[:, -n_new:]
        mask = self._masks(visible, positions, new) if self._takes_masks else visible.any(1).long()
        return self._run(ids[:, -n_new:], mask, new, kept)

    def select_rows(self, index: Tensor) -> None:
        """Continue row i from row `index[i]`; rows may be dropped or repeated."""
        self._cache.reorder_cache(index.to(self._device))  # type: ignore[arg-type]

    def keep(self, slots: Tensor) -> None:
        """Drop all other slots."""
        for layer in cast(list[DynamicLayer], self._cache.layers):
            keys, values = cast(tuple[Tensor, Tensor], (layer.keys, layer.values))
            index = slots.to(keys.device)
            layer.keys, layer.values = keys[:, :, index], values[:, :, index]

    def _masks(self, visible: Tensor, positions: Tensor, new: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the masks to add to the attention scores, (B, 1, n, T), one for each kind of layer."""
        masks = {}
        for kind, width in self._windows.items():
            if width is None:
                near = visible
            elif kind == "chunked_attention":
                near = visible & (new[:, :, None] // width == positions[:, None] // width)
            else:
                near = visible & (new[:, :, None] - positions[:, None] < width)
            masks[kind] = (~near[:, None]).to(self._dtype).mul_(torch.finfo(self._dtype).min).to(self._device)
        return masks if self._has_kinds else next(iter(masks.values()))

    def _run(self, ids: Tensor, mask: Tensor | dict[str, Tensor], positions: Tensor, kept: Tensor) -> Tensor:
        """Run the model over new tokens of each row; return the logits (B, n, A) after those with the indices `kept` (n,)."""
        # an index: torch 2.13 multiplies a slice by frozen weights in bfloat16 very slowly
        index = kept if hasattr(self._model, "hf_device_map") else kept.to(self._device)  # the last layer may be elsewhere
        with torch.no_grad(), self._scope():
            output = self._model(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device) if isinstance(mask, Tensor) else mask,
                position_ids=positions.to(self._device),
                use_cache=True,
                **{self._cache_name: self._cache, **({"logits_to_keep": index} if self._crops else {})},
            )
        self.n_forwards += 1
        self.n_tokens += ids.numel()
        return output.logits if self._crops else output.logits[:, kept]


class RecomputeEngine:
    """One batch of texts, recomputed from the beginning at every step: exact for every causal model.

    Texts of one length share a forward, so there is no padding, and neither masks nor positions are needed.
    """

    n_leaves = N_LEAVES_RECOMPUTED

    def __init__(self, model: PreTrainedModel, scope: Scope = nullcontext):
        self._model, self._scope = model, scope
        self._crops = takes_argument("logits_to_keep", model)
        self.name, self.n_positions = model.config._name_or_path or type(model).__name__, max_positions(model)
        self.n_forwards = self.n_tokens = 0

    def prefill(self, ids: Tensor, mask: Tensor) -> Tensor:
        """As `KeyValueEngine.prefill`."""
        return torch.stack(self.logits([row[real] for row, real in zip(ids, mask, strict=True)], [1] * len(ids)))[:, 0]

    def read(self, ids: Tensor, positions: Tensor, visible: Tensor, real: Tensor, n_chained: Sequence[int]) -> Tensor:
        """As `KeyValueEngine.read`."""
        ends: list[tuple[int, int, int]] = []  # of each text: its row, its last new token, and how many tokens count
        for row, n in enumerate(n_chained):
            columns = real[row].nonzero()[:, 0].tolist()
            ends += [(row, columns[n - 1], n)] if n else []
            ends += [(row, column, 1) for column in columns[n:]]
        return torch.cat(self.logits([ids[row][visible[row, column]] for row, column, _ in ends], [n for *_, n in ends]))

    def feed(self, ids: Tensor, positions: Tensor, visible: Tensor, real: Tensor) -> None:
        """Do nothing: there is no cache."""

    def select_rows(self, index: Tensor) -> None:
        """Do nothing: there is no cache."""

    def keep(self, slots: Tensor) -> None:
        """Do nothing: there is no cache."""

    def logits(self, texts: Sequence[Tensor], n_kept: Sequence[int]) -> list[Tensor]:
        """Return for each text the logits (n, A) after its last n tokens."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for k, text in enumerate(texts):
            by_length[len(text)].append(k)
        result: dict[int, Tensor] = {}
        for group in by_length.values():
            most = max(n_kept[k] for k in group)
            logits = self._forward(torch.stack([texts[k] for k in group]), most)
            result |= {k: part[most - n_kept[k] :] for k, part in zip(group, logits, strict=True)}
        return [result[k] for k in range(len(texts))]

    def _forward(self, ids: Tensor, n_kept: int) -> Tensor:
        with torch.no_grad(), self._scope():
            kept = {"logits_to_keep": n_kept} if self._crops else {}
            logits = self._model(input_ids=ids.to(input_device(self._model)), use_cache=False, **kept).logits
        self.n_forwards += 1
        self.n_tokens += ids.numel()
        return logits[:, -n_kept:]  # (texts, n, A)


Engine = KeyValueEngine | RecomputeEngine
#: Takes the place of `KeyValueEngine` in small batches of short texts. The installed package has one, a folder of the Hub none.
PACKED: list[type[KeyValueEngine]] = []
#: It is for batches with at most this many rows times cached tokens.
MAX_PACKED = 65_536


def can_cache(model: PreTrainedModel) -> bool:
    """Whether every layer of a decoder has a key-value cache that can be masked, as far as its config says."""
    config = model.config.get_text_config()
    if getattr(model, "_is_stateful", False) or getattr(config, "alibi", False) or not takes_argument("position_ids", model):
        return False
    if not _layer_types(model) <= set(WINDOW_SETTINGS):
        return False
    if any("local" in str(kind) for kind in getattr(config, "attention_types", None) or []):
        return False  # GPT-Neo's windows count slots
    return _takes_masks(model) or set(windows(model).values()) == {None}


def windows(model: PreTrainedModel) -> dict[str, int | None]:
    """Return the attention window of each kind of layer in tokens; None for full attention."""
    config = model.config.get_text_config()
    kinds = _layer_types(model)
    if kinds - {"full_attention"}:
        return {kind: getattr(config, setting) if setting else None for kind, setting in WINDOW_SETTINGS.items() if kind in kinds}
    width = getattr(config, "sliding_window", None)
    used = not kinds and getattr(config, "use_sliding_window", True) is not False
    return {"sliding_attention": width} if width and used else {"full_attention": None}


def max_positions(model: PreTrainedModel) -> int | None:
    """Return the number of positions of a model; None where it is unlimited."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def input_device(model: PreTrainedModel) -> torch.device:
    """Return the device that takes a model's input ids: with offloading, that of its hook instead of its weights."""
    embeddings = model.get_input_embeddings()
    device = getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None)
    return torch.device(device) if device is not None else next(embeddings.parameters()).device


def _layer_types(model: PreTrainedModel) -> set[str]:
    return set(getattr(model.config.get_text_config(), "layer_types", None) or ())


def _takes_masks(model: PreTrainedModel) -> bool:
    """Whether each token of a forward may have its own mask."""
    return getattr(model.config, "_attn_implementation", None) in ("eager", "sdpa")


def takes_argument(argument: str, model: PreTrainedModel) -> bool:
    """Whether a model's forward has an argument, under adapters and compilation too."""
    inner = getattr(model, "_orig_mod", model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner  # type: ignore[operator]
    return argument in inspect.signature(inner.forward).parameters


def cache_argument(model: PreTrainedModel) -> str:
    """The argument of a model's forward that takes its key-value cache."""
    return "cache" if takes_argument("cache", model) else "past_key_values"
