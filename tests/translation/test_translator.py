import gc
import weakref

import pytest
import torch
from helpers import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from hf_alignbeam.benchmarks.translation_loss import with_rule
from hf_alignbeam.testbed import tokenizers as toy
from hf_alignbeam.translation.translator import VocabularyTranslator

RULES = ["bytes", "drop", "first", "exact"]


@pytest.fixture(scope="module", params=["finer anchor", "finer target", "pieces to bytes"])
def pair(request, texts, byte_tokenizer, piece_tokenizer):
    """Tokenizers of anchor and target that differ in token length or in kind."""
    letters = toy.byte_level(texts, n_merges=4)
    return {
        "finer anchor": (letters, piece_tokenizer),
        "finer target": (byte_tokenizer, letters),
        "pieces to bytes": (piece_tokenizer, byte_tokenizer),
    }[request.param]


def distributions(translator, seed, n=2, sharpness=4.0):
    generator = torch.Generator().manual_seed(seed)
    sizes = len(translator.anchor), len(translator.target)
    return [(torch.randn(n, size, generator=generator) * sharpness).softmax(-1) for size in sizes]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_distributions_of_few_bits_are_translated_in_float32(dtype, anchor, specialist):
    translator = VocabularyTranslator(anchor[1], specialist[1])
    anchor_prob, target_prob = (each.to(dtype) for each in distributions(translator, seed=1))
    translation = translator(anchor_prob, target_prob)
    assert translation.prob.dtype == torch.float32
    torch.testing.assert_close(translation.prob.sum(-1) + translation.lost, torch.ones(2))
    torch.testing.assert_close(translation.prob, translator(anchor_prob.float(), target_prob.float()).prob)


def test_a_token_that_its_own_tokenizer_never_writes_is_kept_by_its_bytes_or_encoded_again():
    """As some of SmolLM2's and many of Gemma's: the paper's rules decode and encode."""
    vocab = {"</s>": 0, "a": 1, "b": 2, "ab": 3}
    anchor, target = (
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="</s>")
        for model in (models.BPE(vocab, [("a", "b")]), models.BPE({**vocab, "c": 4}, []))
    )
    prob = torch.tensor([[0.0, 0.1, 0.2, 0.7]])
    expected = {"bytes": [0, 0.1, 0.2, 0.7], "exact": [0, 0.1, 0.2, 0.7], "drop": [0, 1 / 3, 2 / 3, 0], "first": [0, 0.8, 0.2, 0]}
    for rule in RULES:
        translation = VocabularyTranslator(anchor, target, rule)(prob, torch.full((1, 5), 0.2))
        kept = torch.tensor([*expected[rule], 0]) * (1.0 - translation.lost)
        torch.testing.assert_close(translation.prob[0], kept)
        assert float(translation.lost[0]) == pytest.approx(0.7 if rule == "drop" else 0.0, abs=1e-6)


def test_the_papers_rules_encode_as_the_targets_tokenizer_does():
    """One that writes lower case has a token for what is no byte string of its vocabulary."""
    written = Tokenizer(models.BPE({"</s>": 0, "a": 1, "b": 2}, []))
    written.normalizer = normalizers.Lowercase()
    anchor, target = (
        PreTrainedTokenizerFast(tokenizer_object=each, eos_token="</s>")
        for each in (Tokenizer(models.BPE({"</s>": 0, "A": 1, "b": 2}, [])), written)
    )
    prob = torch.tensor([[0.0, 0.7, 0.3]])
    for rule, kept in (("bytes", 0.0), ("exact", 0.0), ("drop", 0.7), ("first", 0.7)):
        translation = VocabularyTranslator(anchor, target, rule)(prob, torch.full((1, 3), 1 / 3))
        torch.testing.assert_close(translation.prob[0], torch.tensor([0.0, kept, 0.3]))


@pytest.mark.parametrize("rule", RULES)
def test_translation_equals_its_dictionary_twin(pair, rule):
    translator = VocabularyTranslator(*pair, rule=rule)
    anchor_prob, target_prob = distributions(translator, seed=3)
    translation = translator(anchor_prob, target_prob)
    for row in range(2):
        expected, lost = reference.translate(translator.anchor, translator.target, anchor_prob[row], target_prob[row], rule)
        dense = torch.zeros(len(translator.target))
        for t, p in expected.items():
            dense[t] = p
        torch.testing.assert_close(translation.prob[row], dense, atol=1e-5, rtol=1e-4)
        assert translation.lost[row].item() == pytest.approx(lost, abs=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pending", [b"", b" ", b" ki"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), sharpness=st.floats(0.0, 30.0))
def test_mass_kept_and_lost_is_one(pair, rule, pending, seed, sharpness):
    translator = VocabularyTranslator(*pair, rule=rule)
    anchor_prob, target_prob = distributions(translator, seed, sharpness=sharpness)
    translation = translator(anchor_prob, target_prob, pending=pending)
    torch.testing.assert_close(translation.prob.sum(-1) + translation.lost, torch.ones(2), atol=1e-5, rtol=0)
    assert (translation.prob >= 0).all()


def test_rule_bytes_loses_no_ordinary_token(pair):
    translator = VocabularyTranslator(*pair)
    _, target_prob = distributions(translator, seed=1)
    uniform = torch.tensor([[float(bool(token)) for token in translator.anchor.tokens]])
    translation = translator(uniform / uniform.sum(), target_prob[:1])
    assert translation.lost.item() == pytest.approx(0.0, abs=1e-6)


def test_equal_vocabularies_translate_by_the_identity(byte_tokenizer):
    translator = VocabularyTranslator(byte_tokenizer, byte_tokenizer)
    anchor_prob, target_prob = distributions(translator, seed=0)
    assert translator.identity
    assert torch.equal(translator(anchor_prob, target_prob).prob, anchor_prob)
    inside = translator(anchor_prob, target_prob, pending=b" h").prob  # the text ends inside a token: others do not go on
    is_completion = translator.table(b" h").possible > 0
    assert set(inside.sum(0).nonzero()[:, 0].tolist()) == set(translator.table(b" h").target_of[is_completion].tolist())


def test_renumbering_the_anchor_changes_nothing(anchor, renumbered_anchor, specialist):
    before = VocabularyTranslator(anchor[1], specialist[1])
    after = VocabularyTranslator(renumbered_anchor[1], specialist[1])
    anchor_prob, target_prob = distributions(before, seed=5)
    old, new = anchor[1].get_vocab(), renumbered_anchor[1].get_vocab()
    permuted = torch.zeros_like(anchor_prob)
    for token, i in old.items():
        permuted[:, new[token]] = anchor_prob[:, i]
    torch.testing.assert_close(before(anchor_prob, target_prob).prob, after(permuted, target_prob).prob)


def test_pending_bytes_leave_only_tokens_that_continue_them(byte_tokenizer, piece_tokenizer):
    translator = VocabularyTranslator(piece_tokenizer, byte_tokenizer)
    anchor_prob, target_prob = torch.zeros(1, len(translator.anchor)), distributions(translator, 1)[1][:1]
    kill, the = translator.anchor.by_bytes[b" kill"], translator.anchor.by_bytes[b" the"]
    anchor_prob[0, kill], anchor_prob[0, the] = 0.3, 0.7
    translation = translator(anchor_prob, target_prob, pending=b" ki")
    assert translation.prob[0].argmax() == translator.target.encode(b"ll")[0]
    assert translation.prob.sum().item() == pytest.approx(1.0)


def test_a_target_only_prefix_comes_before_the_text(byte_tokenizer, piece_tokenizer):
    translator = VocabularyTranslator(byte_tokenizer, piece_tokenizer)
    anchor_prob, target_prob = torch.zeros(1, len(translator.anchor)), torch.full((1, len(translator.target)), 1e-3)
    anchor_prob[0, translator.anchor.encode(b"I")[0]] = 1.0
    prob = translator(anchor_prob, target_prob, target_only_prefix=b" ").prob[0]
    assert all(translator.target.tokens[i].startswith(b" I") for i in prob.nonzero().flatten().tolist())


def test_eos_mass_is_shared_by_the_targets_own_ratio(byte_tokenizer, piece_tokenizer):
    ends = (piece_tokenizer.eos_token_id, piece_tokenizer.convert_tokens_to_ids("[/SYS]"))
    translator = VocabularyTranslator(byte_tokenizer, piece_tokenizer, eos_ids=ends)
    anchor_prob, target_prob = torch.zeros(1, len(translator.anchor)), torch.zeros(1, len(translator.target))
    anchor_prob[0, byte_tokenizer.eos_token_id] = 1.0
    target_prob[0, list(ends)] = torch.tensor([0.3, 0.1])
    torch.testing.assert_close(translator(anchor_prob, target_prob).prob[0, list(ends)], torch.tensor([0.75, 0.25]))


def test_mass_on_padded_logits_is_lost(byte_tokenizer, piece_tokenizer):
    translator = VocabularyTranslator(byte_tokenizer, piece_tokenizer)
    anchor_prob = torch.zeros(1, len(translator.anchor) + 8)
    anchor_prob[0, -1] = 1.0
    translation = translator(anchor_prob, torch.full((1, len(translator.target) + 3), 0.01))
    assert translation.lost.item() == 1.0


def test_unknown_rule_is_refused(byte_tokenizer, piece_tokenizer):
    with pytest.raises(ValueError, match="`rule` must be one of bytes, drop, first, exact, got 'nearest'"):
        VocabularyTranslator(byte_tokenizer, piece_tokenizer, rule="nearest")


def test_text_whose_tokens_are_not_canonical_is_ruled_out(byte_tokenizer, piece_tokenizer):
    translator = VocabularyTranslator(byte_tokenizer, piece_tokenizer)
    whole = translator.target.encode(b" kill")
    assert len(whole) == 1
    start = translator.target.by_bytes[b" k"]
    assert translator.retokenizer.next_token(b"ill", (start,)) is None
    assert translator.retokenizer.next_token(b"ill", ()) == translator.target.encode(b"ill")[0]
    assert translator.retokenizer.canonical(translator.target.encode(b"ill")[:1], (start,)) == ()
    path = translator.anchor.encode(b"ill")
    assert translator.retokenizer.first_tokens(path, word=(start,)).canonical_share < 1.0
    assert translator.retokenizer.first_tokens(path).canonical_share == 1.0


def test_next_token_continues_the_tokens_written(byte_tokenizer, piece_tokenizer):
    translator = VocabularyTranslator(byte_tokenizer, piece_tokenizer)
    word = translator.target.encode(b" mayorqq")
    assert translator.retokenizer.next_token(word and translator.target.tokens[word[-1]], word[:-1]) == word[-1]


@pytest.mark.parametrize(
    ("name", "widths"), [("anchor_prob", (7, None)), ("anchor_prob", (100_000, None)), ("target_prob", (None, 7))]
)
def test_distributions_of_other_tokenizers_are_refused(name, widths, byte_tokenizer, piece_tokenizer):
    translator = VocabularyTranslator(byte_tokenizer, piece_tokenizer)
    sizes = [given or len(own) for given, own in zip(widths, (translator.anchor, translator.target), strict=True)]
    with pytest.raises(ValueError, match=f"`{name}` must have shape .* built for other tokenizers"):
        translator(torch.zeros(1, sizes[0]), torch.zeros(1, sizes[1]))


def test_an_eos_id_with_bytes_is_not_read_as_text(byte_tokenizer, piece_tokenizer):
    eos = byte_tokenizer.convert_tokens_to_ids("q")
    translator = VocabularyTranslator(byte_tokenizer, piece_tokenizer, anchor_eos_ids=[eos])
    anchor_prob, target_prob = torch.zeros(1, len(translator.anchor)), torch.full((1, len(translator.target)), 1e-3)
    anchor_prob[0, eos] = 1.0
    assert translator.anchor.tokens[eos] is None
    prob = translator(anchor_prob, target_prob).prob[0]
    assert prob[piece_tokenizer.eos_token_id] == pytest.approx(1.0)


def test_a_vocabulary_may_be_wider_than_the_models_logits(byte_tokenizer, piece_tokenizer):
    """Where the model has no rows for its tokenizer's special tokens."""
    translator = VocabularyTranslator(byte_tokenizer, piece_tokenizer, anchor_eos_ids=[byte_tokenizer.eos_token_id])
    width = translator.anchor.widths.start
    anchor_prob = torch.full((1, width), 1.0 / width)
    target_prob = torch.full((1, len(translator.target)), 1.0 / len(translator.target))
    for pending in (b"", b" "):
        translation = translator(anchor_prob, target_prob, pending=pending)
        assert (translation.prob.sum() + translation.lost).item() == pytest.approx(1.0, abs=1e-5)


def test_caches_do_not_keep_a_translator_alive(byte_tokenizer, piece_tokenizer):
    translator = VocabularyTranslator(byte_tokenizer, piece_tokenizer)
    translator.retokenizer.first_tokens(translator.anchor.encode(b"the"))
    translator.table()
    other = with_rule(translator, "exact")
    assert other.table() is not translator.table()
    seen = weakref.ref(translator)
    del translator
    gc.collect()
    assert seen() is None
