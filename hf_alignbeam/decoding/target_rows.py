"""TargetRows: the target's side of some rows of a call, stepped as transformers' own loop steps them, branched and cropped.

Knows the model's inputs and its KV cache. Knows no scores, no text and no judge.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from hf_alignbeam.utils.generation_modes import BY_TOKEN, CACHES


@dataclass
class TargetCost:
    """Forward passes of the target, and the tokens fed in them over all rows."""

    n_forwards: int = 0
    n_tokens: int = 0


class TargetRows:
    """Rows of equal length, and everything that the model needs to continue them.

    Args:
        model: The target.
        input_ids: (rows, length) prompts; of length 0 where the call has `inputs_embeds`.
        generation_config: The call's, as `generate` prepared it.
        model_kwargs: The model's other inputs, as `generate` prepared them.
    """

    def __init__(
        self, model: PreTrainedModel, input_ids: Tensor, generation_config: GenerationConfig, model_kwargs: dict[str, Any]
    ):
        self.input_ids = input_ids
        #: The cost of these rows and of all that are branched from them.
        self.cost = TargetCost()
        self._model: Any = model
        self._config = generation_config
        self._kwargs = dict(model_kwargs)
        self._prompt_length = input_ids.shape[-1]
        #: The length of the prompt's mask, which `generate` stores separately where it is all ones (transformers 5.23).
        self._mask_length: int | None = getattr(generation_config, "_mask_length", None)
        self._n_read: int | None = None
        self._can_crop = _can_crop(self.cache) and (self.cache is not None or not model_kwargs.get("use_cache"))
        self._has_users_cache = getattr(self.cache, "_is_user_defined", False)
        if self._has_users_cache and not self._can_crop:  # tokens could not be removed from it again, so it stays as it is
            self._kwargs = _with_cache_copied(self._kwargs)
        # without cropping, rows are recomputed from the inputs with which the call began
        self._initial_kwargs = {} if self._can_crop and self.cache is not None else _with_cache_copied(model_kwargs)

    @property
    def cache(self) -> Any:
        """The cache of these rows; None if the model keeps none."""
        return next((self._kwargs[name] for name in CACHES if self._kwargs.get(name) is not None), None)

    @property
    def n_written(self) -> int:
        """How many tokens follow the prompts."""
        return self.input_ids.shape[-1] - self._prompt_length

    def answer_ids(self, row: int) -> list[int]:
        """The tokens that follow a row's prompt."""
        return self.input_ids[row, self._prompt_length :].tolist()

    def next_logits(self) -> Tensor:
        """The logits (rows, V) of each row's next token, in float32: a copy, as in `generate`."""
        if self._n_read is None:
            outputs = self._model._prefill(self.input_ids, self._config, self._kwargs)
        else:
            new = 1 if self._kwargs.get("use_cache") else None
            inputs = self._model.prepare_inputs_for_generation(self.input_ids, next_sequence_length=new, **self._kwargs)
            with self._model._optimize_model_for_decode():  # a GPU runs experts otherwise there (transformers 5.24)
                outputs = self._model(**inputs, return_dict=True)
        is_prefill = self._n_read is None
        self._count(is_prefill)
        self._kwargs = self._model._update_model_kwargs_for_generation(outputs, self._kwargs, is_encoder_decoder=False)
        self._n_read = self.input_ids.shape[-1]
        if is_prefill:
            self._can_crop = self._can_crop and _can_crop(self.cache)  # RWKV and XLNet keep one whatever they are told
        return outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=self.input_ids.device)

    def write(self, ids: Tensor) -> None:
        """Append one id to each row (rows,)."""
        self.input_ids = torch.cat([self.input_ids, ids[:, None]], dim=-1)

    def branch(self, rows: Sequence[int], n_back: int) -> "TargetRows":
        """Copy some rows as they were `n_back` tokens ago. All their tokens have been read, and the next can be written.

        The cache is cropped, which costs no forward. Where it cannot be cropped (recurrent and sliding layers), the rows are
        recomputed in one forward.
        """
        other = copy.copy(self)
        index = torch.tensor(rows, device=self.input_ids.device)
        n_kept = self.input_ids.shape[-1] - n_back
        other.input_ids = self.input_ids[index, :n_kept]
        if not self._can_crop:
            return other._recompute(index)
        n_cut = (self._n_read or 0) - n_kept
        other._n_read = n_kept
        other._kwargs = {name: _select_input(name, value, index, n_cut) for name, value in self._kwargs.items()}
        for name in CACHES:
            if other._kwargs.get(name) is not None:
                other._kwargs[name] = _cropped_copy(other._kwargs[name], index, n_cut)
        return other

    def select_rows(self, rows: Sequence[int]) -> None:
        """Make row i a copy of row `rows[i]`; rows may be dropped and repeated."""
        index = torch.tensor(rows, device=self.input_ids.device)
        self.input_ids = self.input_ids[index]
        if self.cache is not None and not _can_reorder(self.cache):
            written, self.input_ids = self.input_ids, self.input_ids[:, : self._n_read]
            self._recompute(index)
            self.input_ids = written
            return
        self._kwargs = {name: _select_input(name, value, index) for name, value in self._kwargs.items()}
        if self.cache is not None:
            self.cache.reorder_cache(index)
        self._initial_kwargs = self._select_initial(index)

    def absorb(self, other: "TargetRows", rows: Sequence[int]) -> bool:
        """Replace some of these rows by the rows of another batch, if both have been read equally far.

        Returns:
            Whether this was possible; if not, nothing has changed.
        """
        if not self._can_crop or self._n_read != other._n_read or self.input_ids.shape[-1] != other.input_ids.shape[-1]:
            return False
        index = torch.tensor(rows, device=self.input_ids.device)
        self.input_ids = self.input_ids.index_copy(0, index, other.input_ids)
        if self.cache is not None:
            for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
                if mine.is_initialized:
                    place = index.to(mine.keys.device)
                    mine.keys, mine.values = (
                        mine.keys.index_copy(0, place, theirs.keys),
                        mine.values.index_copy(0, place, theirs.values),
                    )
        return True

    def crop_users_cache(self, sequences: Tensor) -> None:
        """Remove from a cache that the user gave the tokens of answers that are not returned.

        Args:
            sequences: (rows, length) the sequences that are returned.
        """
        if not self._has_users_cache or not self._can_crop or self.cache is None:
            return
        width = min(self.input_ids.shape[-1], sequences.shape[-1])
        n_equal = (self.input_ids[:, :width] == sequences[:, :width]).long().cumprod(-1).sum(-1)  # (rows,)
        self.cache.crop(min(0, int(n_equal.min()) - (self._n_read or 0)))

    def _recompute(self, index: Tensor) -> "TargetRows":
        """Read the texts of these rows from their beginning; `index` selects their initial inputs."""
        self._initial_kwargs = self._select_initial(index)
        kwargs = _with_cache_copied(self._initial_kwargs)
        if self.n_written:
            update = self._model._update_model_kwargs_for_generation
            kwargs = update({}, kwargs, is_encoder_decoder=False, num_new_tokens=self.n_written)
            self._config = copy.copy(self._config)
            if self._mask_length is not None:
                self._config._mask_length = self._mask_length + self.n_written
        if kwargs.get("inputs_embeds") is not None:
            new = self._model.get_input_embeddings()(self.input_ids[:, self._prompt_length :])
            kwargs["inputs_embeds"] = torch.cat([kwargs["inputs_embeds"], new], dim=1)
        self._kwargs, self._n_read = kwargs, None
        self.next_logits()
        self._kwargs.pop("inputs_embeds", None)
        return self

    def _select_initial(self, index: Tensor) -> dict[str, Any]:
        """Some rows of the inputs with which the call began."""
        selected = {name: _select_input(name, value, index) for name, value in self._initial_kwargs.items()}
        selected = _with_cache_copied(selected)
        for cache in (selected[name] for name in CACHES if isinstance(selected.get(name), Cache)):
            if getattr(cache, "_is_user_defined", False) and cache.get_seq_length():
                cache.reorder_cache(index)
            else:
                for layer in cache.layers:  # an empty one may have been set up for other rows
                    layer.is_initialized = False
        return selected

    def _count(self, is_prefill: bool) -> None:
        embeds = self._kwargs.get("inputs_embeds")
        n_each = self.input_ids.shape[-1]
        if is_prefill:
            n_each = n_each if embeds is None else int(embeds.shape[1])
        elif self._kwargs.get("use_cache"):
            n_each = 1
        self.cost.n_forwards += 1
        self.cost.n_tokens += len(self.input_ids) * n_each


def _with_cache_copied(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same inputs with a copy of their cache."""
    return {name: copy.deepcopy(value) if name in CACHES else value for name, value in kwargs.items()}


def _can_reorder(cache: Any) -> bool:
    """Whether rows can be taken out of a cache: models with a kind of their own (RWKV, XLNet, MiniMax) are recomputed."""
    return type(cache).__module__ == Cache.__module__


def _can_crop(cache: Any) -> bool:
    """Whether a cache consists of the keys and values of every token, so that rows and tokens can be taken out of it."""
    if cache is None:
        return True
    return type(cache) is DynamicCache and not cache.offloading and all(type(layer) is DynamicLayer for layer in cache.layers)


def _cropped_copy(cache: DynamicCache, index: Tensor, n_cut: int) -> DynamicCache:
    """Some rows of a cache without its last tokens."""
    cropped = copy.copy(cache)
    cropped.layers = [_cropped_layer(layer, index, n_cut) for layer in cache.layers]
    return cropped


def _cropped_layer(layer: Any, index: Tensor, n_cut: int) -> Any:
    cropped = copy.copy(layer)
    if layer.is_initialized:
        n_kept = layer.keys.shape[-2] - n_cut
        rows = index.to(layer.keys.device)
        cropped.keys, cropped.values = layer.keys[rows, :, :n_kept], layer.values[rows, :, :n_kept]
    return cropped


def _select_input(name: str, value: Any, index: Tensor, n_cut: int = 0) -> Any:
    """Some rows of an input, without its last tokens if it holds a value for each."""
    if not isinstance(value, Tensor):
        return value
    rows = index.to(value.device)
    if name in BY_TOKEN:
        return value.index_select(-2, rows)[..., : value.shape[-1] - n_cut]
    return value[rows] if name == "inputs_embeds" else value
