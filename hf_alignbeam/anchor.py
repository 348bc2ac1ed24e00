"""The anchor model behind a KV cache that rows can grow, branch and abandon tokens in.

Knows ids, positions and which cached tokens a row still sees. Knows no text, no target and no translation: it is asked
for the next-token distribution after a path of tokens.
"""

import inspect
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from .vocab import logits_widths


@dataclass(frozen=True)
class Append:
    """Tokens to put after one row's cached ones.

    Attributes:
        ids: The new tokens, in order; empty for a row that has nothing to add.
        seen: The cache slots of the tokens before them that are not settled yet.
        position: The position of the first new token.
    """

    ids: Sequence[int]
    seen: Sequence[int]
    position: int


@dataclass(frozen=True)
class Leaf:
    """One token to put after a path of one row's cached ones.

    Attributes:
        id: The token.
        seen: The cache slots of the path's tokens that are not settled yet.
        position: The token's position.
    """

    id: int
    seen: Sequence[int]
    position: int


class AnchorCache:
    """One batch of anchor contexts, each fed only what it has not seen.

    Every token fed occupies one cache slot for all rows. A row sees its settled slots and those that an `Append` names;
    everything else (padding, abandoned branches, other rows' tokens) is masked out, and positions are explicit, so rows
    of different lengths share one cache without being cropped.

    Args:
        anchor: A decoder whose layers all keep full key-value caches.
        prompts: Each row's prompt ids, none of them empty.
    """

    def __init__(self, anchor: PreTrainedModel, prompts: Sequence[Sequence[int]]):
        self._anchor = anchor
        self._cache = DynamicCache()
        self._limits = context_limits(anchor)
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        self._settled = torch.zeros(len(prompts), width, dtype=torch.long)  # (B, T): 1 where a row sees a slot for good
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            self._settled[row, width - len(prompt) :] = 1
        positions = (self._settled.cumsum(-1) - 1).clamp_min(0)
        self.n_forwards = self.n_tokens = 0
        self.prompt_logp = self._forward(ids, self._settled, positions, keep=1)[:, -1]  # (B, A)

    @property
    def n_slots(self) -> int:
        """How many slots the cache has."""
        return self._settled.shape[-1]

    def append(self, rows: Sequence[Append]) -> Tensor:
        """Feed every row its new tokens in one forward.

        Args:
            rows: One `Append` a row.

        Returns:
            The log-probabilities (B, n, A) of what follows each new token; the token at index i of any row takes slot
            `n_slots + i`, counted before the call. Rows with fewer tokens than n hold nothing of use past theirs.
        """
        n_new = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), n_new, dtype=torch.long)
        positions = torch.zeros(len(rows), n_new, dtype=torch.long)
        mask = torch.cat([self._settled, torch.zeros(len(rows), n_new, dtype=torch.long)], dim=-1)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids, dtype=torch.long)
            positions[i, : len(row.ids)] = row.position + torch.arange(len(row.ids))
            mask[i, list(row.seen)] = 1
            mask[i, self.n_slots : self.n_slots + len(row.ids)] = 1
        logp = self._forward(ids, mask, positions, keep=n_new)
        self._settled = torch.cat([self._settled, torch.zeros_like(ids)], dim=-1)
        return logp

    @property
    def can_branch(self) -> bool:
        """Whether one forward can feed a row several leaves: the attention has to take a mask of its own for each token."""
        config = self._anchor.config
        return getattr(config, "_attn_implementation", None) in ("eager", "sdpa") and not getattr(config, "alibi", False)

    def has_room(self, n_new: int) -> bool:
        """Whether the anchor's attention window, if it has one, takes so many slots more."""
        return self._limits[1] is None or self.n_slots + n_new <= self._limits[1]

    def n_unused(self, used: Iterable[int]) -> int:
        """How many slots no row has settled and nobody uses."""
        return int((~self._live(used)).sum())

    def sweep(self, used: Iterable[int]) -> dict[int, int]:
        """Drop the slots that no row has settled and that are not among those in `used`.

        Returns:
            The new number of each slot in `used`.
        """
        used = list(used)
        live = self._live(used)
        number = live.cumsum(0) - 1
        kept = live.nonzero()[:, 0]
        for layer in cast(list[DynamicLayer], self._cache.layers):
            keys, values = cast(tuple[Tensor, Tensor], (layer.keys, layer.values))
            index = kept.to(keys.device)
            layer.keys, layer.values = keys[:, :, index], values[:, :, index]
        self._settled = self._settled[:, kept]
        return {slot: int(number[slot]) for slot in used}

    def _live(self, used: Iterable[int]) -> Tensor:
        live = self._settled.any(0)  # (T,)
        live[list(used)] = True
        return live

    def branch(self, rows: Sequence[Sequence[Leaf]]) -> Tensor:
        """Feed every row any number of leaves, which do not see each other, in one forward.

        Args:
            rows: Each row's leaves; at most one a row where the cache cannot branch.

        Returns:
            The log-probabilities (B, n, A) of what follows each leaf, in slots as after `append`.
        """
        n_new = max(map(len, rows))
        if n_new == 1:
            return self.append(
                [Append([leaf.id for leaf in row], row[0].seen if row else (), row[0].position if row else 0) for row in rows]
            )
        ids = torch.zeros(len(rows), n_new, dtype=torch.long)
        positions = torch.zeros(len(rows), n_new, dtype=torch.long)
        own = torch.eye(n_new, dtype=torch.long).expand(len(rows), -1, -1)
        mask = torch.cat([self._settled[:, None].expand(-1, n_new, -1), own], dim=-1)  # (B, n, T + n)
        for i, row in enumerate(rows):
            for n, leaf in enumerate(row):
                ids[i, n], positions[i, n] = leaf.id, leaf.position
                mask[i, n, list(leaf.seen)] = 1
        logp = self._forward(ids, mask, positions, keep=n_new)
        self._settled = torch.cat([self._settled, torch.zeros_like(ids)], dim=-1)
        return logp

    def reorder(self, parents: Sequence[int]) -> None:
        """Make row i go on from what row `parents[i]` was fed; rows may be dropped and doubled."""
        index = torch.LongTensor(parents)
        self._cache.reorder_cache(index.to(self._anchor.device))  # type: ignore[arg-type]
        self._settled = self._settled[index]

    def settle(self, row: int, slots: Sequence[int]) -> None:
        """Make slots of one row part of what it always sees."""
        self._settled[row, list(slots)] = 1

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, keep: int) -> Tensor:
        device = self._anchor.device
        self._check_room(mask.shape[-1], int(positions.max()) + 1)
        with torch.no_grad():
            output = self._anchor(
                input_ids=ids.to(device),
                attention_mask=_as_bias(mask, self._anchor.dtype).to(device) if mask.dim() == 3 else mask.to(device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=keep,
                position_ids=positions.to(device),
            )
        self.n_forwards += 1
        self.n_tokens += ids.numel()
        logp = output.logits.float().log_softmax(-1)  # (B, n, A)
        if torch.isnan(logp).any():
            raise ValueError(
                "The anchor's logits must be numbers, got NaN or infinity. Check the anchor's weights and dtype (float16 "
                "overflows in some models: load it in bfloat16 or float32)."
            )
        return logp

    def _check_room(self, n_slots: int, n_positions: int) -> None:
        for name, limit, needed in zip(("context", "attention window"), self._limits, (n_positions, n_slots), strict=True):
            if limit is not None and needed > limit:
                raise ValueError(
                    f"The anchor's {name} must hold the conversation and the steered answer, but takes {limit} tokens and "
                    f"needs {needed}. Use an anchor with a longer one, a smaller `n_steps`, or shorter prompts."
                )


def _as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of its own for each token, (B, n, T) of 0 and 1, as what is added to the attention scores: (B, 1, n, T)."""
    return ((1 - mask[:, None]) * torch.finfo(dtype).min).to(dtype)


def check_anchor(anchor: PreTrainedModel, anchor_tokenizer: PreTrainedTokenizerBase, tokens: Sequence[bytes | None]) -> None:
    """Raise ValueError where a model cannot be followed, or does not belong to its tokenizer, whose `tokens` are given."""
    name = type(anchor).__name__
    if anchor.config.is_encoder_decoder:
        raise ValueError(f"`anchor` must be a decoder, got the encoder-decoder {name}. Use a causal language model.")
    if getattr(anchor, "_is_stateful", False):
        raise ValueError(
            f"`anchor` must keep a key-value cache in every layer, got {name}, which has recurrent layers. Use an "
            "attention-only model."
        )
    if not takes_positions(anchor):
        raise ValueError(
            f"`anchor` must take `position_ids`, which {name} does not: its cached tokens could not be placed. Use a model "
            "with rotary or learned positions."
        )
    if anchor.training:
        raise ValueError(f"`anchor` must be in evaluation mode, but {name} is in training mode. Call `anchor.eval()`.")
    n_tokens, n_rows = len(anchor_tokenizer), int(anchor.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    if n_rows not in logits_widths(tokens):
        raise ValueError(
            f"`anchor_tokenizer` must belong to the anchor: it has {n_tokens} tokens, but {name} has {n_rows} "
            "embeddings. Load both from the same place."
        )
    if anchor_tokenizer.chat_template is None:
        warnings.warn(
            "`anchor_tokenizer` has no chat template: the anchor reads the messages' plain text, one after the other. An "
            "aligned model refuses best in the template it was trained with: set `anchor_tokenizer.chat_template`.",
            stacklevel=3,
        )


def takes_positions(anchor: PreTrainedModel) -> bool:
    """Whether the anchor can be told its tokens' positions (adapters and compilation are looked through)."""
    inner = getattr(anchor, "_orig_mod", anchor)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner  # type: ignore[operator]
    return "position_ids" in inspect.signature(inner.forward).parameters


def context_limits(anchor: PreTrainedModel) -> tuple[int | None, int | None]:
    """How many positions the anchor has, and how many cached tokens its narrowest layer sees; None where unbounded.

    A sliding or local layer counts cache slots, masked ones included, so it is exact only while all of them fit.
    """
    config = anchor.config.get_text_config()
    kinds = [*(getattr(config, "layer_types", None) or []), *_flat(getattr(config, "attention_types", None) or [])]
    windowed = getattr(config, "use_sliding_window", True) is not False if not kinds else any(map(_is_local, kinds))
    names = ("sliding_window", "attention_chunk_size", "window_size", "local_attention")
    windows = [value for name in names if isinstance(value := getattr(config, name, None), int) and value > 0]
    return getattr(config, "max_position_embeddings", None), min(windows) if windowed and windows else None


def _is_local(kind: object) -> bool:
    return isinstance(kind, str) and any(word in kind for word in ("sliding", "chunked", "local"))


def _flat(nested: Iterable[object]) -> Iterator[object]:
    for item in nested:
        if isinstance(item, list | tuple):
            yield from _flat(item)
        else:
            yield item
