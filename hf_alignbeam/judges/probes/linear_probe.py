"""A linear probe of hidden states, fitted by ridge regression.

Knows vectors and labels. Knows no model and no text.
"""

from typing import NamedTuple

import torch
from torch import Tensor

#: How strongly the weights are held small, beside a kernel whose diagonal is about 2, half of it the bias. Found on prompts for
#: tuning.
STRENGTH = 0.1


class LinearProbe(NamedTuple):
    """Weights (D,) and a bias: the score of a vector is near 1 for examples with the label, near -1 for others."""

    weight: Tensor
    bias: float

    def __call__(self, states: Tensor) -> Tensor:
        """The scores (n,) of vectors (n, D)."""
        return states.double() @ self.weight + self.bias


def fit_probe(states: Tensor, labels: Tensor) -> LinearProbe:
    """The probe of labeled examples, in which both labels weigh the same.

    Ridge regression on -1 and 1, over features with mean 0 and variance 1. It is solved for the examples (the dual form), as
    there are fewer of them than features.

    Args:
        states: (n, D) vectors.
        labels: (n,) bool, both kinds.

    Raises:
        ValueError: All labels are the same.
    """
    if labels.all() or not labels.any():
        raise ValueError(f"`labels` must be of both kinds, got {len(labels)} times {bool(labels.all())}.")
    states = states.double()
    mean, scale = states.mean(0), states.std(0, correction=0) + 1e-6
    features = (states - mean) / scale
    width = features.shape[1]
    share = torch.where(labels, labels.double().mean(), (~labels).double().mean())
    kernel = features @ features.mT / width + 1.0  # 1 for the bias
    solved = torch.linalg.solve(kernel + torch.diag(STRENGTH * 2.0 * share), torch.where(labels, 1.0, -1.0).double())
    weight = features.mT @ solved / (width * scale)
    return LinearProbe(weight, float(solved.sum() - weight @ mean))
