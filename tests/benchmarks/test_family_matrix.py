"""The laws of steering hold on every family of decoders, in every mode of `generate`."""

import pytest
from helpers.variety import mostly_slow

from hf_alignbeam.benchmarks.family_matrix import FamilyBench
from hf_alignbeam.benchmarks.invariants import MODES
from hf_alignbeam.benchmarks.tiny_families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore")  # families warn about kernels that are not installed


@pytest.fixture(scope="module")
def bench():
    return FamilyBench()


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, ("Gemma 2",)))  # windows
def test_every_law_holds_in_every_mode(family, bench):
    laws = bench.laws(family)
    assert set(laws) >= set(MODES) - {"prompt lookup"}
    assert all(plain and followed for plain, followed in laws.values())


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, ("Qwen3.5",)))  # recurrent layers
def test_cached_anchor_equals_from_scratch_in_every_mode(family, bench):
    errors = bench.errors(family)
    assert max(errors.values()) <= 1e-4
    assert set(errors) == set(MODES)


def test_the_check_can_fail(bench):
    """Transformers' guidance keeps its cache by row number, which is wrong under beams: the same check finds that."""
    assert bench.guidance_error() > 1.0


def test_each_kind_of_anchor_gets_the_right_engine(bench):
    cached = {
        family: bench.is_cached(family) for family in ("Gemma 2", "Mistral (window)", "Llama 4", "BLOOM", "Mamba 2", "LFM2")
    }
    assert [family for family, is_cached in cached.items() if not is_cached] == ["BLOOM", "Mamba 2", "LFM2"]
