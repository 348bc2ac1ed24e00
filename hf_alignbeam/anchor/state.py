"""One row of an answer: its text, the anchor's tokens for it, and the positions up to which the anchor has read.

Knows log-probabilities, cache slots and the target's last ids. Knows no model and no bytes of a target token. The records are
frozen: every change gives a new one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

#: Anchor tokens from the last committed token on.
Path = tuple[int, ...]
#: A token of the text counts with at least this log-probability: what the anchor finds more absurd than that is noise.
MIN_TOKEN_LOGP = math.log(1e-10)
#: The same for the tokens of a prefill: the anchor did not choose them, so their probability should count for little.
MIN_PREFILL_LOGP = math.log(0.01)
#: How many of the anchor's likeliest next tokens are tracked after a looked-ahead path.
N_LIKELIEST = 64
#: A probability of zero counts as this one.
LEAST_PROB = 1e-45
#: How many columns a stretch of a wide row has, of which the maximum is looked at first.
STRETCH = 64
#: How many of the target's last tokens are kept to find the start of the current word.
N_WORD_TOKENS = 24


class Distributions:
    """The anchor's next-token distributions `prob` (N, A) at N positions that were read together."""

    def __init__(self, prob: Tensor):
        self.prob = prob

    @cached_property
    def likeliest(self) -> list[dict[int, float]]:
        """The `N_LIKELIEST` likeliest tokens at each position, found for all of them at once when one is asked for."""
        return largest(self.prob, N_LIKELIEST)

    def prob_of(self, index: int, i: int) -> float:
        """The probability of one next token at one position."""
        return self.likeliest[index].get(i) or float(self.prob[index, i])

    def probs_of(self, index: int, ids: Tensor) -> Tensor:
        """(M,) the probabilities of some next tokens (M,) at one position."""
        return self.prob[index, ids.to(self.prob.device)]


def largest(values: Tensor, n: int) -> list[dict[int, float]]:
    """The n largest values (fewer if there are not so many) of each row of (N, A), by column and in descending order.

    They stand in the n stretches of a row with the largest maxima: `topk` over a whole vocabulary takes several times as long.
    """
    width = values.shape[-1]
    places, end = None, width - width % STRETCH
    if end // STRETCH > n:
        chosen = values[:, :end].view(len(values), -1, STRETCH).amax(-1).topk(n).indices  # (N, n)
        places = (chosen[..., None] * STRETCH + torch.arange(STRETCH, device=values.device)).flatten(1)
        if end < width:
            places = torch.cat([places, torch.arange(end, width, device=values.device).expand(len(values), -1)], dim=-1)
        values = values.gather(-1, places)
    found, columns = values.topk(min(n, values.shape[-1]))
    columns = columns if places is None else places.gather(-1, columns)
    return [dict(zip(*pair, strict=True)) for pair in zip(columns.tolist(), found.tolist(), strict=True)]


@dataclass(frozen=True)
class Node:
    """A position up to which the anchor has read.

    Attributes:
        together: The positions that were read with it.
        index: Its number among them.
        path_logp: The log-probability of the path to it, each token with at least `MIN_TOKEN_LOGP` (`MIN_PREFILL_LOGP` in a
            prefill).
        slot: The cache slot of the path's last token; None at the end of the prompt.
        text: The bytes of the path.
        completions: By pending bytes, the likeliest tokens that begin with them, as far as they were asked for.
    """

    together: Distributions
    index: int
    path_logp: float = 0.0
    slot: int | None = None
    text: bytes = b""
    completions: dict[bytes, dict[int, float]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def prob(self) -> Tensor:
        """(A,) the anchor's next-token probabilities there."""
        return self.together.prob[self.index]

    @property
    def likeliest(self) -> dict[int, float]:
        """The `N_LIKELIEST` likeliest next tokens with their probabilities, in descending order."""
        return self.together.likeliest[self.index]

    def logp_of(self, i: int) -> float:
        """The log-probability of one next token."""
        return math.log(max(self.together.prob_of(self.index, i), LEAST_PROB))


@dataclass(frozen=True)
class RowState:
    """One row of an answer since its last committed token. Committed tokens are not retokenized any more.

    Attributes:
        text: The bytes of the answer, as the anchor would write them.
        path: The anchor's tokens for the text.
        nodes: By path, every position read; `()` is the last committed token.
        committed_slots: The cache slots of the answer's committed tokens.
        target_only_prefix: Bytes that the target still writes before the first byte of the answer.
        leading_whitespace: The white space at the start of `text` that belongs to no target token.
        written: The target's last `N_WORD_TOKENS` tokens.
    """

    text: bytes
    path: Path
    nodes: dict[Path, Node]
    committed_slots: tuple[int, ...]
    target_only_prefix: bytes
    leading_whitespace: bytes
    written: tuple[int, ...] = ()

    def is_at_end(self, pending: bytes) -> bool:
        """Whether no bytes are pending, or only white space that the target does not write."""
        return not pending or pending == self.leading_whitespace == self.text

    def slots(self, path: Path) -> list[int]:
        """Return the cache slots of the answer's tokens up to the end of a path, in order."""
        slots = [self.nodes[path[:n]].slot for n in range(1, len(path) + 1)]
        return [*self.committed_slots, *(slot for slot in slots if slot is not None)]

    def with_points(
        self,
        points: Iterable[tuple[Path, int]],
        together: Distributions,
        first: int,
        tokens: Sequence[bytes | None],
        least: float,
    ) -> "RowState":
        """Add positions up to which the anchor has read: the path and the cache slot of each, a path's parent first.

        They are a run of those that were read `together`, from number `first` on. `tokens` are the bytes of the anchor's tokens,
        by id. A token's log-probability counts as `least` or more.
        """
        nodes = dict(self.nodes)
        for index, (path, slot) in enumerate(points, start=first):
            parent, i = nodes[path[:-1]], path[-1]
            text = parent.text + ((tokens[i] or b"") if i < len(tokens) else b"")
            nodes[path] = Node(together, index, parent.path_logp + max(parent.logp_of(i), least), slot, text)
        return replace(self, nodes=nodes)

    def with_slots(self, new_slots: Mapping[int, int]) -> "RowState":
        """Renumber the cache slots."""
        nodes = {p: node if node.slot is None else replace(node, slot=new_slots[node.slot]) for p, node in self.nodes.items()}
        return replace(self, committed_slots=tuple(new_slots[slot] for slot in self.committed_slots), nodes=nodes)
