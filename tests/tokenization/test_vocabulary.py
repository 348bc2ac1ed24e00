import copy
import json
import unicodedata
from functools import cache
from pathlib import Path

import mistral_common
import pytest
from conftest import TOKENIZERS
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from hf_alignbeam.tokenization.backends import WORD_START, read_backend
from hf_alignbeam.tokenization.losses import losses
from hf_alignbeam.tokenization.vocabulary import Vocabulary, complete_characters, decode, token_bytes

HARD = [
    "Hello world",
    " two  spaces   and\ttabs\r\n\nlines",
    "naïve café Ünïcödé — “quotes”",
    "Привет мир",
    "你好，世界",
    "こんにちは",
    "안녕하세요",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "👩‍👩‍👧‍👦 🏳️‍🌈 ☃",
    "def f(x):\n    return x**2  # 12345 67,890",
    "control \x01\x02\x7f end",
]
LITERAL_MARK = "a literal \u2581 becomes a space"
NFC = "composed characters are rewritten (NFC)"
NFKC = "compatible characters are rewritten (NFKC)"
LOSSES = {
    "gpt2": (),
    "llama2": (LITERAL_MARK,),
    "llama3": (),
    "qwen3": (NFC,),
    "gemma2": (LITERAL_MARK,),
    "falcon": ("no token for 15 bytes",),
    "t5": ("no byte fallback", "white space is not kept", NFC, NFKC, LITERAL_MARK),
    "deepseek_v3": (),
}
MISTRAL = {
    "tekken_240911.json": (),
    "mistral_instruct_tokenizer_240323.model.v3": (LITERAL_MARK,),
    "tokenizer.model.v1": (LITERAL_MARK,),
}


@pytest.fixture(scope="module")
def real(real_tokenizer):
    """Real tokenizers and their vocabularies by name."""
    return cache(lambda name: (real_tokenizer(name), Vocabulary(real_tokenizer(name))))


def kept(text, name, vocabulary):
    """The text as a tokenizer with these losses must keep it."""
    if NFC in LOSSES[name]:
        text = unicodedata.normalize("NFC", text)
    if LITERAL_MARK in LOSSES[name]:
        text = text.replace(WORD_START, " ")
    return b"".join(bytes([b]) for b in text.encode() if bytes([b]) in vocabulary.by_bytes)


@pytest.mark.parametrize("fixture", ["byte_tokenizer", "piece_tokenizer"])
@given(text=st.text(min_size=1, max_size=40))
def test_token_bytes_concatenate_to_the_text(fixture, request, text):
    vocabulary = Vocabulary(request.getfixturevalue(fixture))
    data = text.encode("utf-8", errors="ignore")
    assert b"".join(vocabulary.tokens[i] for i in vocabulary.encode(data)) == data


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "t5"])
@settings(max_examples=60)
@given(text=st.text(min_size=1, max_size=60) | st.sampled_from(HARD))
def test_token_bytes_concatenate_to_the_text_real(name, real, text):
    tokenizer, vocabulary = real(name)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    expected = kept(text, name, vocabulary)
    assert vocabulary.decode(ids) in (expected, b" " + expected)  # llama2 puts a dummy space in front


@pytest.mark.parametrize("name", TOKENIZERS)
def test_losses_of_real_tokenizers_are_named(name, real):
    _, vocabulary = real(name)
    assert len(losses(vocabulary)) == len(LOSSES[name])
    assert all(loss.startswith(expected) for loss, expected in zip(losses(vocabulary), LOSSES[name], strict=True))


#: Larger tables of schemes that other tokenizers have too.
LARGER = ("qwen3", "gemma2", "deepseek_v3")
#: Without T5: xgrammar keeps its word-start marks.
CHECKED = [pytest.param(name, marks=pytest.mark.slow) if name in LARGER else name for name in TOKENIZERS if name != "t5"]


@pytest.mark.parametrize("name", CHECKED)
def test_an_independent_table_agrees(name, real):
    xgrammar = pytest.importorskip("xgrammar", reason='xgrammar is not installed: pip install -e ".[crosscheck]"')
    tokenizer, vocabulary = real(name)
    table = xgrammar.TokenizerInfo.from_huggingface(tokenizer).decoded_vocab
    assert [other for ours, other in zip(vocabulary.tokens, table, strict=True) if ours is not None] == [
        ours for ours in vocabulary.tokens if ours is not None
    ]


def test_decode_skips_ids_without_bytes_and_ids_past_the_end():
    assert decode([b"a", None, b"bc"], [2, 1, 0, 7]) == b"bca"
    assert decode([], [0]) == b""


def test_token_bytes_has_one_entry_per_id_and_none_for_special_tokens(byte_tokenizer):
    tokens = token_bytes(byte_tokenizer)
    assert len(tokens) == len(byte_tokenizer)
    assert tokens[byte_tokenizer.eos_token_id] is None
    assert sum(token is None for token in tokens) == 4


def test_word_start_marks_are_spaces_and_fallback_tokens_are_single_bytes(piece_tokenizer):
    tokens = token_bytes(piece_tokenizer)
    assert tokens[piece_tokenizer.convert_tokens_to_ids("▁the")] == b" the"
    assert tokens[piece_tokenizer.convert_tokens_to_ids("<0xE9>")] == b"\xe9"
    assert tokens[piece_tokenizer.unk_token_id] is None


def test_added_tokens_keep_their_latin_characters(byte_tokenizer, texts):
    from hf_alignbeam.testbed.tokenizers import byte_level

    tokenizer = byte_level(texts, n_merges=5)
    tokenizer.add_tokens(["café"])
    assert token_bytes(tokenizer)[-1] == "café".encode()


def test_a_table_is_shared_until_the_tokenizer_changes(texts):
    from hf_alignbeam.testbed.tokenizers import byte_level

    tokenizer = byte_level(texts, n_merges=5)
    first = token_bytes(tokenizer)
    assert token_bytes(tokenizer) is first
    assert token_bytes(copy.deepcopy(tokenizer)) == first
    tokenizer.add_special_tokens({"extra_special_tokens": ["a"]})  # as many tokens as before
    assert len(tokenizer) == len(first)
    assert (first[tokenizer.convert_tokens_to_ids("a")], token_bytes(tokenizer)[tokenizer.convert_tokens_to_ids("a")]) == (
        b"a",
        None,
    )
    tokenizer.add_tokens(["word"])
    assert token_bytes(tokenizer)[-1] == b"word"
    (before,) = read_backend(tokenizer).encode_batch(["WORD"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    (after,) = read_backend(tokenizer).encode_batch(["WORD"])
    assert (decode(token_bytes(tokenizer), before), decode(token_bytes(tokenizer), after)) == (b"WORD", b"word")


def test_encoding_puts_no_space_in_front(piece_tokenizer):
    vocabulary = Vocabulary(piece_tokenizer)
    assert vocabulary.tokens[vocabulary.encode(b"the")[0]][:1] == b"t"
    assert vocabulary.encode(b" the") == (piece_tokenizer.convert_tokens_to_ids("▁the"),)


def test_names_of_special_tokens_are_encoded_as_plain_text(byte_tokenizer):
    vocabulary = Vocabulary(byte_tokenizer)
    assert byte_tokenizer.eos_token_id not in vocabulary.encode(b"<|im_end|>")


def test_broken_characters_are_encoded_byte_by_byte(byte_tokenizer):
    vocabulary = Vocabulary(byte_tokenizer)
    assert [vocabulary.tokens[i] for i in vocabulary.encode("é".encode()[:1])] == ["é".encode()[:1]]


def test_encode_batch_equals_encode_one_by_one(piece_tokenizer):
    vocabulary = Vocabulary(piece_tokenizer)
    pieces = [b" kill", b"", b"\xff", "é".encode(), b"the poison"]
    assert vocabulary.encode_batch(pieces) == [vocabulary.encode(piece) for piece in pieces]


def test_endings_equal_a_scan_of_all_tokens(byte_tokenizer):
    vocabulary = Vocabulary(byte_tokenizer)
    for prefix in (b" ", b"t", b" th", b"\xff", b"no token starts so"):
        scanned = {i for i, token in enumerate(vocabulary.tokens) if token and token.startswith(prefix) and token != prefix}
        ids, endings = vocabulary.endings(prefix)
        assert set(ids) == scanned
        assert [prefix + ending for ending in endings] == [vocabulary.tokens[i] for i in ids]


@given(st.text(max_size=8), st.integers(0, 3))
def test_complete_characters_cuts_off_a_broken_character_and_no_more(text, n_cut):
    data = text.encode("utf-8", errors="ignore")
    cut = data[: len(data) - n_cut] if n_cut <= len(data) else b""
    whole = cut[: complete_characters(cut)]
    whole.decode()
    assert len(cut) - len(whole) <= 3


def scheme(name, texts):
    """A small tokenizer of a scheme that no real one here has."""
    if name == "byte-level with a prefix space":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(
            texts, trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
        )
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    learner.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", show_progress=False))
    learned = [tuple(piece) for piece in json.loads(learner.to_str())["model"]["vocab"] if piece[0] != "<unk>"]
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -20.0) for byte in range(256)), *learned]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("name", ["byte-level with a prefix space", "unigram with byte fallback"])
def test_other_tokenization_schemes_keep_the_text(name, texts):
    tokenizer = scheme(name, texts)
    vocabulary = Vocabulary(tokenizer)
    for text in [*HARD, *texts[:20]]:
        decoded = vocabulary.decode(tokenizer(text, add_special_tokens=False).input_ids)
        assert decoded in (text.encode(), b" " + text.encode())
        assert vocabulary.decode(vocabulary.encode(text.encode())) == text.encode()
    assert vocabulary.encode(b"mayor")[0] != vocabulary.encode(b" mayor")[0]


@cache
def mistral(name):
    """One of the tokenizers that mistral-common ships, behind transformers' own wrapper."""
    from transformers.tokenization_mistral_common import MistralCommonBackend

    tokenizer = MistralCommonBackend(tokenizer_path=Path(mistral_common.__file__).parent / "data" / name)
    return tokenizer, Vocabulary(tokenizer)


@pytest.mark.parametrize("name", MISTRAL)
@settings(max_examples=60)
@given(text=st.text(min_size=1, max_size=60) | st.sampled_from(HARD))
def test_mistral_common_tokens_concatenate_to_the_text(name, text):
    tokenizer, vocabulary = mistral(name)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert losses(vocabulary) == MISTRAL[name]
    if LITERAL_MARK in MISTRAL[name]:
        text = text.replace(WORD_START, " ")
    assert vocabulary.decode(ids) in (text.encode(), b" " + text.encode())  # SentencePiece puts a dummy space in front
    assert vocabulary.decode(vocabulary.encode(text.encode())) == text.encode()


@pytest.mark.parametrize("name", MISTRAL)
def test_mistral_common_special_tokens_have_no_bytes(name):
    tokenizer, vocabulary = mistral(name)
    assert len(vocabulary.tokens) == len(tokenizer)
    assert all(vocabulary.tokens[i] is None for i in tokenizer.all_special_ids)
    assert tokenizer.eos_token_id not in vocabulary.encode(b"</s>")
    assert vocabulary.encode(b"the")[0] == vocabulary.by_bytes[b"the"]


def test_a_tokenizer_with_another_back_end_is_refused():
    with pytest.raises(ValueError, match=r"`tokenizer` must have a `tokenizers` or a mistral-common back end.*ByT5Tokenizer"):
        token_bytes(ByT5Tokenizer())
