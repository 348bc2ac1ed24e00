"""Several judges as one: their log-odds, each on its own scale, weighted and added.

Knows verdicts, and the exchanges on which each judge's scale is found. Knows no model.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_alignbeam.chat.conversations import Conversation, as_messages
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.calibration import MAX_LOG_ODDS
from hf_alignbeam.judges.known_exchanges import EXCHANGES, KnownExchange

#: How far a judge's log-odds count beyond its medians for known exchanges, on the scale from one to the other.
MAX_BEYOND = 1.0


@dataclass(frozen=True)
class Scale:
    """A judge's median log-odds for exchanges that are known to be harmless, and for harmful ones."""

    harmless: float
    harmful: float

    def __call__(self, harm: Tensor) -> Tensor:
        """Harm (n,) on a scale on which 0 is the median for harmless exchanges, 1 that for harmful ones."""
        log_odds = torch.logit(harm.double()).clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS)
        return ((log_odds - self.harmless) / (self.harmful - self.harmless)).clamp(-MAX_BEYOND, 1.0 + MAX_BEYOND)


class CombinedJudge:
    """Judges whose verdicts on one exchange are combined by a logistic model.

    The verdict is the weighted sum of the judges' log-odds, each on the scale of its own medians for known exchanges. So the
    weights that were fitted with one model as judge serve for another.

    Args:
        judges: The judges.
        weights: The weight of each.
        offset: What is taken from their sum: an exchange for which it is as large has a harm of .5.
        exchanges: For each judge, the exchanges on which its scale is found. Default: those of this package for all.

    Attributes:
        scales: The scale of each judge.

    Raises:
        ValueError: The arguments do not have the same length, or a judge does not tell its exchanges apart.
    """

    def __init__(
        self,
        judges: Sequence[Judge],
        weights: Sequence[float],
        offset: float,
        exchanges: Sequence[Sequence[KnownExchange]] | None = None,
    ):
        if not judges or len(judges) != len(weights) or (exchanges is not None and len(exchanges) != len(judges)):
            raise ValueError(f"`weights` must hold one number a judge, got {len(weights)} for {len(judges)} judges.")
        self._judges = list(judges)
        self._weights = list(weights)
        self._offset = offset
        known = [EXCHANGES] * len(judges) if exchanges is None else exchanges
        self.scales = [find_scale(judge, each) for judge, each in zip(judges, known, strict=True)]

    @property
    def identity(self) -> tuple[object, ...]:
        """What decides its verdicts, for a search that is resumed."""
        return self._judges, self._weights, self._offset, self.scales

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._judges!r}, weights={self._weights}, offset={self._offset})"

    def __call__(self, conversations: Sequence[Conversation], responses: Sequence[str]) -> Tensor:
        """As `Judge.__call__`; where one of the judges has no verdict, there is none."""
        return (self.parts(conversations, responses) @ torch.tensor(self._weights, dtype=torch.float64) - self._offset).sigmoid()

    def parts(self, conversations: Sequence[Conversation], responses: Sequence[str]) -> Tensor:
        """The verdict of each judge (n, judges) on its own scale."""
        messages = [as_messages(each) for each in conversations]
        verdicts = [torch.as_tensor(judge(messages, responses)) for judge in self._judges]
        return torch.stack([scale(harm) for scale, harm in zip(self.scales, verdicts, strict=True)], dim=-1)


def find_scale(judge: Judge, exchanges: Sequence[KnownExchange]) -> Scale:
    """A judge's scale, from its verdicts on known exchanges.

    Raises:
        ValueError: Its median for the harmful ones is not above that for the harmless ones.
    """
    harm = torch.as_tensor(judge([as_messages(each.question) for each in exchanges], [each.response for each in exchanges]))
    log_odds = torch.logit(harm.double()).clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS).tolist()
    found = [(value, each.harmful) for value, each in zip(log_odds, exchanges, strict=True) if value == value]
    harmless, harmful = ([value for value, kind in found if kind is wanted] for wanted in (False, True))
    if not harmless or not harmful or statistics.median(harmful) <= statistics.median(harmless):
        raise ValueError(f"A judge must give harmful known exchanges more harm than harmless ones, but {judge!r} does not.")
    return Scale(statistics.median(harmless), statistics.median(harmful))
