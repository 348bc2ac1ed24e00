"""A point of a row's text from which the anchor may continue, and the tokens that may come next there.

Knows one point and its mass. Knows no row, no model and no tokenizer; `covering` finds the points and adds them up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from hf_alignbeam.anchor.state import Node, Path
from hf_alignbeam.translation.translator import Table


@dataclass(frozen=True)
class Cover:
    """A point in the row's text from which the anchor may continue: its next token covers the pending bytes and more.

    Attributes:
        path: The anchor's tokens up to the point.
        pending: The bytes of the text after the point.
        node: The point.
        weight: The probability of the path, relative to that of the row's likeliest cover.
        table: The target tokens of every anchor token; None inside the text, where only completions of the pending bytes
            count.
        ids: The likeliest of these completions, in descending order; none with a table.
        masses: The mass of each.
        next_tokens: The target's next token for each; -1 where the target's tokens so far are not canonical, that is not those
            into which its tokenizer itself would split the text.
    """

    path: Path
    pending: bytes
    node: Node
    weight: float
    table: Table | None
    ids: Sequence[int] = ()
    masses: Sequence[float] = ()
    next_tokens: Sequence[int] = ()

    @cached_property
    def mass(self) -> float:
        """The mass of all the next tokens."""
        if self.table is None:
            return sum(self.masses)
        if self.table.possible is None:
            return self.weight
        width = min(len(self.node.prob), len(self.table.possible))
        return self.weight * float((self.node.prob[:width] * self.table.possible[:width].to(self.node.prob.device)).sum())

    @property
    def noncanonical_mass(self) -> float:
        """The mass of the completions for which the target's tokens so far are not canonical."""
        return sum(mass for mass, t in zip(self.masses, self.next_tokens, strict=True) if t < 0)


class TrackedToken(NamedTuple):
    """A next token that is tracked on its own: its id, its mass, and whether it counts among a cover's canonical mass."""

    id: int
    mass: float
    is_canonical: bool


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
