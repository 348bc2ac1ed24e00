"""Caches that the user gives to `generate`."""

import pytest
import torch
from helpers.strategies import answer_ids, chats_of, flags_calls, generated, passing
from helpers.transformers_names import CACHE
from transformers import (
    DynamicCache,
    MiniMaxConfig,
    MiniMaxForCausalLM,
    MllamaConfig,
    MllamaForConditionalGeneration,
    RwkvConfig,
    RwkvForCausalLM,
    StaticCache,
    XLNetConfig,
    XLNetLMHeadModel,
)

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


DENSE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def unusual(name, tokenizer):
    """A tiny model whose cache is of its own kind, or that takes more than others from `generate`."""
    ids = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    ids["vocab_size"] = len(tokenizer)
    if name == "RWKV":
        model = RwkvForCausalLM(RwkvConfig(**ids, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2))
    elif name == "XLNet":
        model = XLNetLMHeadModel(XLNetConfig(**ids, d_model=32, n_layer=2, n_head=4, d_inner=48))
    elif name == "MiniMax":
        kinds = {"layer_types": ["linear_attention", "full_attention"], "block_size": 8, "num_local_experts": 2, "head_dim": 8}
        model = MiniMaxForCausalLM(MiniMaxConfig(**ids, **DENSE, **kinds))
    else:
        vision = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_global_layers": 1,
            "attention_heads": 2,
        }
        vision |= {"image_size": 8, "patch_size": 4, "vision_output_dim": 32, "intermediate_layers_indices": [0]}
        text = {**ids, **DENSE, "cross_attention_layers": [1]}
        config = MllamaConfig(text_config=text, vision_config=vision, image_token_index=len(tokenizer) - 2)
        model = MllamaForConditionalGeneration(config)
    random = torch.Generator().manual_seed(0)
    for weights in model.parameters():
        if weights.dim() > 1:
            weights.data.normal_(0.0, 0.25, generator=random)
    return model.eval()


@pytest.mark.parametrize("name", ["RWKV", "XLNet", "MiniMax", "Mllama"])
def test_a_model_with_a_cache_of_its_own_is_plain_or_as_without_a_cache(name, byte_tokenizer, anchor):
    target, conversations = (unusual(name, byte_tokenizer), byte_tokenizer), chats_of("general", 1)
    options = {"max_new_tokens": 14}
    plain, _ = generated(target, conversations, **options)
    assert torch.equal(generated(target, conversations, AlignBeam(*anchor, byte_tokenizer, passing), **options)[0], plain)
    answers = []
    for uses in (True, False):
        guarded = AlignBeam(*anchor, byte_tokenizer, flags_calls(2), judge_after=4, judge_every=4, num_candidates=2)
        answers.append(answer_ids(target, conversations, guarded, **options, use_cache=uses)[0])
    n_same = 4 if name == "RWKV" else None  # its own forwards from a state are not exact (transformers 5.24)
    assert answers[0][:n_same] == answers[1][:n_same]
    assert answers[0] != answer_ids(target, conversations, **options)[0]


@pytest.mark.parametrize("way", ["reset", "chunked"])
def test_a_static_cache_that_was_set_up_for_other_rows_changes_no_token(way, specialist, strategy, oracle):
    conversations = [*chats_of("harmful", 2), *chats_of("general", 2)]
    guarded, options = strategy(oracle, judge_after=4), {"max_new_tokens": 20}
    expected, _ = generated(specialist, conversations, guarded, **options)
    if way == "chunked":
        options |= {"cache_implementation": "static", "prefill_chunk_size": 8}
    else:
        options[CACHE] = StaticCache(config=specialist[0].config, max_cache_len=128)
        generated(specialist, conversations, **options)
        options[CACHE].reset()
    assert torch.equal(generated(specialist, conversations, guarded, **options)[0], expected)
