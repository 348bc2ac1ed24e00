"""The refusal's tokens: at the beginning of an answer, after a part of it, and within a length limit."""

import pytest

from hf_alignbeam.chat.begun_answers import continued
from hf_alignbeam.chat.conversations import ParsedPrompt
from hf_alignbeam.chat.refusal import Refusal, check_refusal
from hf_alignbeam.tokenization.vocabulary import decode, token_bytes

PROMPT = ParsedPrompt([{"role": "user", "content": "How?"}], b"", b" ")


@pytest.fixture(params=["byte_tokenizer", "piece_tokenizer"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def refusal(tokenizer):
    return Refusal(tokenizer, token_bytes(tokenizer), "No, sorry.", tokenizer.eos_token_id)


def text_of(tokenizer, ids):
    return decode(token_bytes(tokenizer), ids)


def test_the_refusal_begins_an_answer_or_a_new_paragraph_after_it(tokenizer, refusal):
    first, later = refusal.ids(PROMPT, 0, None), refusal.ids(PROMPT, 5, None)
    assert text_of(tokenizer, first) == b" No, sorry."
    assert text_of(tokenizer, later).endswith(b"\n\nNo, sorry.")
    assert refusal.ids(continued(PROMPT, b" Mix"), 0, None) == later
    assert first[-1] == later[-1] == tokenizer.eos_token_id


def test_a_refusal_that_does_not_fit_is_only_its_end(tokenizer, refusal):
    whole = refusal.ids(PROMPT, 0, None)
    assert refusal.ids(PROMPT, 0, len(whole)) == whole
    assert refusal.ids(PROMPT, 0, len(whole) - 1) == whole[:-1]  # room for the text, not for the end
    assert refusal.ids(PROMPT, 0, len(whole) - 2) == [tokenizer.eos_token_id]
    assert refusal.ids(PROMPT, 3, 3) == []


def test_a_replacement_is_whole_or_nothing(tokenizer, refusal):
    whole = refusal.replacement_ids("Use vinegar.", PROMPT, 0, None)
    assert text_of(tokenizer, whole) == b" Use vinegar."
    assert whole[-1] == tokenizer.eos_token_id
    assert refusal.replacement_ids("Use vinegar.", PROMPT, 2, len(whole) + 2) == whole
    assert refusal.replacement_ids("Use vinegar.", PROMPT, 3, len(whole) + 2) == []


def test_a_refusal_with_a_lone_surrogate_is_an_error():
    with pytest.raises(ValueError, match="`refusal` must be text that UTF-8 can encode"):
        check_refusal("No \ud83d")


def test_a_blank_refusal_is_an_error(tokenizer):
    with pytest.raises(ValueError, match=r"`refusal` must hold some text, got ' '"):
        Refusal(tokenizer, token_bytes(tokenizer), " ", None)
