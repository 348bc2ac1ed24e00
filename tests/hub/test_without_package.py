"""A published folder needs neither the package nor a network: transformers' own loader gives the object's tokens."""

import json

import pytest
from helpers.entries import CALLS, GENERATE, TRUSTED, WITHOUT_NETWORK, result_of

from hf_alignbeam.hub.publish import ENTRIES
from hf_alignbeam.testbed.model_store import WEIGHTS

#: As `GENERATE`, and fails if a connection is tried or the package is imported.
OFFLINE = (
    WITHOUT_NETWORK
    + """
import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_OFFLINE = True
"""
    + GENERATE
    + """
assert not [name for name in sys.modules if name.split(".")[0] == "hf_alignbeam"]
assert not attempts
"""
)


@pytest.mark.parametrize("strategy", ENTRIES)
def test_a_strategys_folder_gives_the_objects_tokens(strategy, strategy_folder, in_a_process, object_outputs):
    (target, models), (inputs, expected) = CALLS[strategy], object_outputs[strategy]
    named = {argument: str(WEIGHTS / model) for argument, model in models.items()}
    options = {"custom_generate": strategy_folder(strategy), **named}
    done = in_a_process(OFFLINE, WEIGHTS / target, "{}", json.dumps(inputs), json.dumps(options))
    assert result_of(done) == expected


def test_a_protected_models_folder_gives_the_objects_tokens(protected_folder, in_a_process, object_outputs):
    inputs, expected = object_outputs["alignbeam"]
    done = in_a_process(OFFLINE, protected_folder, json.dumps(TRUSTED), json.dumps(inputs), "{}")
    assert result_of(done) == expected
