"""A point of a row's text from which the anchor may continue, and the tokens that may come next there.

Knows one point and its mass. Knows no row, no model and no tokenizer; `covering` finds the points and adds them up.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from hf_alignbeam.anchor.state import Node, Path
from hf_alignbeam.translation.translator import Table


@dataclass(frozen=True)
class Cover:
    """A point in the row's text from which the anchor may continue: its next token covers the pending bytes and more.

    Attributes:
        path: The anchor's tokens up to the point.
        pending: The bytes of the text after the point.
        node: The point.
        path_logp: The log-probability of the path, relative to that of the row's likeliest cover.
        table: The target tokens of every anchor token; None inside the text, where only completions of the pending bytes
            count.
        ids: (M,) the completions: anchor tokens that begin with the pending bytes; empty with a table.
        next_tokens: (M,) the target's next token for each; -1 where the target's tokens so far are not canonical, that is
            not those into which its tokenizer itself would split the text.
    """

    path: Path
    pending: bytes
    node: Node
    path_logp: float
    table: Table | None
    ids: Tensor
    next_tokens: Tensor

    @cached_property
    def prob(self) -> Tensor:
        """(M,) the mass of each completion."""
        return (self.node.logp[self.ids] + self.path_logp).exp()

    @property
    def max_logp(self) -> float:
        """The log-probability of the likeliest next token."""
        return self.path_logp + (self.node.likeliest[0][1] if self.table is not None else float(self.node.logp[self.ids].max()))

    @cached_property
    def mass(self) -> float:
        """The mass of all the next tokens."""
        if self.table is None:
            return float(self.prob.sum())
        if self.table.possible is None:
            return math.exp(self.path_logp)
        width = min(len(self.node.logp), len(self.table.possible))
        prob = (self.node.logp[:width] + self.path_logp).exp()
        return float((prob * self.table.possible[:width].to(prob.device)).sum())

    @property
    def noncanonical_mass(self) -> float:
        """The mass of the completions for which the target's tokens so far are not canonical."""
        return float(self.prob[self.next_tokens < 0].sum()) if self.table is None else 0.0


class TrackedToken(NamedTuple):
    """A next token that is tracked on its own: its column among the tokens of the cover, its id and its mass."""

    column: int
    id: int
    mass: float


@dataclass(frozen=True)
class OpenPath:
    """Anchor tokens after which several target tokens may come next.

    Attributes:
        mass: The mass of the path.
        uncertain_mass: How much of it may go to another target token than the likeliest one.
        ids: The tokens after the cover's point.
        cover: The cover that they continue.
    """

    mass: float
    uncertain_mass: float
    ids: Path
    cover: Cover

    @property
    def path(self) -> Path:
        """The tokens from the last committed one on."""
        return self.cover.path + self.ids
