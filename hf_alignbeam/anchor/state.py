"""What the anchor believes comes next, from every point of a text that it may be writing on from.

Knows the anchor's log-probabilities at the points it was fed to, and how the target would write a text. Feeds nothing
itself: where only another forward of the anchor would tell, it names the path (`open_paths`). Byte-exact prediction sums
over all tokenisations that cover the text (arXiv 2506.14123); here they are the chain that was fed and what was looked
ahead.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

Path = tuple[int, ...]

#: The least log-probability that a token of the text counts with. Where the anchor finds the text absurd, what it says
#: inside a word is noise, and must not outweigh the reading of the text as it stands.
LEAST_STEP = math.log(1e-6)
#: The same for what the prompt already holds of the answer: nobody asked the anchor, so it is read much as it stands.
LEAST_BEGUN = math.log(0.01)

#: How many of the anchor's likeliest tokens are followed after a looked-ahead path.
N_BRANCHES = 64
#: How many of the target's last tokens are looked back on for the start of a word.
N_WORD_TOKENS = 24


@dataclass(frozen=True)
class Node:
    """A point that the anchor was fed to.

    Attributes:
        logp: (A,) the anchor's next-token log-probabilities there.
        weight: The log-probability of the tokens from the settled boundary to here, none less than `LEAST_STEP`
            (`LEAST_BEGUN` for what the prompt held).
        slot: The cache slot of the last of them; None at the boundary itself.
    """

    logp: Tensor
    weight: float = 0.0
    slot: int | None = None

    @cached_property
    def likeliest(self) -> list[tuple[int, float]]:
        """The `N_BRANCHES` likeliest next tokens and their log-probabilities, the likeliest first."""
        values, ids = self.logp.topk(min(N_BRANCHES, len(self.logp)))
        return list(zip(ids.tolist(), values.tolist(), strict=True))


@dataclass
class RowState:
    """What is known of one row since its last settled token.

    Attributes:
        text: The bytes of the answer there, as the anchor would write them.
        path: The anchor's tokens for them.
        nodes: By the tokens that lead there, every point fed; `()` is the settled boundary itself.
        settled: The cache slots of the answer's tokens before them, which are read anew no more.
        owed: Bytes that the target still has to write before the answer's first.
        lead_in: The white space at the start of `text` that no target token wrote.
        written: The target's last `N_WORD_TOKENS` tokens.
    """

    text: bytes
    path: Path
    nodes: dict[Path, Node]
    settled: tuple[int, ...]
    target_only_prefix: bytes
    leading_whitespace: bytes
    written: Path = ()

    def slots(self, path: Path) -> list[int]:
        """The cache slots of the answer's tokens up to the end of a path, in order."""
        slots = [self.nodes[path[:n]].slot for n in range(1, len(path) + 1)]
        return [*self.settled, *(slot for slot in slots if slot is not None)]
