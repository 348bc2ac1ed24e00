"""Ledger: what steering and judging have cost, in counts.

Knows counts and their names. Knows no model and no judge.
"""

import threading
from dataclasses import dataclass
from typing import ClassVar


@dataclass
class Ledger:
    """The cost of every call so far. Several threads may add to it at once.

    Attributes:
        anchor_forwards: Forward passes of the anchor, each over the whole batch.
        anchor_tokens: Tokens fed in these passes, padding included.
        steered_tokens: Target tokens whose scores were mixed, over all rows; with padding if user code calls the processor.
        lost_mass: The anchor's probability mass that had no translation, summed over the steered tokens.
        target_forwards, target_tokens: The same counts for the target; only a decoding strategy fills them in.
        judge_calls, judged: Calls of the strategy's judge, and texts judged in them.
        seconds: Wall time of the strategy's calls.
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
    #: One for all ledgers, so that a ledger stays a plain record that can be copied.
    _lock: ClassVar = threading.Lock()

    def add(self, **amounts: float) -> None:
        """Add an amount to each of the named fields."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)
