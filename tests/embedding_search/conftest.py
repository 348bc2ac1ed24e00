"""The testbed's models and judges that are searched with, each loaded once."""

import pytest
from helpers.searches import N_NEW, framed, harmless, steerer_for

from hf_alignbeam import PlausibleAnswer, testbed
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import stored_language


@pytest.fixture(scope="session")
def thin():
    """The testbed's model that complies under framings: (model, tokenizer)."""
    return testbed.load("thin")


@pytest.fixture(scope="session")
def graded(judges):
    judge = judges["graded"]
    judge.identity = "the truth, graded"  # to hash all of its language takes seconds
    return judge


@pytest.fixture(scope="session")
def accept(anchor):
    return PlausibleAnswer(*anchor)


@pytest.fixture(scope="session")
def truth():
    return GroundTruth(stored_language())


@pytest.fixture(scope="session")
def default_results(thin, graded, accept):
    """The results for three flagged and three clean prompts under the default settings."""
    return steerer_for(thin, graded, accept).precompute(framed(3) + harmless(3), max_new_tokens=N_NEW)
