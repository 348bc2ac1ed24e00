from functools import partial

import pytest
import torch
from conftest import engine
from helpers import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_alignbeam.anchor.follower import Follower, RowStart
from hf_alignbeam.benchmarks.exact_translation import MAX_WALKED, AnswerPoint, exact_translation, sampled_translation
from hf_alignbeam.benchmarks.translation_fidelity import total_variation
from hf_alignbeam.chat.template_parser import TemplateParser
from hf_alignbeam.chat.templates import encode_prompt
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.testbed import prompts
from hf_alignbeam.testbed import tokenizers as toy
from hf_alignbeam.translation.translator import VocabularyTranslator

TEXTS = {
    b"Sorry, I will not do that.": 0.4,
    b"Sorry, that is harmful.": 0.15,
    b"So the mayor is dead.": 0.1,
    b"Some poison kills the mayor.": 0.2,
    b"Some people do.": 0.05,
    b"To kill the mayor, use poison.": 0.08,
    b"To": 0.02,
}
PROMPT = [0]


@pytest.fixture(scope="module", params=["letters", pytest.param("pieces", marks=pytest.mark.slow), "words"])
def grain(request, texts):
    """A tokenizer for the anchor: tokens of different lengths for the same texts."""
    return toy.byte_level(
        [*texts, *(text.decode() for text in TEXTS)], n_merges={"letters": 2, "pieces": 60, "words": 900}[request.param]
    )


@pytest.fixture(scope="module", params=["letters", "words"])
def translator(request, grain, texts):
    own_texts = [text.decode() for text in TEXTS]
    target = toy.sentencepiece_style([*texts, *own_texts], n_pieces={"letters": 70, "words": 400}[request.param])
    return VocabularyTranslator(grain, target)


def contexts(translator):
    """The target's tokens at every point of every text."""
    points = set()
    for text in TEXTS:
        ids = translator.target.encode(b" " + text)
        points |= {ids[:n] for n in range(len(ids) + 1)}
    return sorted(points, key=lambda ids: (len(ids), ids))


def bytes_with_lookahead(model, translator, written, n_lookahead, target_prob):
    follower = Follower(engine(model), translator, [RowStart(PROMPT, b"", b" ")], n_lookahead)
    for i in written:
        follower.write([i])
    return follower.predict(target_prob[None], [0]).prob[0]


def test_look_ahead_is_exact_for_any_tokenization_of_the_anchor(translator):
    """Splitting or merging the anchor's tokens changes nothing: the distribution is that of the texts themselves."""
    model = reference.TextAnchor(translator.anchor, TEXTS)
    target_prob = torch.full((len(translator.target),), 1.0 / len(translator.target))
    for written in contexts(translator):
        exact = reference.exact_over_texts(translator.target, TEXTS, written, b" ")
        prob = bytes_with_lookahead(model, translator, written, 24, target_prob)
        assert total_variation(prob, exact, translator) <= 0.01, translator.target.decode(written)


def test_enumeration_agrees_with_the_texts(translator):
    model = reference.TextAnchor(translator.anchor, TEXTS)
    for written in contexts(translator):
        exact = reference.exact_over_texts(translator.target, TEXTS, written, b" ")
        walked = exact_translation(model, translator.anchor, translator.target, AnswerPoint(PROMPT, b"", b" ", tuple(written)))
        assert total_variation(walked.prob, exact, translator) <= 0.003
        assert walked.unresolved <= 0.003


def test_drawn_paths_agree_with_the_texts(translator):
    """Few paths give an estimate that is about right on average, enough of them the translation itself."""
    model = reference.TextAnchor(translator.anchor, TEXTS)
    for written in contexts(translator)[:4]:
        exact = reference.exact_over_texts(translator.target, TEXTS, written, b" ")
        point = AnswerPoint(PROMPT, b"", b" ", tuple(written))
        estimate = partial(sampled_translation, model, translator.anchor, translator.target, point)
        assert total_variation(estimate(500, 0).prob, exact, translator) <= 0.01
        few = torch.stack([estimate(12, seed).prob for seed in range(12)])
        assert total_variation(few.mean(0), exact, translator) <= 0.1


@pytest.mark.parametrize("n_kept", [1500, pytest.param(20_000, marks=pytest.mark.slow)])
def test_enumeration_agrees_with_sampling(n_kept, anchor, specialist):
    """Up to the difference between two halves of the sample."""
    translator = VocabularyTranslator(anchor[1], specialist[1])
    reader = TemplateParser(specialist[1])
    prompt = prompts("validation", "harmful")[0]
    parsed = reader.parse(tuple(encode([prompt.conversation], specialist[1])["input_ids"][0].tolist()))
    ids, leading_whitespace = encode_prompt(anchor[1], translator.anchor.tokens, parsed.messages)
    first = exact_translation(
        anchor[0], translator.anchor, translator.target, AnswerPoint(ids, leading_whitespace, parsed.leading_whitespace, ())
    )
    written = (), (int(first.prob.argmax()),)
    halves = [
        reference.sampled_translations(
            anchor[0], ids, translator.anchor, translator.target, written, parsed.leading_whitespace, n_kept // 2, seed
        )
        for seed in (1, 2)
    ]
    for prefix, *sampled in zip(written, *halves, strict=True):
        walked = exact_translation(
            anchor[0],
            translator.anchor,
            translator.target,
            AnswerPoint(ids, leading_whitespace, parsed.leading_whitespace, prefix),
        )
        floor = 0.5 * float((sampled[0] - sampled[1]).abs().sum())
        assert total_variation((sampled[0] + sampled[1]) / 2, walked.prob, translator) <= floor + 0.01


@pytest.mark.parametrize("n_walked", [1000, pytest.param(MAX_WALKED, marks=pytest.mark.slow)])
def test_noncanonical_tokens_of_the_target_have_no_exact_translation(n_walked, translator, monkeypatch):
    monkeypatch.setattr("hf_alignbeam.benchmarks.exact_translation.MAX_WALKED", n_walked)
    model = reference.TextAnchor(translator.anchor, TEXTS)
    written = tuple(translator.target.by_bytes[bytes([byte])] for byte in b" Sorry")
    assert exact_translation(model, translator.anchor, translator.target, AnswerPoint(PROMPT, b"", b" ", written)) is None


@settings(max_examples=20)
@given(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3).filter(lambda masses: sum(masses) > 0.1))
def test_total_variation_is_half_the_absolute_difference(masses):
    prob = torch.zeros(8)
    prob[:3] = torch.tensor(masses) / sum(masses)
    other = torch.zeros(8)
    other[3] = 1.0

    class Ends:
        target = type("Target", (), {"eos_ids": (7,)})

    assert total_variation(other, other, Ends) == pytest.approx(0.0)
    assert total_variation(prob, other, Ends) == pytest.approx(1.0)
    assert total_variation(torch.zeros(8), other, Ends) == 1.0
