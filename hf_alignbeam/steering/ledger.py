"""What steering and judging have cost.

Knows counts. Knows no model."""

from dataclasses import dataclass


@dataclass
class Ledger:
    """What steering has cost since it was last reset.

    Attributes:
        anchor_forwards: Forward passes of the anchor, each over the whole batch.
        anchor_tokens: Tokens fed in them, padding included.
        steered_tokens: Target tokens whose scores were mixed, over all rows.
        lost_mass: The anchor's probability mass that had no translation, summed over those tokens.
        target_forwards, target_tokens: The same of the target, by a strategy.
        judge_calls, judged: How often its judge was called, and about how many texts.
        seconds: How long its answers took.
    """

    anchor_forwards: int = 0
    anchor_tokens: int = 0
    steered_tokens: int = 0
    lost_mass: float = 0.0
    target_forwards: int = 0
    target_tokens: int = 0
    judge_calls: int = 0
    judged: int = 0
    seconds: float = 0.0
