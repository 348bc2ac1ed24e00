"""A cached judge asks its judge once for each response to a conversation, and batches hold little padding."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_alignbeam import CachedJudge, CalibratedJudge, LLMJudge, PlausibleAnswer
from hf_alignbeam.chat.conversations import as_messages
from hf_alignbeam.judges.base import MAX_BATCH_TOKENS, NoVerdictError, as_numbers, batches


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
    cached(["b"], ["x"])  # the least recently used verdict was dropped
    assert calls[3:] == [["x"]]
    with pytest.raises(ValueError, match="`max_size` must be a whole number of at least 1"):
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hi", ["a"]), "`conversations` of a judge must be a list, got 'hi'. Put a single one in a list."),
        ((["hi"], "a"), "`responses` of a judge must be a list, got 'a'. Put a single one in a list."),
        ((["hi"], None), "`responses` of a judge must be a list, got None."),
        ((["hi"], ["a", "b"]), "`responses` must hold one response to each of 1 conversations, got 2."),
        ((["hi"], [3]), "`responses` must hold texts, got a int."),
        ((as_messages("hi"), ["a"]), "A conversation must be a string or a list of messages, got {"),
    ],
)
def test_arguments_that_are_no_exchanges_are_named_by_every_judge(arguments, message, judges, anchor):
    own = [judges["judge-lm"], judges["judge-cls"], PlausibleAnswer(*anchor)]
    passing = lambda conversations, responses: [0.0] * len(responses)  # noqa: E731
    for judge in (*own, CachedJudge(passing), CalibratedJudge(passing, 0.5)):
        with pytest.raises(ValueError, match=re.escape(message)):
            judge(*arguments)


def test_a_judge_without_a_model_is_named(judges, anchor):
    with pytest.raises(ValueError, match="`model` must be a loaded model, got None"):
        LLMJudge(None, anchor[1])


def test_a_result_that_is_no_number_is_named_by_what_returned_it():
    for named in ("A judge's harm", "The result of `accept`"):
        with pytest.raises(NoVerdictError, match=f"^{named} must be a real number for each response, got: str.$"):
            as_numbers("x", 1, named)
        with pytest.raises(NoVerdictError, match=f"^{named} must be one number a response, got .2,. for 1 responses.$"):
            as_numbers([0.0, 1.0], 1, named)
