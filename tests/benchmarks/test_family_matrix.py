import pytest

from hf_alignbeam.benchmarks.family_matrix import FamilyBench
from hf_alignbeam.benchmarks.invariants import MODES
from hf_alignbeam.benchmarks.tiny_families import FAMILIES

#: One for each way an anchor is run: full layers, windows, recurrent layers.
FAST = ("Qwen3", "Gemma 2", "Qwen3.5")
pytestmark = pytest.mark.filterwarnings("ignore")  # families warn about kernels that are not installed


@pytest.fixture(scope="module")
def bench():
    return FamilyBench()


def few_by_default(families):
    return [f if f in FAST else pytest.param(f, marks=pytest.mark.slow) for f in families]


@pytest.mark.parametrize("family", few_by_default(FAMILIES))
def test_every_law_holds_in_every_mode(family, bench):
    laws = bench.laws(family)
    assert set(laws) >= set(MODES) - {"prompt lookup"}
    assert all(plain and followed for plain, followed in laws.values())


@pytest.mark.parametrize("family", few_by_default(FAMILIES))
def test_cached_anchor_equals_from_scratch_in_every_mode(family, bench):
    errors = bench.errors(family)
    assert max(errors.values()) <= 1e-4
    assert set(errors) == set(MODES)


def test_the_check_is_seen_to_fail(bench):
    """A processor whose second model's cache follows row numbers is wrong under beams, and the same check says so."""
    assert bench.guidance_error() > 1.0


def test_recurrent_and_windowed_anchors_are_run_as_they_must(bench):
    cached = {
        family: bench.is_cached(family) for family in ("Gemma 2", "Mistral (window)", "Llama 4", "BLOOM", "Mamba 2", "LFM2")
    }
    assert [family for family, kept in cached.items() if not kept] == ["BLOOM", "Mamba 2", "LFM2"]
