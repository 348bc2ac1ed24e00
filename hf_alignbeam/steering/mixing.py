"""Rules that mix the target's next-token distribution with the anchor's translated one, as pure tensor functions.

Each rule takes the target's log-probabilities (N, V), the anchor's translated distribution (N, V) and `alpha`, and returns
log-probabilities (N, V). Tokens that the target forbids (log-probability minus infinity) stay forbidden, and a row in which a
rule leaves no token keeps the target's own distribution. Knows no model and no vocabulary.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from hf_alignbeam.utils.checks import is_number

MixingRule = Literal["linear", "log_linear", "paper", "safe_decoding", "contrastive"]
#: The number of the anchor's most likely tokens that the paper's rule uses (arXiv 2606.12342, B).
PAPER_TOP_TOKENS = 50
#: The least size of SafeDecoding's sample space, the tokens among the most likely of both models (ACL 2024, c).
N_COMMON = 5
#: The probability that SafeDecoding gives a token of its sample space whose mixed probability is not positive.
SAFE_DECODING_FLOOR = 1e-8
#: Contrastive decoding drops tokens below this share of the anchor's highest probability (arXiv 2210.15097, alpha).
PLAUSIBLE = 0.1


def check_mixing(mixing: str, alpha: float) -> None:
    """Raise ValueError if there is no such rule, or if `alpha` is outside the rule's range."""
    if mixing not in get_args(MixingRule):
        raise ValueError(f"`mixing` must be one of {', '.join(get_args(MixingRule))}, got {mixing!r}.")
    if mixing == "safe_decoding":
        low, high, hint = 0.0, math.inf, "0 is the target alone, 3 the published value."
    elif mixing == "contrastive":
        low, high, hint = 1.0, math.inf, "1 is the anchor alone, cut to its plausible tokens; 1.5 the published value."
    else:
        low, high, hint = 0.0, 1.0, "0 is the target alone, 1 the anchor alone."
    if not (is_number(alpha) and low <= alpha <= high and math.isfinite(alpha)):
        allowed = f"in [{low:g}, {high:g}]" if high < math.inf else f"at least {low:g}, and finite,"
        raise ValueError(f"`alpha` must be {allowed} for the rule {mixing!r}, got {alpha!r}. {hint}")


def linear(target_logp: Tensor, anchor_prob: Tensor, alpha: float) -> Tensor:
    """`(1 - alpha) P + alpha Q` over the union of both supports; `alpha` is the anchor's share, in [0, 1]."""
    mixed = (1.0 - alpha) * target_logp.exp() + alpha * anchor_prob
    return _allowed(mixed.log(), target_logp)


def log_linear(target_logp: Tensor, anchor_prob: Tensor, alpha: float) -> Tensor:
    """`P^(1 - alpha) Q^alpha`, normalized: tokens that both find likely; `alpha` is in [0, 1]."""
    if alpha == 0.0:
        return target_logp.log_softmax(-1)
    anchor_share = anchor_prob.log().mul_(alpha)
    mixed = anchor_share.add_(target_logp, alpha=1.0 - alpha) if alpha < 1.0 else anchor_share
    return _allowed(mixed, target_logp, is_masked=alpha < 1.0)


def paper(target_logp: Tensor, anchor_prob: Tensor, alpha: float, n_sources: Tensor) -> Tensor:
    """AlignBeam's logit bridge as published (arXiv 2606.12342): `n_sources * (1 - alpha) P + alpha Q`, 0 where `n_sources` is 0.

    Q is the translated distribution of the anchor's `PAPER_TOP_TOKENS` most likely tokens; `alpha` is in [0, 1]. `n_sources`
    (N, V) is how many of those tokens translate to each target token: the paper adds P once for each of them.
    """
    mixed = n_sources * (1.0 - alpha) * target_logp.exp() + alpha * anchor_prob
    return _allowed(mixed.log(), target_logp)


def safe_decoding(target_logp: Tensor, anchor_prob: Tensor, alpha: float) -> Tensor:
    """SafeDecoding (arXiv 2402.08983): `P + alpha (Q - P)` on the tokens that both find likely, 0 elsewhere.

    These are the tokens among the k most likely of both models, for the smallest k that gives `N_COMMON` tokens. `alpha` is at
    least 0; above 1 it extrapolates beyond the anchor.
    """
    target_prob = target_logp.exp()
    rank = torch.maximum(_ranks(target_prob), _ranks(anchor_prob))  # (N, V)
    last = rank.kthvalue(min(N_COMMON, rank.shape[-1]), dim=-1, keepdim=True).values  # (N, 1)
    moved = (target_prob + alpha * (anchor_prob - target_prob)).clamp_min(SAFE_DECODING_FLOOR)
    return _allowed(moved.log_().masked_fill_(rank > last, -torch.inf), target_logp)


def contrastive(target_logp: Tensor, anchor_prob: Tensor, alpha: float) -> Tensor:
    """Contrastive decoding (arXiv 2210.15097, 2309.09117), the anchor as expert and the target as amateur.

    `Q^alpha P^(1 - alpha)` on the tokens that the anchor finds plausible. `alpha`, the second paper's 1 + beta, is at least 1,
    which is the anchor alone on these tokens; above 1, a token loses weight if the target finds it likely.
    """
    target_share = (1.0 - alpha) * target_logp if alpha > 1.0 else torch.zeros_like(target_logp)
    allowed_prob = anchor_prob.masked_fill(target_logp == -torch.inf, 0.0)
    implausible = allowed_prob < PLAUSIBLE * allowed_prob.amax(-1, keepdim=True)
    return _allowed((target_share + alpha * anchor_prob.log()).masked_fill(implausible, -torch.inf), target_logp)


def _ranks(prob: Tensor) -> Tensor:
    """The rank of each token (N, V) in its row, the most likely first; equally likely tokens in the order of their ids."""
    order = prob.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(prob.shape[-1], device=prob.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, ranks)


def _allowed(logp: Tensor, target_logp: Tensor, is_masked: bool = False) -> Tensor:
    """Normalize over the tokens that the target allows (`is_masked`: others are -inf already); an empty row gets the target's."""
    normalized = (logp if is_masked else logp.masked_fill_(target_logp == -torch.inf, -torch.inf)).log_softmax(-1)
    empty = normalized[:, :1].isnan()  # (N, 1): what is left of a row without a token
    return torch.where(empty, target_logp.log_softmax(-1), normalized) if empty.any() else normalized


#: The rules that need nothing but the two distributions and `alpha`, by name; the paper's own needs more and stands apart.
RULES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    rule.__name__: rule for rule in (linear, log_linear, safe_decoding, contrastive)
}
