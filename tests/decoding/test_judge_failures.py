"""A judge that fails, in any call and in any way, never lets an unjudged text through."""

import pytest
import torch
from helpers.strategies import RecordingJudge, chats_of, texts
from helpers.variety import mostly_slow

from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.judges.failsafe import JudgeError

FAULTS = {
    "raises": lambda harm: (_ for _ in ()).throw(OSError("the judge is gone")),
    "times out": lambda harm: (_ for _ in ()).throw(TimeoutError("no verdict in time")),
    "is not a number": lambda harm: torch.full_like(harm, torch.nan),
    "has one too few": lambda harm: harm[:-1],
    "has one too many": lambda harm: torch.cat([harm, harm[:1]]),
    "is above 1": lambda harm: harm + 1.5,
    "is below 0": lambda harm: harm - 1.5,
    "is a table": lambda harm: harm[:, None],
    "is nothing": lambda harm: None,
    "is text": lambda harm: "safe",
}


#: Faults of single verdicts, for which the judge is not called again: that is for calls that failed as a whole.
NOT_RETRIED = ("is not a number", "is above 1", "is below 0")


class FaultyJudge:
    """Another judge, of which one call goes wrong, and the responses that it has passed."""

    def __init__(self, judge, fault, faulty_call):
        self.judge, self.fault, self.faulty_call = judge, fault, faulty_call
        self.n_calls, self.passed = 0, set()

    def __call__(self, conversations, responses):
        number, self.n_calls = self.n_calls, self.n_calls + 1
        harm = self.judge(conversations, responses)
        if number == self.faulty_call:
            return self.fault(harm)
        self.passed |= {response for response, h in zip(responses, harm.tolist(), strict=True) if h <= 0.5}
        return harm


SETTINGS = {"judge_after": 6, "judge_every": 8}
SHORT = {"max_new_tokens": 20}


def answers_with_a_healthy_judge(specialist, strategy, oracle, conversations):
    """Conversations, their answers, and the number of texts in each call of the judge."""
    judge = RecordingJudge(oracle)
    answers = texts(specialist, conversations, strategy(judge, **SETTINGS), **SHORT)
    return conversations, answers, [len(call) for call in judge.calls]


@pytest.fixture(scope="module")
def healthy(specialist, strategy, oracle, mixed):
    return answers_with_a_healthy_judge(specialist, strategy, oracle, mixed[::3])


@pytest.fixture(scope="module")
def healthy_alone(specialist, strategy, oracle):
    return answers_with_a_healthy_judge(specialist, strategy, oracle, chats_of("harmful", 1))


#: Faults that take the same path through the code as another one.
SAME_PATH = ("times out", "has one too few", "has one too many", "is below 0", "is a table", "is nothing", "is text")


QUICK = [fault for fault in FAULTS if fault not in SAME_PATH]


@pytest.mark.parametrize("fault", mostly_slow(FAULTS, QUICK))
def test_no_unjudged_text_is_returned_whichever_call_fails(fault, specialist, strategy, oracle, healthy):
    conversations, healthy_answers, sizes = healthy
    assert len(sizes) >= 4
    for number in range(len(sizes)):
        judge = FaultyJudge(oracle, FAULTS[fault], number)
        answers = texts(specialist, conversations, strategy(judge, **SETTINGS), **SHORT)
        assert judge.n_calls > number
        for conversation, answer, healthy_answer in zip(conversations, answers, healthy_answers, strict=True):
            prefill = conversation[-1]["content"] if conversation[-1]["role"] == "assistant" else ""
            drawn = answer.removesuffix(REFUSAL).strip()
            assert not drawn or any(passed.removeprefix(prefill).strip() == drawn for passed in judge.passed)
            if fault not in NOT_RETRIED:
                assert answer == healthy_answer  # each text is judged again, alone


@pytest.mark.parametrize("fault", mostly_slow(FAULTS, QUICK))
def test_on_request_a_failing_judge_raises_an_error(fault, specialist, strategy, oracle, healthy_alone):
    conversations, healthy_answers, sizes = healthy_alone
    settings = {**SETTINGS, "on_judge_error": "raise"}
    n_recovered = 0
    for number, size in enumerate(sizes):
        judge = FaultyJudge(oracle, FAULTS[fault], number)
        if size == 1 or fault in NOT_RETRIED:
            with pytest.raises(JudgeError, match="The judge gave no verdict: ") as error:
                texts(specialist, conversations, strategy(judge, **settings), **SHORT)
            assert isinstance(error.value.judge_error, Exception)
        else:  # each text is judged again, alone
            n_recovered += texts(specialist, conversations, strategy(judge, **settings), **SHORT) == healthy_answers
    assert n_recovered == (0 if fault in NOT_RETRIED else sum(size > 1 for size in sizes) > 0)


def test_one_prompt_that_breaks_the_judge_costs_the_others_nothing(specialist, strategy, oracle, one_of_each):
    broken = one_of_each[0][0]["content"]

    def judge(conversations, responses):
        if any(conversation[0]["content"] == broken for conversation in conversations):
            raise OSError("this one again")
        return oracle(conversations, responses)

    healthy = texts(specialist, one_of_each, strategy(oracle))
    answers = texts(specialist, one_of_each, strategy(judge))
    assert answers[0] == REFUSAL
    assert answers[1:] == healthy[1:]


def test_an_interrupt_is_not_a_verdict(specialist, strategy):
    def judge(conversations, responses):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        texts(specialist, chats_of("general", 2), strategy(judge))


def test_a_complex_number_is_not_a_verdict(specialist, strategy):
    judge = lambda c, r: torch.zeros(len(r), dtype=torch.complex64)  # noqa: E731
    assert texts(specialist, chats_of("general", 2), strategy(judge)) == [REFUSAL] * 2


def test_missing_verdicts_are_logged_once_in_each_call(specialist, strategy, caplog):
    guard = strategy(lambda conversations: 0.0, **SETTINGS)
    for n_calls in (1, 2):
        assert texts(specialist, chats_of("general", 2), guard, **SHORT) == [REFUSAL] * 2
        assert [record.levelname for record in caplog.records] == ["WARNING"] * n_calls
    assert caplog.messages[0] == (
        "The judge gave no verdict on 2 of 2 texts, which do not pass: TypeError (its message is not shown, since it may quote "
        "text that did not pass)"
    )


def test_verdicts_that_are_there_are_not_logged(specialist, strategy, oracle, caplog):
    texts(specialist, chats_of("harmful", 2), strategy(oracle, **SETTINGS), **SHORT)
    assert not caplog.records
