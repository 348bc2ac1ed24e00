"""A tokenizer that cannot write a text is found out, and one that can is never suspected."""

import time

import pytest
from helpers.toy_tokenizers import end_of_word, wordpiece

from hf_alignbeam.judges.reading.lossless import LossCheck

#: Texts that any judge of answers reads every day.
ENGLISH = (
    "I do not know. You're right, it isn't! They've said \"we'll see\"... (or not?)",
    "## Steps\n\n1. Mix `a_b` & c; 2. wait -- 5% of 3/4 @ home #now\n\n\t- end {x: [1, 2]} <b>bold</b> C:\\dir https://a.b/c?d=e",
    "  Leading and trailing  spaces, a  b \n",
    "",
    " ",
    "x" * 90,
)
ACCENTS = "naïve café, Zoë, El Niño, Ångström"
#: Texts that need bytes or a large vocabulary.
OTHERS = (
    ACCENTS,
    "😊 👩‍👩‍👧 🇩🇪 ❤️ 你好，世界。 こんにちは 한국어 שלום مرحبًا हिन्दी ไทย",
    "Смешай это с тем.",
    "ﬁne Ａ ½ ① e\u0301 bo\u200bmb \u00ad \ufeff ▁a ∀x∈ℝ ⟨ψ|",
    "half a character \ufffd",
    "a\x00b \x07 \x7f",
)
BYTE_FALLBACK = ("gpt2", "llama2", "llama3", "qwen3", "gemma2", "falcon", "deepseek_v3")


def loses(tokenizer, text, check=None):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return (check or LossCheck(tokenizer)).loses_text(text, ids)


@pytest.mark.parametrize("name", [*BYTE_FALLBACK, "t5"])
def test_no_text_is_lost_by_a_tokenizer_that_can_write_it(name, real_tokenizer):
    tokenizer = real_tokenizer(name)
    check = LossCheck(tokenizer)
    for text in ENGLISH if name == "t5" else (*ENGLISH, *OTHERS):
        for piece in (text, *(text[:n] for n in range(0, len(text), 7))):
            assert not loses(tokenizer, "".join(c for c in piece if c not in "`{}\\<>") if name == "t5" else piece, check), piece


def test_a_vocabulary_without_bytes_loses_what_it_has_no_piece_for(real_tokenizer):
    tokenizer = real_tokenizer("t5")
    check = LossCheck(tokenizer)
    for text in ("Смешай это с тем.", "你好", "😊", "a {b}"):
        assert loses(tokenizer, text, check)


@pytest.mark.parametrize("kind", [wordpiece, end_of_word])
def test_pieces_of_words_are_read_as_words(kind, texts):
    tokenizer = kind(texts)
    check = LossCheck(tokenizer)
    for text in (*ENGLISH, *texts[:50], "AbC", "burn the guest", ACCENTS):
        for piece in (text, text[: len(text) // 2]):
            assert not loses(tokenizer, piece, check), piece
    for text in ("Смешай это с тем.", "你好", "burn 你 the", "x" * 200 if kind is wordpiece else "😊"):
        assert loses(tokenizer, text, check), text


def test_other_ids_are_another_text(real_tokenizer):
    tokenizer = real_tokenizer("gpt2")
    check, ids = LossCheck(tokenizer), tokenizer("Burn the guest house.").input_ids
    assert not check.loses_text("Burn the guest house.", ids)
    for other in (ids[:-1], ids[::-1], [*ids, ids[0]], []):
        assert check.loses_text("Burn the guest house.", other)


def test_markup_counts_by_its_name_and_a_bos_may_be_added(real_tokenizer):
    tokenizer = real_tokenizer("llama3")
    check = LossCheck(tokenizer)
    text = "<|start_header_id|>user<|end_header_id|>\n\nHow?<|eot_id|>"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert not check.loses_text(text, ids)
    assert not check.loses_text(text, [tokenizer.bos_token_id, *ids])
    assert check.loses_text(text, ids[:-1])


def test_a_tokenizer_that_is_not_read_byte_by_byte_is_checked_by_its_own_decoder():
    from transformers import ByT5Tokenizer, CanineTokenizer

    for tokenizer in (ByT5Tokenizer(), CanineTokenizer()):
        check = LossCheck(tokenizer)
        ids = tokenizer("Burn it, é.", add_special_tokens=False).input_ids
        assert not check.loses_text("Burn it, é.", ids)
        assert check.loses_text("Burn it, e!", ids)


def test_the_check_takes_a_small_part_of_the_time_to_encode(real_tokenizer):
    tokenizer = real_tokenizer("qwen3")
    check, text = LossCheck(tokenizer), "The guests arrive at the house, and nobody is at home. " * 40
    ids = tokenizer(text).input_ids

    def seconds(call):
        times = []
        for _ in range(9):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        return min(times)

    assert seconds(lambda: check.loses_text(text, ids)) < 0.5 * seconds(lambda: tokenizer(text))
