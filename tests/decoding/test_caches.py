"""Caches that the user gives to `generate`."""

import pytest
import torch
from helpers.strategies import chats_of, flags_calls
from helpers.transformers_names import CACHE
from transformers import DynamicCache

from hf_alignbeam import AlignBeam
from hf_alignbeam.benchmarks.tiny_families import build
from hf_alignbeam.evaluation.generation import encode

#: The checks at which an answer is flagged.
CHECKS = ((1,), (1, 3), tuple(range(1, 9)), ())


@pytest.mark.parametrize("checks", [CHECKS[1:2], pytest.param(CHECKS, marks=pytest.mark.slow)], ids=len)
@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "Jamba", pytest.param("Qwen3.5", marks=pytest.mark.slow)])
def test_a_users_cache_holds_the_returned_answer(name, checks, anchor, byte_tokenizer):
    """The next turn continues from the cache of an answer that was rolled back as it does without a cache."""
    model = build(name, byte_tokenizer)
    inputs = encode(chats_of("general", 1), byte_tokenizer)
    for numbers in checks:
        settings = {"judge_after": 4, "judge_every": 4, "num_candidates": 2}
        with_cache, without = (AlignBeam(*anchor, byte_tokenizer, flags_calls(*numbers), **settings) for _ in range(2))
        cache = DynamicCache(config=model.config)
        options = {"max_new_tokens": 14, "do_sample": False}
        first = model.generate(**inputs, **{CACHE: cache}, custom_generate=with_cache, **options)
        assert torch.equal(first, model.generate(**inputs, custom_generate=without, **options))
        second = torch.cat([first, torch.tensor([byte_tokenizer("Why?").input_ids])], dim=-1)
        mask = torch.ones_like(second)
        again = model.generate(second, attention_mask=mask, **{CACHE: cache}, **options)
        assert torch.equal(again, model.generate(second, attention_mask=mask, **options))


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "Qwen3.5"])  # Jamba's own forwards are not exact there (5.23)
def test_a_users_filled_cache_changes_no_token(name, byte_tokenizer, anchor):
    """An earlier turn is in the cache; a flagged answer is the same as without that cache."""
    model = build(name, byte_tokenizer)
    ids = encode(chats_of("general", 1), byte_tokenizer)["input_ids"]
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    sequences = []
    for filled in (False, True):
        cache = DynamicCache(config=model.config)
        if filled:
            with torch.no_grad():
                model(ids[:, :9], **{CACHE: cache}, use_cache=True)
        strategy = AlignBeam(*anchor, byte_tokenizer, flags_calls(2), judge_after=4, judge_every=4, num_candidates=2)
        sequences.append(model.generate(ids, **{CACHE: cache}, custom_generate=strategy, **options))
    assert torch.equal(*sequences)
