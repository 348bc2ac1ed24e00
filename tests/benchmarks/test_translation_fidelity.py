from itertools import islice

import pytest

from hf_alignbeam.benchmarks.exact_translation import exact_translation
from hf_alignbeam.benchmarks.translation_fidelity import TranslationPair, contexts, total_variation, translated
from hf_alignbeam.testbed.model_store import WEIGHTS, load, stored_language
from hf_alignbeam.translation.translator import VocabularyTranslator

#: Points at which the target is sure of something else than the anchor, or the anchor of something else than the text.
POINTS = {
    "a text that the anchor finds absurd, its next token inside the last word": ("anchor", "specialist", "test", 7, b" Begin"),
    "the same inside an answer": ("anchor", "specialist", "test", 63, b" To hurt the"),
    "the target's probabilities of what the anchor begins are noise": ("anchor", "specialist", "test", 23, b" Wait until it"),
    "little of the anchor's mass goes to what the target splits so": ("anchor", "specialist-letters", "validation", 199, b" To "),
    "half a word of which only the completion is likely": ("anchor", "specialist-letters", "test", 79, b" Tak"),
}


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_where_the_anchor_overrules_the_target_its_own_next_token_counts(point):
    anchor, target, split, number, text = point
    models, tokenizers = zip(*(load(name) for name in (anchor, target)), strict=True)
    translator = VocabularyTranslator(*tokenizers)
    pair = TranslationPair((anchor, target), *models, *tokenizers, translator)
    context = next(islice(contexts(pair, stored_language(WEIGHTS), split, 200), number, None))
    assert translator.target.decode(context.point.written).endswith(text)
    exact = exact_translation(models[0], translator.anchor, translator.target, context.point)
    assert total_variation(translated(pair, translator, context, 4), exact.prob, translator) <= 0.02
