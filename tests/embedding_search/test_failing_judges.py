"""A judge or an `accept` that fails at any call stops the search, and finished prompts are kept."""

import math
import threading
import time
import traceback

import pytest
import torch
from helpers.searches import FAILURES, GREEDY, N_NEW, CountingJudge, framed, harmless, raises, result_of, steerer_for

from hf_alignbeam.embedding_search.steered_prompts import EmbeddingSearchError
from hf_alignbeam.judges.failsafe import JudgeError


@pytest.fixture(scope="module")
def short(thin, graded, accept):
    """A search that soon ends: its prompts, its settings, its results, and how often it calls the judge."""
    conversations, settings, whole = framed(2) + harmless(1), {"max_generations": 17}, CountingJudge(graded)
    return (
        conversations,
        settings,
        steerer_for(thin, whole, accept, **settings).precompute(conversations, max_new_tokens=N_NEW),
        whole.n_calls,
    )


#: Each is handled like another failure.
HANDLED_ALIKE = ("returns too few", "returns infinity", "returns harm above 1", "returns too many", "returns None")


@pytest.mark.parametrize("failure", [pytest.param(f, marks=pytest.mark.slow) if f in HANDLED_ALIKE else f for f in FAILURES])
def test_a_judge_that_fails_at_any_call_stops_the_search_and_finished_prompts_are_kept(failure, short, thin, graded, accept):
    conversations, settings, expected, n_calls = short
    for n in range(n_calls):
        judge = CountingJudge(graded, n, FAILURES[failure])
        with pytest.raises(EmbeddingSearchError, match=r"The judge gave no verdict .* of 3 prompts are done") as caught:
            steerer_for(thin, judge, accept, **settings).precompute(conversations, max_new_tokens=N_NEW)
        for prompt in caught.value.steered:
            assert result_of(prompt) == result_of(expected[prompt.messages])
        n_done = sum(prompt.n_oracle_calls == 1 for prompt in expected) if n else 0
        assert len(caught.value.steered) >= n_done
        assert n > 0 or not len(caught.value.steered)
        with pytest.raises(JudgeError):
            steerer_for(thin, CountingJudge(graded, n, FAILURES[failure]), accept, **settings).generate(conversations, **GREEDY)


def test_a_judge_that_hangs_is_abandoned_after_the_timeout(thin, graded):
    release = threading.Event()

    def hangs(conversations, responses):
        release.wait(20)
        return graded(conversations, responses)

    started = time.perf_counter()
    with pytest.raises(EmbeddingSearchError, match=r"it has not answered within 0.2 seconds"):
        steerer_for(thin, hangs, judge_timeout=0.2).precompute(framed(1), max_new_tokens=N_NEW)
    assert time.perf_counter() - started < 10
    release.set()


def test_within_the_timeout_a_verdict_counts_and_an_error_is_reported(thin, graded):
    steered = steerer_for(thin, graded, judge_timeout=60.0).precompute(harmless(1), max_new_tokens=N_NEW)
    assert steered[harmless(1)[0]].outcome == "clean"
    with pytest.raises(EmbeddingSearchError, match="ConnectionError"):
        steerer_for(thin, CountingJudge(graded, 0, raises), judge_timeout=60.0).precompute(harmless(1), max_new_tokens=N_NEW)


def raising(*arguments):
    raise ConnectionError("no such host")


@pytest.mark.parametrize(
    "accept", [raising, *(lambda c, r, verdict=verdict: verdict for verdict in ([True], [math.nan] * 8, None, "yes"))]
)
def test_an_accept_without_a_verdict_stops_the_search_and_finished_prompts_are_kept(accept, thin, graded):
    with pytest.raises(EmbeddingSearchError, match="`accept` gave no verdict") as caught:
        steerer_for(thin, graded, accept).precompute(framed(1) + harmless(2), max_new_tokens=N_NEW)
    assert "A judge" not in str(caught.value)
    assert [prompt.outcome for prompt in caught.value.steered] == ["clean", "clean"]
    with pytest.raises(JudgeError, match="`accept` gave no verdict"):
        steerer_for(thin, graded, accept).generate(framed(1), **GREEDY)


def test_within_the_limit_one_thread_asks_the_judge_and_accept_and_random_numbers_change_nothing(thin, graded, accept):
    threads = set()

    def drawing(judge):
        def drawn(conversations, responses):
            threads.add(threading.get_ident())
            torch.manual_seed(3), torch.rand(3)
            return judge(conversations, responses)

        return drawn

    settings = {"max_generations": 17, "probe_temperature": 1.0}
    conversations = framed(2) + harmless(1)
    expected = steerer_for(thin, graded, accept, **settings).precompute(conversations, max_new_tokens=N_NEW)
    state = torch.get_rng_state()
    searched = steerer_for(thin, drawing(graded), drawing(accept), judge_timeout=60.0, **settings).precompute(
        conversations, max_new_tokens=N_NEW
    )
    assert [result_of(prompt) for prompt in searched] == [result_of(prompt) for prompt in expected]
    assert torch.equal(torch.get_rng_state(), state)
    assert len(threads) == 1


def test_no_error_of_a_search_holds_unjudged_text(thin, graded, accept):
    seen = []

    def quoting(conversations, responses):
        seen.extend(responses)
        raise ValueError(f"cannot read {responses}")

    for judge, accepts in ((quoting, accept), (graded, quoting)):
        seen.clear()
        with pytest.raises(EmbeddingSearchError) as caught:
            steerer_for(thin, judge, accepts).precompute(framed(1), max_new_tokens=N_NEW)
        words = [word for text in seen for word in text.split() if len(word) > 4]
        shown = "".join(traceback.format_exception(caught.value))
        assert words
        assert not [word for word in words if word in shown]
        assert isinstance(caught.value.judge_error, ValueError)
