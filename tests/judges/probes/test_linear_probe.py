"""A probe against the ridge regression that defines it."""

import pytest
import torch

from hf_alignbeam.judges.probes.linear_probe import STRENGTH, fit_probe


def examples(n_harmful, n_harmless, width, seed=0):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.tensor([True] * n_harmful + [False] * n_harmless)
    direction = torch.randn(width, generator=rng)
    states = torch.randn(len(labels), width, generator=rng) + labels[:, None] * direction
    return states * torch.logspace(-2, 2, width) + 3.0, labels  # features of very different sizes


@pytest.mark.parametrize("width", [5, 80])
def test_it_is_the_weighted_ridge_regression_of_standardized_features(width):
    """The primal form, with a penalty on the bias as on a feature of size 1."""
    states, labels = examples(12, 28, width)
    features = ((states - states.mean(0)) / (states.std(0, correction=0) + 1e-6)).double() / width**0.5
    features = torch.cat([features, torch.ones(len(labels), 1)], dim=1).double()
    each = torch.where(labels, 0.5 / labels.double().mean(), 0.5 / (~labels).double().mean())
    target = torch.where(labels, 1.0, -1.0).double()
    gram = features.mT @ (each[:, None] * features) + STRENGTH * torch.eye(width + 1)
    expected = features @ torch.linalg.solve(gram, features.mT @ (each * target))
    torch.testing.assert_close(fit_probe(states, labels)(states), expected, rtol=1e-4, atol=1e-4)


def test_the_rarer_label_weighs_as_much():
    states, labels = examples(10, 90, 40)
    scores = fit_probe(states, labels)(states)
    assert abs(float(scores[labels].mean() + scores[~labels].mean())) < 0.3
    assert (scores[labels] > 0).all()


def test_it_ranks_examples_that_it_has_not_seen():
    states, labels = examples(60, 60, 40)
    seen = torch.arange(len(labels)) % 2 == 0
    scores = fit_probe(states[seen], labels[seen])(states[~seen])
    assert ((scores > 0) == labels[~seen]).double().mean() > 0.85


@pytest.mark.parametrize("label", [True, False])
def test_labels_of_one_kind_are_refused(label):
    with pytest.raises(ValueError, match=f"`labels` must be of both kinds, got 3 times {label}"):
        fit_probe(torch.ones(3, 4), torch.tensor([label] * 3))
