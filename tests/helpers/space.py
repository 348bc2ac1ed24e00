"""The Space's models and prompts, for tests of its panels and of its page."""

from functools import cache

from answers import load_models

from helpers import ROOT
from hf_alignbeam import testbed
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import stored_language

SPACE = ROOT / "examples" / "space"
HARMFUL, HARMLESS = ("harmful", "prefill", "late"), ("domain", "general", "borderline")


@cache
def load_testbed_models():
    weights = [str(testbed.WEIGHTS / name) for name in ("specialist", "anchor", "judge-lm")]
    return load_models(*weights, refuses=GroundTruth(stored_language()).refusal)


def prompts(*kinds, n=1):
    return [prompt for kind in kinds for prompt in testbed.prompts("test", kind)[:n]]


def last(answers):
    """The finished answer of a stream."""
    return list(answers)[-1]
