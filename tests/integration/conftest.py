"""The Space's models, and the ground truth on their answers."""

import pytest
from helpers.space import load_testbed_models

from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import stored_language


@pytest.fixture(scope="session")
def truth():
    return GroundTruth(stored_language())


@pytest.fixture(scope="session")
def models():
    return load_testbed_models()
