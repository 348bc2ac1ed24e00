"""A cached judge asks its judge once for each response to a conversation, and batches hold little padding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_alignbeam import CachedJudge
from hf_alignbeam.chat.conversations import as_messages
from hf_alignbeam.judges.base import MAX_BATCH_TOKENS, NoVerdictError, batches


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


def test_cached_verdicts_come_back_in_full_precision():
    third = 1 / 3
    for harm in ([third], torch.tensor([third], dtype=torch.float64), torch.tensor([third])):
        cached = CachedJudge(lambda c, r, harm=harm: harm)
        first, again = cached(["a"], ["x"]), cached(["a"], ["x"])
        assert first.dtype == again.dtype == torch.float64
        assert first.tolist() == again.tolist() == torch.as_tensor(harm, dtype=torch.float64).tolist()


@pytest.mark.parametrize("harm", [[[0.5]], [0.5, 0.5], [0.5j], ["safe"], None, [1.5], [-0.5], [float("inf")]])
def test_what_is_no_harm_is_not_cached(harm):
    returned = [harm, [0.25]]
    cached = CachedJudge(lambda c, r: returned.pop(0))
    if isinstance(harm, list) and len(harm) == 1 and isinstance(harm[0], float):
        assert cached(["a"], ["x"]).tolist() == harm
    else:
        with pytest.raises(NoVerdictError, match="^A judge"):
            cached(["a"], ["x"])
    assert cached(["a"], ["x"]).tolist() == [0.25]


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(("user", "assistant", "system")), st.sampled_from(("a", "b", "a\n\nb")))),
        min_size=2,
        max_size=2,
    ),
    st.sampled_from(("a", "b")),
)
def test_other_conversations_have_other_verdicts(turns, response):
    first, second = ([{"role": role, "content": text} for role, text in each] or "a" for each in turns)
    asked = []
    cached = CachedJudge(lambda c, r: asked.append(c) or [0.5] * len(r))
    cached([first, second], [response] * 2)
    assert sum(len(each) for each in asked) == 1 + (as_messages(first) != as_messages(second))


@given(st.lists(st.integers(1, 30_000), max_size=40), st.integers(1, 9))
def test_batches_hold_each_text_once_and_little_padding(lengths, batch_size):
    found = batches(lengths, batch_size)
    assert sorted(place for batch in found for place in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= MAX_BATCH_TOKENS


def test_texts_that_fit_into_one_batch_keep_their_order():
    """A judge that reads growing texts finds each where it was."""
    assert batches([30, 10, 20], 3) == [[0, 1, 2]]
    assert batches([], 3) == []
