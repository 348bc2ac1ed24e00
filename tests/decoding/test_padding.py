"""Batches that a caller's tokenizer padded with another id than the strategy's: the judge reads every conversation."""

import copy
import warnings

import pytest
from helpers.strategies import chats_of


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
