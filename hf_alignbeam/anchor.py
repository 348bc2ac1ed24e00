"""The anchor model behind a KV cache that rows can grow, branch and abandon tokens in.

Knows ids, positions and which cached tokens a row still sees. Knows no text, no target and no translation: it is asked
for the next-token distribution after a path of tokens.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


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
        self._takes_positions = "position_ids" in inspect.signature(anchor.forward).parameters
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
            positions[i] = row.position + torch.arange(n_new)
            mask[i, list(row.seen)] = 1
            mask[i, self.n_slots : self.n_slots + len(row.ids)] = 1
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
        options = {"position_ids": positions.to(device)} if self._takes_positions else {}
        with torch.no_grad():
            output = self._anchor(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=keep,
                **options,
            )
        self.n_forwards += 1
        self.n_tokens += ids.numel()
        logits = output.logits.float()  # (B, n, A)
        if torch.isnan(logits).any():
            raise ValueError(
                "The anchor's logits must be numbers, got NaN. Check the anchor's weights and dtype (float16 overflows "
                "in some models: load it in bfloat16 or float32)."
            )
        return logits.log_softmax(-1)
