"""The target's rows in one call of `generate`: stepped as transformers' own loop steps them, branched and taken back.

Knows the model's inputs and its cache. Knows no scores, no tokens' meaning and no judge.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

#: Inputs with a place for each token of a row: (..., rows, length).
BY_TOKEN = ("attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids")
#: The names under which models keep their caches.
CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")


class Target:
    """Rows of one length and what the model needs to go on from them.

    Args:
        model: The target.
        input_ids: (rows, length) prompts; of length 0 where the call has `inputs_embeds`.
        generation_config: Of the call, as `generate` prepared it.
        model_kwargs: The model's other inputs, as `generate` prepared them.
    """

    def __init__(
        self, model: PreTrainedModel, input_ids: Tensor, generation_config: GenerationConfig, model_kwargs: dict[str, Any]
    ):
        self.input_ids = input_ids
        self._model: Any = model
        self._config = generation_config
        self._kwargs = dict(model_kwargs)
        self._n_prompt = input_ids.shape[-1]
        #: The length of the prompt's mask, which `generate` keeps apart where it is all ones (transformers 5.23).
        self._n_mask: int | None = getattr(generation_config, "_mask_length", None)
        self._n_read: int | None = None
        self._is_cut = _can_cut(self.cache) and (self.cache is not None or not model_kwargs.get("use_cache"))
        self._is_users = getattr(self.cache, "_is_user_defined", False)
        if self._is_users and not self._is_cut:  # nothing could be taken out of it again: the caller's stays as it is
            self._kwargs = _with_own_cache(self._kwargs)
        # what cannot be cut is read anew, from the state that the call began with
        self._first = {} if self._is_cut else _with_own_cache(model_kwargs)
        self.n_forwards = self.n_tokens = 0

    @property
    def cache(self) -> Any:
        """The cache of these rows; None where the model keeps none."""
        return next((self._kwargs[name] for name in CACHES if self._kwargs.get(name) is not None), None)

    def next_logits(self) -> Tensor:
        """The logits (rows, V) of what follows each row, in float32: a copy, as `generate` makes one."""
        if self._n_read is None:
            outputs = self._model._prefill(self.input_ids, self._config, self._kwargs)
        else:
            new = 1 if self._kwargs.get("use_cache") else None
            inputs = self._model.prepare_inputs_for_generation(self.input_ids, next_sequence_length=new, **self._kwargs)
            outputs = self._model(**inputs, return_dict=True)
        self._count(self._n_read is None)
        self._kwargs = self._model._update_model_kwargs_for_generation(outputs, self._kwargs)
        self._n_read = self.input_ids.shape[-1]
        return outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=self.input_ids.device)

    def write(self, ids: Tensor) -> None:
        """Let each row go on by one id (rows,)."""
        self.input_ids = torch.cat([self.input_ids, ids[:, None]], dim=-1)

    def branch(self, rows: Sequence[int], n_back: int) -> "Target":
        """Some rows as they were `n_back` tokens ago, all of them read: what follows is known, and a token can be written.

        Nothing is read again, unless the model keeps something that cannot be cut (recurrent and sliding layers): then the
        texts are read anew, once each.
        """
        other = copy.copy(self)
        other.n_forwards = other.n_tokens = 0
        index = torch.tensor(rows, device=self.input_ids.device)
        n_kept = self.input_ids.shape[-1] - n_back
        other.input_ids = self.input_ids[index, :n_kept]
        if not self._is_cut:
            return other._read_anew(index)
        n_cut = (self._n_read or 0) - n_kept
        other._n_read = n_kept
        other._kwargs = {name: _rows_of(name, value, index, n_cut) for name, value in self._kwargs.items()}
        for name in CACHES:
            if other._kwargs.get(name) is not None:
                other._kwargs[name] = _cut_copy(other._kwargs[name], index, n_cut)
        return other

    def select_rows(self, rows: Sequence[int]) -> None:
        """Make row i what row `rows[i]` was; rows may be dropped and doubled."""
        index = torch.tensor(rows, device=self.input_ids.device)
        self.input_ids = self.input_ids[index]
        self._kwargs = {name: _rows_of(name, value, index) for name, value in self._kwargs.items()}
        if self.cache is not None:
            self.cache.reorder_cache(index)
        self._first = self._first_of(index)

    def absorb(self, other: "Target", rows: Sequence[int]) -> bool:
        """Put another call's rows in the place of some of these, where both have read equally far.

        Returns:
            Whether that was possible; if not, nothing has changed.
        """
        if not self._is_cut or self._n_read != other._n_read or self.input_ids.shape[-1] != other.input_ids.shape[-1]:
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
        self.n_forwards += other.n_forwards
        self.n_tokens += other.n_tokens
        return True

    def forget(self, sequences: Tensor) -> None:
        """Take out of a cache of the caller's what was read of answers that were not returned.

        Args:
            sequences: (rows, length) what was returned.
        """
        if not self._is_users or not self._is_cut or self.cache is None:
            return
        width = min(self.input_ids.shape[-1], sequences.shape[-1])
        same = (self.input_ids[:, :width] == sequences[:, :width]).long().cumprod(-1).sum(-1)  # (rows,)
        self.cache.crop(min(0, int(same.min()) - (self._n_read or 0)))

    def _read_anew(self, index: Tensor) -> "Target":
        """These rows' texts read from their beginning."""
        n_new = self.input_ids.shape[-1] - self._n_prompt
        self._first = self._first_of(index)
        kwargs = _with_own_cache(self._first)
        if n_new:
            kwargs = self._model._update_model_kwargs_for_generation({}, kwargs, num_new_tokens=n_new)
            self._config = copy.copy(self._config)
            if self._n_mask is not None:
                self._config._mask_length = self._n_mask + n_new
        if kwargs.get("inputs_embeds") is not None:
            new = self._model.get_input_embeddings()(self.input_ids[:, self._n_prompt :])
            kwargs["inputs_embeds"] = torch.cat([kwargs["inputs_embeds"], new], dim=1)
        self._kwargs, self._n_read = kwargs, None
        self.next_logits()
        self._kwargs.pop("inputs_embeds", None)
        return self

    def _first_of(self, index: Tensor) -> dict[str, Any]:
        """Some rows of the inputs that the call began with."""
        made = _with_own_cache({name: _rows_of(name, value, index) for name, value in self._first.items()})
        for name in CACHES:
            if getattr(made.get(name), "_is_user_defined", False):  # else `generate` made it, and it is empty
                made[name].reorder_cache(index)
        return made

    def _count(self, whole: bool) -> None:
        n_each = self._prompt_length() if whole else 1 if self._kwargs.get("use_cache") else self.input_ids.shape[-1]
        self.n_forwards += 1
        self.n_tokens += len(self.input_ids) * n_each

    def _prompt_length(self) -> int:
        embeds = self._kwargs.get("inputs_embeds")
        return int(embeds.shape[1]) if embeds is not None else self.input_ids.shape[-1]


def _with_own_cache(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same inputs with a copy of their cache."""
    return {name: copy.deepcopy(value) if name in CACHES else value for name, value in kwargs.items()}


def _can_cut(cache: Any) -> bool:
    """Whether a cache holds nothing but keys and values of every token, so that rows and tokens can be taken from it."""
    if cache is None:
        return True
    return type(cache) is DynamicCache and not cache.offloading and all(type(layer) is DynamicLayer for layer in cache.layers)


def _cut_copy(cache: DynamicCache, index: Tensor, n_cut: int) -> DynamicCache:
    """Some rows of a cache without its last tokens."""
    made = copy.copy(cache)
    made.layers = [_cut_layer(layer, index, n_cut) for layer in cache.layers]
    return made


def _cut_layer(layer: Any, index: Tensor, n_cut: int) -> Any:
    made = copy.copy(layer)
    if layer.is_initialized:
        n_kept = layer.keys.shape[-2] - n_cut
        rows = index.to(layer.keys.device)
        made.keys, made.values = layer.keys[rows, :, :n_kept], layer.values[rows, :, :n_kept]
    return made


def _rows_of(name: str, value: Any, index: Tensor, n_cut: int = 0) -> Any:
    """Some rows of an input, without its last tokens where it has a place for each."""
    if not isinstance(value, Tensor):
        return value
    place = index.to(value.device)
    if name in BY_TOKEN:
        return value.index_select(-2, place)[..., : value.shape[-1] - n_cut]
    return value[place] if name == "inputs_embeds" else value
