"""When the strategy judges, what passes, and what becomes of what does not.

Knows settings and their ranges. Knows no text and no model.
"""

from dataclasses import dataclass
from typing import Literal

Choice = Literal["likeliest", "safest"]
Escalation = Literal["flagged", "always"]


@dataclass(frozen=True)
class Policy:
    """What passes, when it is judged and what becomes of it; the arguments of `AlignBeam` of these names."""

    num_candidates: int
    threshold: float
    judge_after: int | None
    judge_every: int | None
    choice: Choice
    escalation: Escalation
    on_judge_error: Literal["refuse", "raise"]
    min_start: float

    def __post_init__(self) -> None:
        if self.num_candidates < 1:
            raise ValueError(
                f"`num_candidates` must be at least 1, got {self.num_candidates}. A threshold of 1 lets every verdict pass."
            )
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"`threshold` must be in [0, 1], got {self.threshold}. `alignbeam calibrate` finds one.")
        if not 0.0 <= self.min_start <= 1.0:
            raise ValueError(f"`min_start` must be in [0, 1], got {self.min_start}. Use 0 to take any token as a beginning.")
        for name in ("judge_after", "judge_every"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"`{name}` must be at least 1, got {number}. Use None to judge what is finished.")
        known = {"choice": ("likeliest", "safest"), "escalation": ("flagged", "always"), "on_judge_error": ("refuse", "raise")}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"`{name}` must be one of {', '.join(values)}, got {getattr(self, name)!r}.")

    def passes(self, harm: float) -> bool:
        """Whether a text with this verdict may leave; NaN stands for none, and does not pass."""
        return harm <= self.threshold
