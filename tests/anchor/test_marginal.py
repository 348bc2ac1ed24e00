"""The sum of the covers, against the translator's table at the same point."""

import pytest
import torch

from hf_alignbeam.anchor.covering import CoverDistribution, target_distributions
from hf_alignbeam.anchor.marginal import marginal
from hf_alignbeam.anchor.state import Distributions, Node, RowState
from hf_alignbeam.translation.translator import AS_IS_WEIGHT, VocabularyTranslator

#: The target's probabilities of a token and of one that goes on: what both may take of the anchor's mass depends on their ratio.
RATIOS = [(1e-9, 1e-7), (1e-7, 1e-9), (1e-4, 3e-4), (0.2, 0.1), (0.0, 0.0)]


@pytest.fixture(scope="module")
def translator(anchor, specialist):
    return VocabularyTranslator(anchor[1], specialist[1])


@pytest.mark.parametrize(("as_is", "longer"), RATIOS)
@pytest.mark.parametrize("mass", [0.5, 0.009])
def test_the_target_divides_an_ambiguous_token_by_the_ratio_of_its_probabilities(translator, mass, as_is, longer):
    """Whether the token is tracked one by one, as the heavy ones are, or through the table."""
    token = translator.anchor.by_bytes[b" de"]
    places = [translator.retokenizer.next_token(b" de"), translator.target.by_bytes[b" decl"]]
    anchor_prob = torch.zeros(1, len(translator.anchor))
    anchor_prob[0, token], anchor_prob[0, translator.anchor.eos_ids[0]] = mass, 1.0 - mass
    target_prob = torch.zeros(1, len(translator.target))
    target_prob[0, places] = torch.tensor([as_is, longer])
    target_prob[0, translator.target.eos_ids[0]] = 1.0 - as_is - longer
    row = RowState(b"", (), {(): Node(Distributions(anchor_prob), 0)}, (), b"", b"")
    covers = CoverDistribution.canonical(row, translator, target_distributions(target_prob)[0])
    total = as_is + longer
    share = (as_is + AS_IS_WEIGHT * total) / ((1 + AS_IS_WEIGHT) * total) if total else 1.0
    expected = torch.tensor([mass * share, mass * (1.0 - share)])
    for result in (marginal([covers], [row], target_prob), translator(anchor_prob, target_prob)):
        torch.testing.assert_close(result.prob[0, places], expected, atol=1e-6, rtol=1e-4)
