"""A cached judge asks its judge once for each response to a conversation."""

import pytest
import torch

from hf_alignbeam import CachedJudge


def test_a_cached_judge_asks_once():
    calls = []

    def judge(conversations, responses):
        calls.append(list(responses))
        return torch.tensor([float("nan") if r == "?" else 0.25 for r in responses])

    cached = CachedJudge(judge, max_size=2)
    assert cached(["a", "a", "b"], ["x", "x", "x"]).tolist() == [0.25] * 3
    assert cached(["a"], ["x"]).tolist() == [0.25]
    assert calls == [["x", "x"]]
    assert cached(["c", "c"], ["?", "y"]).isnan().tolist() == [True, False]
    cached(["c"], ["?"])  # a missing verdict is not cached
    assert calls[1:] == [["?", "y"], ["?"]]
    cached(["a"], ["x"])  # the least recently used verdict was dropped
    assert calls[3:] == [["x"]]
    with pytest.raises(ValueError, match="`max_size` must be at least 1"):
        CachedJudge(judge, max_size=0)
