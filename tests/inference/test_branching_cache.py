import copy
import functools
from itertools import pairwise

import pytest
import torch
from conftest import tiny
from helpers import reference
from peft import LoraConfig, get_peft_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_alignbeam.inference.branching_cache import Append, BranchingCache, Leaf, NextTokens, choose_engine
from hf_alignbeam.inference.engines import KeyValueEngine, RecomputeEngine, can_cache, windows
from hf_alignbeam.inference.packed import PackedEngine
from hf_alignbeam.tokenization.vocabulary import token_bytes

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]


@pytest.fixture(params=[KeyValueEngine, PackedEngine])
def engine(request):
    return request.param


def by_row(after):
    """The log-probabilities after each row's new tokens."""
    return [after.logp[start:end] for start, end in pairwise(after.first)]


def test_prompts_of_different_lengths_equal_each_alone(engine, tiny_qwen):
    cache = BranchingCache(engine(tiny_qwen), PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(cache.after_prompt.logp[row], reference.next_logp(tiny_qwen, prompt), atol=1e-4, rtol=0)


def test_ragged_branches_equal_from_scratch(engine, tiny_qwen):
    cache = BranchingCache(engine(tiny_qwen), PROMPTS)
    start = cache.n_slots
    first = by_row(cache.append([Append([20, 21], []), Append([30], [])]))
    # row 0 branches after its first token; row 1 abandons its token
    second = by_row(cache.append([Append([22], [start]), Append([31, 32], [])]))
    expected = [(first[0][1], [*PROMPTS[0], 20, 21]), (first[1][0], [*PROMPTS[1], 30])]
    expected += [(second[0][0], [*PROMPTS[0], 20, 22]), (second[1][1], [*PROMPTS[1], 31, 32])]
    for logp, ids in expected:
        torch.testing.assert_close(logp, reference.next_logp(tiny_qwen, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_leaves_of_one_forward_do_not_see_each_other(engine, attention, tiny_qwen):
    model = copy.deepcopy(tiny_qwen)
    model.set_attn_implementation(attention)
    cache = BranchingCache(engine(model), PROMPTS)
    start = cache.n_slots
    cache.append([Append([20, 21], []), Append([30], [])])
    assert cache.engine.n_leaves > 1
    logp = by_row(cache.branch([[Leaf(22, [start]), Leaf(23, [start, start + 1]), Leaf(24, [])], [Leaf(31, [start])]]))
    expected = [(logp[0][0], [*PROMPTS[0], 20, 22]), (logp[0][1], [*PROMPTS[0], 20, 21, 23])]
    expected += [(logp[0][2], [*PROMPTS[0], 24]), (logp[1][0], [*PROMPTS[1], 30, 31])]
    for logp, ids in expected:
        torch.testing.assert_close(logp, reference.next_logp(tiny_qwen, ids), atol=1e-4, rtol=0)
    later = by_row(cache.append([Append([25], [start, start + 2]), Append([], [])]))  # continues the first leaf
    torch.testing.assert_close(later[0][0], reference.next_logp(tiny_qwen, [*PROMPTS[0], 20, 22, 25]), atol=1e-4, rtol=0)


def test_leaves_may_share_the_forward_of_the_tokens_before_them(engine, tiny_qwen):
    cache = BranchingCache(engine(tiny_qwen), PROMPTS)
    start = cache.n_slots
    rows = [Append([20, 21], []), Append([30], [])]
    leaves = [[Leaf(22, [start, start + 1]), Leaf(23, [start])], [Leaf(31, [start]), Leaf(32, []), Leaf(33, [start])]]
    logp = by_row(cache.append(rows, leaves))
    assert cache.engine.n_forwards == 2
    contexts = [[[20], [20, 21], [20, 21, 22], [20, 23]], [[30], [30, 31], [32], [30, 33]]]
    for row, texts in enumerate(contexts):
        for n, ids in enumerate(texts):
            torch.testing.assert_close(logp[row][n], reference.next_logp(tiny_qwen, [*PROMPTS[row], *ids]), atol=1e-4, rtol=0)
    later = by_row(cache.append([Append([25], [start, start + 1, start + 2]), Append([34], [start, start + 4])]))
    for row, ids in enumerate(([20, 21, 22, 25], [30, 33, 34])):
        torch.testing.assert_close(later[row][0], reference.next_logp(tiny_qwen, [*PROMPTS[row], *ids]), atol=1e-4, rtol=0)


def test_packed_rows_feed_no_padding_and_copies_cost_no_memory(tiny_qwen):
    cache = BranchingCache(engine := PackedEngine(tiny_qwen), PROMPTS)
    start = cache.n_slots
    cache.append([Append([20, 21, 22], []), Append([], [])])
    assert engine.n_tokens == engine.n_cached == 3 + 5 + 3
    cache.select_rows([0, 0, 0, 1])
    assert engine.n_cached == 3 + 5 + 3
    cache.append([Append([23], [start]), Append([], []), Append([], []), Append([], [])])
    cache.select_rows([0, 1])
    cache.drop_unused_slots([start, start + 3])
    assert engine.n_cached == 3 + 1 + 1


def test_no_more_logits_are_computed_than_are_read(engine, tiny_qwen):
    """The last layer is the largest of a small model, and torch multiplies a slice of states by frozen weights very slowly."""
    seen = []
    handle = tiny_qwen.lm_head.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    cache = BranchingCache(engine(tiny_qwen), PROMPTS)
    cache.feed([Append([20, 21], []), Append([30, 31], [])])
    cache.append([Append([22], [cache.n_slots - 2]), Append([32], [])])
    handle.remove()
    assert [each.shape[0] * each.shape[1] for each in seen] == [2, 0, 2]
    assert all(each.is_contiguous() for each in seen)


def test_selected_rows_keep_their_context(engine, tiny_qwen):
    cache = BranchingCache(engine(tiny_qwen), PROMPTS)
    start = cache.n_slots
    cache.append([Append([20, 21], []), Append([30], [])])
    cache.select_rows([0, 0, 1])
    logp = by_row(cache.append([Append([23], [start, start + 1]), Append([24], [start, start + 1]), Append([33], [start])]))
    contexts = ([*PROMPTS[0], 20, 21, 23], [*PROMPTS[0], 20, 21, 24], [*PROMPTS[1], 30, 33])
    for row, ids in enumerate(contexts):
        torch.testing.assert_close(logp[row][0], reference.next_logp(tiny_qwen, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", ["prob", "logp"])
def test_nan_logits_are_an_error(engine, tiny_qwen, form):
    broken = copy.deepcopy(tiny_qwen)
    broken.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="The logits of an anchor or a judge must be numbers, got NaN"):
        getattr(BranchingCache(engine(broken), PROMPTS).after_prompt, form)


@pytest.mark.parametrize("form", ["prob", "logp"])
def test_infinite_logits_are_an_error(engine, tiny_qwen, form):
    broken = copy.deepcopy(tiny_qwen)
    broken.lm_head = torch.nn.Linear(32, broken.config.vocab_size)
    broken.lm_head.bias.data[7] = float("inf")
    with pytest.raises(ValueError, match="got NaN or infinity"):
        getattr(BranchingCache(engine(broken), PROMPTS).after_prompt, form)


@pytest.mark.parametrize("form", ["prob", "logp"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_one_row_without_a_distribution_is_an_error(form, wrong):
    logits = torch.zeros(3, 70)
    logits[2, slice(None) if wrong < 0 else 69] = wrong
    with pytest.raises(ValueError, match="got NaN or infinity"):
        getattr(NextTokens(logits, [1, 1, 1]), form)


def test_tokens_that_are_ruled_out_are_no_error():
    logits = torch.zeros(2, 70)
    logits[:, :69] = -torch.inf
    assert NextTokens(logits, [1, 1]).prob[:, 69].tolist() == [1.0, 1.0]
    assert NextTokens(logits, [1, 1]).logp[:, 0].tolist() == [-torch.inf] * 2


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 under transformers 5.23
def test_a_model_with_adapters_is_cached(engine, tiny_qwen):
    adapted = get_peft_model(copy.deepcopy(tiny_qwen), LoraConfig(r=2, target_modules=["q_proj"])).eval()
    assert can_cache(adapted)
    cache = BranchingCache(engine(adapted), PROMPTS)
    logp = by_row(cache.append([Append([20], []), Append([30], [])]))
    torch.testing.assert_close(logp[0][0], reference.next_logp(tiny_qwen, [*PROMPTS[0], 20]), atol=1e-4, rtol=0)


def test_a_context_that_is_too_short_is_an_error(engine, byte_tokenizer):
    short = tiny(Qwen3ForCausalLM, Qwen3Config, byte_tokenizer, seed=0, head_dim=8, max_position_embeddings=6)
    cache = BranchingCache(engine(short), PROMPTS)
    with pytest.raises(ValueError, match="The context of an anchor or a judge must hold .* but .* takes 6 tokens, not 7"):
        cache.append([Append([20, 21], []), Append([30, 31], [])])


def test_unused_slots_are_dropped_and_the_others_still_count(engine, tiny_qwen):
    cache = BranchingCache(engine(tiny_qwen), PROMPTS)
    start = cache.n_slots
    cache.branch([[Leaf(20, []), Leaf(21, []), Leaf(22, [])], [Leaf(30, [])]])
    new_slots = cache.drop_unused_slots([start + 2, start])
    assert cache.n_slots == start + 2
    logp = by_row(cache.append([Append([23], [new_slots[start + 2]]), Append([31], [new_slots[start]])]))
    for row, ids in enumerate(([*PROMPTS[0], 22, 23], [*PROMPTS[1], 30, 31])):
        torch.testing.assert_close(logp[row][0], reference.next_logp(tiny_qwen, ids), atol=1e-4, rtol=0)


def test_a_row_without_new_tokens_needs_no_positions(engine, byte_tokenizer):
    """The context limit counts the tokens of each row, not the slots."""
    model = tiny(Qwen3ForCausalLM, Qwen3Config, byte_tokenizer, seed=1, head_dim=8, max_position_embeddings=12)
    cache = BranchingCache(engine(model), [[5] * 11, [6, 7]])
    cache.append([Append([], []), Append([20] * 8, [])])
    assert cache.n_slots == 11 + 8


def test_equal_prompts_are_fed_once(engine, tiny_qwen):
    cache = BranchingCache(engine(tiny_qwen), [PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    assert cache.engine.n_tokens == (2 * len(PROMPTS[1]) if engine is KeyValueEngine else sum(map(len, PROMPTS)))
    logp = by_row(cache.append([Append([20], []), Append([21], []), Append([22], [])]))
    for row, ids in enumerate(([*PROMPTS[0], 20], [*PROMPTS[1], 21], [*PROMPTS[0], 22])):
        torch.testing.assert_close(logp[row][0], reference.next_logp(tiny_qwen, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("model_class", "config_class", "settings"),
    [
        (MistralForCausalLM, MistralConfig, {"sliding_window": 4}),
        (Gemma2ForCausalLM, Gemma2Config, {"sliding_window": 4, "head_dim": 8}),
    ],
)
def test_attention_windows_count_positions_and_not_slots(engine, model_class, config_class, settings, byte_tokenizer):
    model = tiny(model_class, config_class, byte_tokenizer, seed=0, **settings)
    assert windows(model)["sliding_attention"] == 4
    cache = BranchingCache(engine(model), PROMPTS)
    start = cache.n_slots
    cache.branch([[Leaf(20 + n, []) for n in range(6)], [Leaf(30, [])]])
    logp = by_row(cache.append([Append([31, 32], [start + 5]), Append([33], [start])]))
    expected = [(logp[0][1], [*PROMPTS[0], 25, 31, 32]), (logp[1][0], [*PROMPTS[1], 30, 33])]
    for logp, ids in expected:
        torch.testing.assert_close(logp, reference.next_logp(model, ids), atol=1e-4, rtol=0)


def test_recomputed_texts_equal_from_scratch(tiny_qwen):
    cache = BranchingCache(RecomputeEngine(tiny_qwen), PROMPTS)
    start = cache.n_slots
    first = by_row(cache.append([Append([20, 21], []), Append([30], [])]))
    second = by_row(cache.branch([[Leaf(22, [start]), Leaf(23, [start, start + 1])], [Leaf(31, [start])]]))
    expected = [(first[0][0], [*PROMPTS[0], 20]), (first[0][1], [*PROMPTS[0], 20, 21]), (first[1][0], [*PROMPTS[1], 30])]
    expected += [(second[0][0], [*PROMPTS[0], 20, 22]), (second[0][1], [*PROMPTS[0], 20, 21, 23])]
    expected += [(second[1][0], [*PROMPTS[1], 30, 31])]
    for logp, ids in expected:
        torch.testing.assert_close(logp, reference.next_logp(tiny_qwen, ids), atol=1e-4, rtol=0)


def test_a_model_whose_cached_distributions_differ_is_recomputed(tiny_qwen, byte_tokenizer):
    """A trial decides, not the config."""

    class Forgetful(Qwen3ForCausalLM):
        @functools.wraps(Qwen3ForCausalLM.forward)
        def forward(self, **inputs):
            read = {name: inputs[name] for name in ("input_ids", "use_cache", "logits_to_keep") if name in inputs}
            return super().forward(**read)

    tokens = token_bytes(byte_tokenizer)
    assert choose_engine(tiny_qwen, tokens) is PackedEngine
    forgetful = copy.deepcopy(tiny_qwen)
    forgetful.__class__ = Forgetful
    assert choose_engine(forgetful, tokens) is RecomputeEngine


def test_a_model_with_biases_instead_of_positions_is_recomputed(byte_tokenizer):
    config = BloomConfig(vocab_size=len(byte_tokenizer), hidden_size=8, n_layer=1, n_head=1)
    assert choose_engine(BloomForCausalLM(config).eval(), token_bytes(byte_tokenizer)) is RecomputeEngine
