"""A judge that hangs, draws random numbers or quotes what it read costs its own verdicts, and changes or shows nothing else."""

import logging
import random
import threading
import time
import traceback
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from helpers.strategies import RecordingStreamer, answer_ids, chats_of, failing, texts
from helpers.variety import mostly_slow

from hf_alignbeam import AlignBeam, LLMJudge, testbed
from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.judges.failsafe import JudgeError

#: No test waits as long as this: a judge that hangs is let go when the test ends.
FOREVER = 60.0


@pytest.fixture
def hang():
    """Hangs until the test ends."""
    ended = threading.Event()
    yield lambda: ended.wait(FOREVER)
    ended.set()


def hanging_from(call, hang, judge):
    """A judge that hangs from its n-th call on, and its calls."""
    calls = []

    def judged(conversations, responses):
        calls.append(responses)
        if len(calls) > call:
            hang()
        return judge(conversations, responses)

    return judged, calls


@pytest.mark.parametrize("n_answered", [0, 1, 3])
def test_a_judge_that_hangs_ends_in_refusals_and_is_asked_twice_at_most(n_answered, specialist, strategy, oracle, mixed, hang):
    judge, calls = hanging_from(n_answered, hang, oracle)
    started = time.monotonic()
    answers = texts(specialist, mixed, strategy(judge, judge_timeout=0.2, judge_after=6, judge_every=6), max_new_tokens=60)
    assert time.monotonic() - started < 20
    assert len(calls) == n_answered + 2
    unfinished = [answer for answer in answers if answer.endswith(REFUSAL)]
    assert len(unfinished) == len(answers) if n_answered == 0 else unfinished


def test_after_a_judge_was_lost_no_candidates_are_written_and_on_fail_is_not_asked(specialist, strategy, oracle, hang):
    judge, _ = hanging_from(1, hang, oracle)
    asked = []

    def on_fail(conversations):
        asked.append(conversations)
        return [None for _ in conversations]

    settings = {"judge_after": 2, "judge_every": 2, "judge_timeout": 0.1, "on_fail": on_fail}
    guarded = strategy(judge, **settings)
    answers = texts(specialist, chats_of("domain", 3), guarded, max_new_tokens=400)
    assert all(answer.endswith(REFUSAL) for answer in answers)
    assert len(asked) <= 1


def test_the_streamer_of_a_judge_that_hangs_ends(specialist, strategy, hang):
    for settings, ends_in_error in (({}, False), ({"on_judge_error": "raise"}, True)):
        judge, _ = hanging_from(0, hang, failing)
        streamer = RecordingStreamer()
        guarded = strategy(judge, judge_timeout=0.1, streamer=streamer, **settings)
        if ends_in_error:
            with pytest.raises(JudgeError, match=r"The judge gave no verdict: it has not answered within 0\.1 seconds"):
                texts(specialist, chats_of("general", 1), guarded)
        else:
            assert texts(specialist, chats_of("general", 1), guarded) == [REFUSAL]
        assert streamer.n_ends == 1


def test_a_judge_that_hung_once_is_asked_again_and_its_late_verdict_counts_for_nothing(specialist, strategy, oracle):
    released, calls = threading.Event(), []

    def judge(conversations, responses):
        calls.append(list(responses))
        if len(calls) == 1:
            released.wait(FOREVER)
            return torch.zeros(len(responses))  # late: by now these texts have no verdict
        released.set()
        return oracle(conversations, responses)

    harmful = chats_of("harmful", 2)
    answers = texts(specialist, harmful, strategy(judge, judge_timeout=0.3))
    flagged_first = {"calls": 0}

    def flags_first(conversations, responses):
        flagged_first["calls"] += 1
        nan = torch.full((len(responses),), torch.nan)
        return nan if flagged_first["calls"] == 1 else oracle(conversations, responses)

    assert answers == texts(specialist, harmful, strategy(flags_first))
    assert len(calls) == flagged_first["calls"] > 1


def test_with_a_limit_that_is_kept_nothing_changes(specialist, strategy, judge_lm, oracle, one_of_each):
    for judge in (judge_lm, oracle):
        assert answer_ids(specialist, one_of_each, strategy(judge, judge_timeout=FOREVER)) == answer_ids(
            specialist, one_of_each, strategy(judge)
        )


def test_a_judge_keeps_its_cache_within_the_limit(specialist, strategy):
    """One thread asks it for as long as it answers: a judge's cache belongs to a thread."""
    model, tokenizer = testbed.load("judge-lm")
    n_tokens = {}
    for limit in (None, FOREVER):
        fed, threads = [], set()
        hook = model.register_forward_pre_hook(
            lambda module, args, kwargs, fed=fed: fed.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        judge = LLMJudge(model, tokenizer, "safe-unsafe", probe=False)  # a probe would be fed in this thread

        def judged(conversations, responses, judge=judge, threads=threads):
            threads.add(threading.get_ident())
            assert not torch.is_grad_enabled()
            return judge(conversations, responses)

        texts(specialist, chats_of("domain", 3), strategy(judged, judge_every=8, judge_timeout=limit), max_new_tokens=60)
        hook.remove()
        n_tokens[limit] = sum(fed)
        assert len(threads) == 1
    assert n_tokens[FOREVER] == n_tokens[None]


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf")])
def test_a_limit_is_a_number_of_seconds(limit, anchor, specialist, oracle):
    with pytest.raises(ValueError, match="`judge_timeout` must be above 0 .* Use None"):
        AlignBeam(*anchor, specialist[1], oracle, judge_timeout=limit)


def draws(judge):
    """A judge, or another callable, that draws and seeds random numbers of every kind."""

    def drawing(*arguments):
        torch.rand(7), torch.manual_seed(3), random.random(), np.random.rand(3)
        return judge(*arguments)

    return drawing


def test_random_numbers_of_a_judge_change_no_answer(specialist, strategy, oracle, one_of_each):
    sampling = {"do_sample": True, "temperature": 1.3, "top_k": 20, "max_new_tokens": 24}
    for settings in ({}, {"judge_timeout": FOREVER}, {"judge_after": 3, "judge_every": 2}):
        random.seed(1), np.random.seed(1)
        expected = answer_ids(specialist, one_of_each, strategy(oracle, **settings), **sampling)
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        random.seed(1), np.random.seed(1)
        on_fail = draws(lambda conversations: [None] * len(conversations))
        got = answer_ids(specialist, one_of_each, strategy(draws(oracle), on_fail=on_fail, **settings), **sampling)
        assert got == expected
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_a_judge_that_draws_nothing_lets_other_threads_draw(specialist, strategy, oracle):
    drawn = []

    def judge(conversations, responses):
        other = threading.Thread(target=lambda: drawn.append((random.random(), float(torch.rand(())))))
        other.start()
        other.join()
        return oracle(conversations, responses)

    judge.is_deterministic = True
    texts(specialist, chats_of("domain", 1), strategy(judge, judge_after=2, judge_every=2))
    assert len(drawn) > 2
    assert len(set(drawn)) == len(drawn)
    drawn.append((random.random(), float(torch.rand(()))))
    assert len(set(drawn)) == len(drawn)


def test_a_judge_draws_other_numbers_in_each_of_its_calls_and_the_same_under_one_seed(specialist, strategy, oracle):
    runs = []
    for _ in range(2):
        drawn = []

        def judge(conversations, responses, drawn=drawn):
            drawn.append((float(torch.rand(())), random.random()))
            return oracle(conversations, responses)

        random.seed(1)
        texts(specialist, chats_of("domain", 1), strategy(judge, judge_after=2, judge_every=2), seed=5)
        assert len(set(drawn)) == len(drawn) > 2
        runs.append(drawn)
    assert runs[0] == runs[1]


def quoting(response):
    raise ValueError(f"cannot read {response!r}")


def chained(response):
    try:
        quoting(response)
    except ValueError as error:
        raise RuntimeError(response) from error


#: Ways in which a judge may fail and quote what it read.
QUOTES = {
    "raises": quoting,
    "raises what it caught": chained,
    "fails at a key": lambda response: {}[response],
    "returns text": lambda response: response,
    "returns texts": lambda response: [response],
    "returns a table": lambda response: torch.zeros(3, 3),
    "returns arrays of texts": lambda response: np.array([response]),
    "returns an object": lambda response: {"text": response},
    "NaN": lambda response: [float("nan")],
    "raises a group": lambda response: (_ for _ in ()).throw(ExceptionGroup(response, [ValueError(response)])),
}


@pytest.mark.parametrize(
    ("quote", "limit"),
    mostly_slow(
        product(QUOTES, [None, FOREVER]), [*((quote, None) for quote in QUOTES), ("raises", FOREVER), ("returns text", FOREVER)]
    ),
)
def test_no_error_warning_or_record_holds_unjudged_text(quote, limit, specialist, strategy, caplog):
    (plain,) = texts(specialist, chats_of("domain", 1))
    words = [word for word in plain.split() if len(word) > 4]
    assert words
    guarded = strategy(lambda c, r: QUOTES[quote](r[0]), on_judge_error="raise", judge_after=None, judge_timeout=limit)
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        with pytest.raises(JudgeError) as caught:
            texts(specialist, chats_of("domain", 1), guarded)
        texts(specialist, chats_of("domain", 1), strategy(lambda c, r: QUOTES[quote](r[0]), judge_timeout=limit))
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    shown = "".join(traceback.format_exception(error)) + repr(error) + caplog.text + "".join(str(w.message) for w in warned)
    assert not [word for word in words if word in shown]
    assert isinstance(error.judge_error, Exception)  # for who asks for it


def test_a_failing_on_fail_shows_no_text(specialist, strategy, caplog):
    """It is logged each time."""

    def fails(conversations):
        raise ValueError("a secret")

    for on_fail in (fails, lambda conversations: ["a secret", "a secret"], lambda conversations: ["a secret \ud800"]):
        caplog.clear()
        for n in (1, 2):
            texts(specialist, chats_of("harmful", 1), strategy(failing, on_fail=on_fail))
            assert caplog.text.count("`on_fail` failed, so these answers are refused") == n
        assert "secret" not in caplog.text
