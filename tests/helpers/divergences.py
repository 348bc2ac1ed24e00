"""The divergence of two distributions, by hand."""

import math


def by_hand(mixed_logits, unsteered_logits):
    """KL(mixed || unsteered) in nats."""
    mixed_logp, logp = (values.double().log_softmax(-1) for values in (mixed_logits, unsteered_logits))
    return sum(math.exp(m) * (m - u) for m, u in zip(mixed_logp.tolist(), logp.tolist(), strict=True) if m > -math.inf)
