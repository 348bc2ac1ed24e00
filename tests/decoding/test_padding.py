"""Batches that a caller's tokenizer padded with another id than the strategy's: the judge reads every conversation."""

import copy
import warnings

import pytest
from helpers.strategies import chats_of

from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.evaluation.generation import encode


@pytest.mark.parametrize("pad", ["eos", "a word"])
def test_a_batch_is_judged_by_its_conversations_whatever_id_pads_it(pad, specialist, strategy):
    model, own = specialist
    tokenizer = copy.deepcopy(own)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = own.eos_token if pad == "eos" else own.convert_ids_to_tokens(300)
    chats = chats_of("general", 1)
    chats = [*chats, [{"role": "user", "content": f"{chats[0][-1]['content']} {chats[0][-1]['content']}"}]]
    inputs = tokenizer.apply_chat_template(chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True)
    asked = []

    def judge(conversations, responses):
        asked.extend(conversations)
        return [0.0] * len(responses)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(**inputs, custom_generate=strategy(judge), max_new_tokens=3, do_sample=False)
    assert [list(chat) for chat in asked[:2]] == chats


@pytest.mark.parametrize("i", [-1, -100, 99_999])
@pytest.mark.parametrize("name", ["eos_token_id", "pad_token_id"])
def test_an_end_or_a_padding_that_is_no_token_changes_nothing(name, i, specialist, strategy, oracle):
    model, tokenizer = specialist
    chats = [*chats_of("harmful", 1), *chats_of("general", 1)]
    inputs = encode(chats, tokenizer)
    n_prompt = inputs["input_ids"].shape[1]
    settings = {"max_new_tokens": 16, "do_sample": False, name: i}
    plain = model.generate(**inputs, **settings)[:, n_prompt:]
    guarded = model.generate(**inputs, custom_generate=strategy(oracle), **settings)[:, n_prompt:]
    assert all(a == b for a, b in zip(guarded[1].tolist(), plain[1].tolist(), strict=False))  # the other row is shorter now
    flagging = strategy(lambda conversations, responses: [1.0] * len(responses))
    for row in model.generate(**inputs, custom_generate=flagging, **settings)[:, n_prompt:].tolist():
        assert 0 <= min(row) <= max(row) < len(tokenizer)
        assert tokenizer.decode(row, skip_special_tokens=True).startswith(REFUSAL)
