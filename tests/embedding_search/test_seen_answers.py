"""What a search judges and stores is what a user sees of the answer."""

import pytest
import torch
from helpers.searches import steerer_for
from helpers.toy_tokenizers import end_of_word, wordpiece
from transformers import LlamaConfig, LlamaForCausalLM

from hf_alignbeam.chat.refusal import REFUSAL


@pytest.fixture(params=[wordpiece, end_of_word])
def target(request, texts):
    tokenizer = request.param(texts, padding_side="left")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        initializer_range=0.4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.sep_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


def test_the_stored_text_is_what_is_seen_and_was_judged(target):
    judged = []

    def judge(conversations, responses):
        judged.extend(responses)
        return [float(len(judged) < 4)] * len(responses)

    steered = steerer_for(target, judge, probe_temperature=1.0).precompute(["How?"], max_new_tokens=12)
    (prompt,) = steered
    assert prompt.outcome == "steered"
    assert prompt.text in judged
    assert prompt.text == target[1].decode(prompt.ids, skip_special_tokens=True).strip()


def test_the_word_that_ends_a_callers_answers_does_not_follow_a_refusal(target):
    _model, tokenizer = target
    steerer = steerer_for(target, lambda c, r: [1.0] * len(r), max_generations=1, max_calls=1)
    (word,) = tokenizer("burn", add_special_tokens=False).input_ids[:1]
    row = steerer.generate(["How?"], max_new_tokens=40, do_sample=False, eos_token_id=word)[0]
    seen = tokenizer.decode(row, skip_special_tokens=True)
    assert "".join(seen.split()).lower().endswith("".join(REFUSAL.split()).lower())
