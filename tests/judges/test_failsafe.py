"""Calls of a judge that raises, hangs, or returns something other than harm: no verdict is made up."""

import math
import threading

import pytest
import torch

from hf_alignbeam.judges.base import EndpointError, NoVerdictError
from hf_alignbeam.judges.failsafe import JudgeCalls, judge_each_or_none, judge_once, reason

CONVERSATIONS = [[{"role": "user", "content": text}] for text in ("one", "two", "three")]
RESPONSES = ["a", "b", "c"]


def test_values_that_are_no_harm_are_no_verdict():
    for harm in ([0.25, math.nan, 1.5], torch.tensor([0.25, math.inf, -0.1])):
        for call in (judge_once, judge_each_or_none):
            verdicts = call(lambda *_, harm=harm: harm, CONVERSATIONS, RESPONSES)
            assert verdicts.harm == [0.25, None, None]
            assert verdicts.n_calls == 1
            assert [str(error)[:33] for error in verdicts.errors] == ["A judge's harm must be in [0, 1],"] * 2


@pytest.mark.parametrize("harm", [[0.5], [[0.5, 0.5, 0.5]], 0.5, "safe", None, torch.full((3,), 0.5 + 0j)])
def test_another_shape_or_type_is_no_verdict(harm):
    verdicts = judge_once(lambda *_: harm, CONVERSATIONS, RESPONSES)
    assert verdicts.harm == [None] * 3
    assert len(verdicts.errors) == 1


def test_a_failed_batch_is_judged_one_by_one_and_costs_only_its_cause():
    def judge(conversations, responses):
        conversations[0].clear()  # a judge may change its arguments
        if "b" in responses:
            raise ValueError("no b")
        return [0.25] * len(responses)

    verdicts = judge_each_or_none(judge, CONVERSATIONS, RESPONSES)
    assert verdicts.harm == [0.25, None, 0.25]
    assert verdicts.n_calls == 4
    assert [str(error) for error in verdicts.errors] == ["no b"] * 2
    assert judge_once(judge, CONVERSATIONS, RESPONSES).harm == [None] * 3
    assert [len(conversation) for conversation in CONVERSATIONS] == [1, 1, 1]


def test_a_judge_that_hangs_is_no_verdict():
    ended = threading.Event()
    verdicts = judge_once(lambda *_: ended.wait(20), CONVERSATIONS, RESPONSES, timeout=0.05)
    ended.set()
    assert verdicts.harm == [None] * 3
    assert str(verdicts.errors[0]) == "it has not answered within 0.05 seconds"


def test_verdicts_are_not_rounded():
    for harm in ([0.1, 0.2, 0.3], torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)):
        assert judge_once(lambda *_, harm=harm: harm, CONVERSATIONS, RESPONSES).harm == [0.1, 0.2, 0.3]


def test_a_reason_quotes_no_error_that_was_made_elsewhere():
    assert reason(NoVerdictError("too late")) == "too late"
    assert "b" not in reason(KeyError("b")).split()
    assert reason(KeyError("b")).startswith("KeyError (")


def test_an_endpoint_that_judges_nothing_is_not_asked_again_for_each_text():
    n_asked = []

    def down(conversations, responses):
        n_asked.append(len(responses))
        raise EndpointError("It is down.")

    verdicts = JudgeCalls(down).each_or_none([[{"role": "user", "content": "Hi"}]] * 3, ["a", "b", "c"])
    assert verdicts.harm == [None] * 3
    assert n_asked == [3]
