"""A point of a row's text from which the anchor may continue, and the tokens that may come next there.

Knows one point and its mass. Knows no row, no model and no tokenizer; `covering` finds the points, `marginal` adds them up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

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
        likeliest: The likeliest next tokens with their mass, in descending order; inside the text, only completions of the
            pending bytes count.
        table: The target tokens of every anchor token; None inside the text.
        next_tokens: The target's next token for each completion; -1 where the target's tokens so far are not canonical, that
            is not those into which its tokenizer itself would split the text. Empty with a table.
    """

    path: Path
    pending: bytes
    node: Node
    weight: float
    likeliest: Mapping[int, float]
    table: Table | None
    next_tokens: Mapping[int, int] = field(default_factory=dict)

    @cached_property
    def mass(self) -> float:
        """The mass of all the next tokens."""
        if self.table is None:
            return sum(self.likeliest.values())
        if self.table.possible is None:
            return self.weight
        width = min(len(self.node.prob), len(self.table.possible))
        return self.weight * float((self.node.prob[:width] * self.table.possible[:width].to(self.node.prob.device)).sum())

    @property
    def canonical_mass(self) -> float:
        """The mass of all but the completions for which the target's tokens so far are not canonical."""
        return self.mass - sum(self.likeliest[i] for i, t in self.next_tokens.items() if t < 0)


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


#: Tokens that the anchor may write from a cover on, the cover, and their mass.
CoverPath = tuple[Path, Cover, float]
