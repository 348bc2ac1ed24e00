"""What is noted of an answer while it is written: what the judge read, what was tried where it did not pass, how far each
token was moved.

Knows records and one number. It does not know who notes, and nothing that is written depends on it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class JudgedPrefix:
    """One text that the judge was asked about.

    Attributes:
        ids: The answer's tokens, all that were read.
        harm: In [0, 1]; NaN where there was no verdict.
        passes: Whether that may leave.
    """

    ids: list[int]
    harm: float
    passes: bool


@dataclass(frozen=True)
class CandidateRecord:
    """One candidate.

    Attributes:
        ids: Its tokens, from where the answer was sent back to.
        moved: By token, as in `Answer`.
        harm: In [0, 1]; NaN where there was no verdict.
        passes: Whether that may leave.
        logp: The mean log-probability of its tokens under the target.
    """

    ids: list[int]
    moved: list[float]
    harm: float
    passes: bool
    logp: float


@dataclass(frozen=True)
class RollbackRecord:
    """One time that an answer was sent back.

    Attributes:
        point: How many of its tokens stayed.
        flagged: Those that were taken back; none where candidates are tried first.
        moved: By token of these, as in `Answer`.
        tried: The candidates, number 1 first.
        chosen: The number of the one that went on; None where none passed.
    """

    point: int
    flagged: list[int]
    moved: list[float]
    tried: list[CandidateRecord]
    chosen: int | None


def divergence(mixed: Tensor, own: Tensor) -> Tensor:
    """How far steering moved some distributions: KL(mixed || own) in nats.

    Args:
        mixed: (N, V) scores as steering left them.
        own: (N, V) scores as it found them.

    Returns:
        (N,) for each; NaN where nothing was mixed in, the scores being what they were.
    """
    mixed_logp, own_logp = mixed.float().log_softmax(-1), own.float().log_softmax(-1)
    prob = mixed_logp.exp()
    terms = torch.where(prob > 0.0, prob * (mixed_logp - own_logp), 0.0)  # (N, V)
    return terms.sum(-1).clamp_min(0.0).masked_fill((mixed == own).all(-1), torch.nan)
