"""Rules that combine the target's next-token distribution with the anchor's translated one; pure tensor functions.

Each returns log-probabilities. What the target forbids (a log-probability of minus infinity) stays forbidden, and a row in
which nothing else is left keeps the target's own distribution.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

MixingRule = Literal["linear", "log_linear", "paper"]

#: How many of the anchor's likeliest tokens the paper's rule looks at (arXiv 2606.12342, B).
PAPER_TOP_TOKENS = 50


def check_mixing(mixing: str, alpha: float) -> None:
    """Raise ValueError where there is no such rule, or `alpha` is outside its range: [0, 1] for every rule here."""
    if mixing not in get_args(MixingRule):
        raise ValueError(f"`mixing` must be one of {', '.join(get_args(MixingRule))}, got {mixing!r}.")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(
            f"`alpha` must be in [0, 1] for the rule {mixing!r}, got {alpha}. 0 is the target alone, 1 the anchor alone."
        )


def linear(target_logp: Tensor, anchor_prob: Tensor, alpha: float) -> Tensor:
    """`(1 - alpha) P + alpha Q` over the union of both supports.

    Args:
        target_logp: (N, V) the target's log-probabilities.
        anchor_prob: (N, V) the anchor's translated distribution.
        alpha: The anchor's share, in [0, 1].

    Returns:
        (N, V) log-probabilities.
    """
    mixed = (1.0 - alpha) * target_logp.exp() + alpha * anchor_prob
    return _allowed(mixed.log(), target_logp)


def log_linear(target_logp: Tensor, anchor_prob: Tensor, alpha: float) -> Tensor:
    """`P^(1 - alpha) Q^alpha`, normalised: what both find likely. Arguments and result as for `linear`."""
    if alpha == 0.0:
        return target_logp.log_softmax(-1)
    own = (1.0 - alpha) * target_logp if alpha < 1.0 else torch.zeros_like(target_logp)
    return _allowed(own + alpha * anchor_prob.log(), target_logp)


def paper(target_logp: Tensor, anchor_prob: Tensor, alpha: float, n_sources: Tensor) -> Tensor:
    """AlignBeam's logit bridge as printed (arXiv 2606.12342): `n_sources * (1 - alpha) P + alpha Q` where Q reaches, 0 elsewhere.

    Args:
        target_logp: (N, V) the target's log-probabilities.
        anchor_prob: (N, V) the translated distribution of the anchor's `PAPER_TOP_TOKENS` likeliest tokens.
        alpha: The anchor's share, in [0, 1].
        n_sources: (N, V) how many of those tokens led to each target token; the paper adds the target's own
            probability once for each.

    Returns:
        (N, V) log-probabilities.
    """
    mixed = n_sources * (1.0 - alpha) * target_logp.exp() + alpha * anchor_prob
    return _allowed(mixed.log(), target_logp)


def _allowed(logp: Tensor, target_logp: Tensor) -> Tensor:
    """Normalise over what the target allows; a row with nothing left stays as the target has it."""
    logp = logp.masked_fill(target_logp == -torch.inf, -torch.inf)
    empty = logp.amax(-1, keepdim=True) == -torch.inf  # (N, 1)
    return (torch.where(empty, target_logp, logp) if empty.any() else logp).log_softmax(-1)
