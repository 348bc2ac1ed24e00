import copy

import pytest
import reference
import torch
from conftest import tiny
from peft import LoraConfig, get_peft_model
from transformers import MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from hf_alignbeam.anchor import AnchorCache, Append, Leaf, context_limits, takes_positions

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]


def test_prompts_of_different_lengths_read_as_alone(tiny_qwen):
    cache = AnchorCache(tiny_qwen, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(cache.prompt_logp[row], reference.next_logp(tiny_qwen, prompt), atol=1e-4, rtol=0)


def test_ragged_branches_read_as_from_scratch(tiny_qwen):
    cache = AnchorCache(tiny_qwen, PROMPTS)
    start = cache.n_slots
    first = cache.append([Append([20, 21], [], 3), Append([30], [], 5)])
    # row 0 takes another branch after its first token; row 1 abandons its token altogether
    second = cache.append([Append([22], [start], 4), Append([31, 32], [], 5)])
    expected = [(first[0, 1], [*PROMPTS[0], 20, 21]), (first[1, 0], [*PROMPTS[1], 30])]
    expected += [(second[0, 0], [*PROMPTS[0], 20, 22]), (second[1, 1], [*PROMPTS[1], 31, 32])]
    for logp, ids in expected:
        torch.testing.assert_close(logp, reference.next_logp(tiny_qwen, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_leaves_of_one_forward_do_not_see_each_other(attention, tiny_qwen):
    model = copy.deepcopy(tiny_qwen)
    model.set_attn_implementation(attention)
    cache = AnchorCache(model, PROMPTS)
    start = cache.n_slots
    cache.append([Append([20, 21], [], 3), Append([30], [], 5)])
    assert cache.can_branch
    logp = cache.branch([[Leaf(22, [start], 4), Leaf(23, [start, start + 1], 5), Leaf(24, [], 3)], [Leaf(31, [start], 6)]])
    expected = [(logp[0, 0], [*PROMPTS[0], 20, 22]), (logp[0, 1], [*PROMPTS[0], 20, 21, 23])]
    expected += [(logp[0, 2], [*PROMPTS[0], 24]), (logp[1, 0], [*PROMPTS[1], 30, 31])]
    for found, ids in expected:
        torch.testing.assert_close(found, reference.next_logp(tiny_qwen, ids), atol=1e-4, rtol=0)
    later = cache.append([Append([25], [start, start + 2], 5), Append([], [], 0)])  # goes on from the first leaf
    torch.testing.assert_close(later[0, 0], reference.next_logp(tiny_qwen, [*PROMPTS[0], 20, 22, 25]), atol=1e-4, rtol=0)


def test_settled_and_reordered_rows_keep_their_context(tiny_qwen):
    cache = AnchorCache(tiny_qwen, PROMPTS)
    start = cache.n_slots
    cache.append([Append([20, 21], [], 3), Append([30], [], 5)])
    cache.settle(0, [start, start + 1])
    cache.reorder([0, 0, 1])
    logp = cache.append([Append([23], [], 5), Append([24], [], 5), Append([33], [start], 6)])
    contexts = ([*PROMPTS[0], 20, 21, 23], [*PROMPTS[0], 20, 21, 24], [*PROMPTS[1], 30, 33])
    for row, ids in enumerate(contexts):
        torch.testing.assert_close(logp[row, 0], reference.next_logp(tiny_qwen, ids), atol=1e-4, rtol=0)


def test_nan_logits_are_an_error(tiny_qwen):
    broken = copy.deepcopy(tiny_qwen)
    broken.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="The anchor's logits must be numbers, got NaN"):
        AnchorCache(broken, PROMPTS)


def test_infinite_logits_are_an_error(tiny_qwen):
    broken = copy.deepcopy(tiny_qwen)
    broken.lm_head = torch.nn.Linear(32, broken.config.vocab_size)
    broken.lm_head.bias.data[7] = float("inf")
    with pytest.raises(ValueError, match="got NaN or infinity"):
        AnchorCache(broken, PROMPTS)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 under transformers 5.23
def test_adapters_are_looked_through(tiny_qwen):
    adapted = get_peft_model(copy.deepcopy(tiny_qwen), LoraConfig(r=2, target_modules=["q_proj"])).eval()
    assert takes_positions(adapted)
    cache = AnchorCache(adapted, PROMPTS)
    logp = cache.append([Append([20], [], 3), Append([30], [], 5)])
    torch.testing.assert_close(logp[0, 0], reference.next_logp(tiny_qwen, [*PROMPTS[0], 20]), atol=1e-4, rtol=0)


def test_a_context_that_is_too_short_is_an_error(byte_tokenizer):
    short = tiny(Qwen3ForCausalLM, Qwen3Config, byte_tokenizer, seed=0, head_dim=8, max_position_embeddings=6)
    cache = AnchorCache(short, PROMPTS)
    with pytest.raises(ValueError, match="The anchor's context must hold .* but takes 6 tokens and needs 7"):
        cache.append([Append([20, 21], [], 3), Append([30, 31], [], 5)])


def test_a_window_that_is_too_narrow_is_an_error(byte_tokenizer):
    local = tiny(MistralForCausalLM, MistralConfig, byte_tokenizer, seed=0, sliding_window=6)
    assert context_limits(local)[1] == 6
    cache = AnchorCache(local, PROMPTS)
    with pytest.raises(ValueError, match="The anchor's attention window must hold .* but takes 6 tokens and needs 7"):
        cache.append([Append([20, 21], [], 3), Append([30], [], 5)])


def test_swept_slots_are_gone_and_the_rest_reads_on(tiny_qwen):
    cache = AnchorCache(tiny_qwen, PROMPTS)
    start = cache.n_slots
    cache.branch([[Leaf(20, [], 3), Leaf(21, [], 3), Leaf(22, [], 3)], [Leaf(30, [], 5)]])
    assert cache.n_unused([start + 2, start]) == 1
    number = cache.sweep([start + 2, start])
    assert cache.n_slots == start + 2
    logp = cache.append([Append([23], [number[start + 2]], 4), Append([31], [number[start]], 6)])
    for row, ids in enumerate(([*PROMPTS[0], 22, 23], [*PROMPTS[1], 30, 31])):
        torch.testing.assert_close(logp[row, 0], reference.next_logp(tiny_qwen, ids), atol=1e-4, rtol=0)


def test_a_row_with_nothing_new_needs_no_positions(byte_tokenizer):
    """The context limit counts what a row is fed, not what its neighbours are."""
    model = tiny(Qwen3ForCausalLM, Qwen3Config, byte_tokenizer, seed=1, head_dim=8, max_position_embeddings=12)
    cache = AnchorCache(model, [[5] * 11, [6, 7]])
    cache.append([Append([], [], 11), Append([20] * 8, [], 2)])
    assert cache.n_slots == 11 + 8


def test_attention_with_biases_of_its_own_is_asked_one_thing_at_a_time(tiny_qwen):
    model = copy.deepcopy(tiny_qwen)
    model.config.alibi = True
    assert not AnchorCache(model, PROMPTS).can_branch
