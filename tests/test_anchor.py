import pytest
import reference
import torch

from hf_alignbeam.anchor import AnchorCache, Append

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
    broken = __import__("copy").deepcopy(tiny_qwen)
    broken.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="The anchor's logits must be numbers, got NaN"):
        AnchorCache(broken, PROMPTS)
