"""Targets and anchors compiled with `torch.compile`: guarded answers stay as they are."""

from contextlib import contextmanager

import pytest
import torch
from helpers.strategies import answer_ids

from hf_alignbeam import AnchorLogitsProcessor

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # what torch's compiler warns of is its own


@contextmanager
def compiled(*models):
    """The models with compiled forwards, for lengths and batches of every size."""
    forwards = [model.forward for model in models]
    for model in models:
        model.forward = torch.compile(model.forward, dynamic=True)
    try:
        yield
    finally:
        for model, forward in zip(models, forwards, strict=True):
            model.forward = forward


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_compiled_models_give_the_same_answers(cache, specialist, anchor, strategy, oracle, mixed):
    options = {"cache_implementation": "static"} if cache == "static" else {}
    kinds = {"processor": {"logits_processor": [AnchorLogitsProcessor(*anchor, specialist[1])]}, "strategy": {}}
    guards = {"processor": None, "strategy": strategy(oracle)}
    expected = {name: answer_ids(specialist, mixed, guards[name], **kinds[name]) for name in kinds}
    assert expected["processor"] != answer_ids(specialist, mixed)
    with compiled(specialist[0], anchor[0]):
        for name in kinds:
            assert answer_ids(specialist, mixed, guards[name], **kinds[name], **options) == expected[name]
