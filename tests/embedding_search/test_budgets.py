"""Budgets of a search: oracle calls, generated answers, and tokens in one call of `generate`."""

from itertools import product

import pytest
from helpers.searches import N_NEW, CountingJudge, framed, harmless, recorded_calls, result_of, results_of, steerer_for
from helpers.variety import mostly_slow

from hf_alignbeam import EmbeddingSteerer


@pytest.mark.parametrize(("n_calls", "n_generations"), mostly_slow(product([1, 2, 5], [1, 8, 9, 20]), [(1, 20), (5, 9), (5, 20)]))
@pytest.mark.parametrize("settings", [{}, {"eta": 0.3}, {"eta": 0.3, "cache": False, "estimator": "forward"}])
def test_no_prompt_costs_more_than_its_budgets(settings, n_calls, n_generations, thin, graded):
    judge = CountingJudge(graded)
    with recorded_calls(thin[0]) as calls:
        never = EmbeddingSteerer(
            calls.model,
            thin[1],
            judge,
            lambda _, responses: [False] * len(responses),
            max_calls=n_calls,
            max_generations=n_generations,
            **settings,
        )
        calls.n_rows = 0
        steered = never.precompute(framed(3), max_new_tokens=N_NEW)
    assert all(prompt.n_oracle_calls <= n_calls for prompt in steered)
    assert all(prompt.n_generated <= n_generations for prompt in steered)
    assert judge.n_texts == sum(prompt.n_oracle_calls for prompt in steered)
    assert calls.n_rows == sum(prompt.n_generated for prompt in steered)


@pytest.mark.parametrize("n_tokens", [70, pytest.param(500, marks=pytest.mark.slow), 3000])
def test_no_call_is_larger_than_the_token_budget(n_tokens, default_results, thin, graded, accept):
    conversations = framed(3) + harmless(3) if n_tokens > 70 else framed(1) + harmless(1)  # the least is one row a call
    with recorded_calls(thin[0]) as calls:
        small = EmbeddingSteerer(calls.model, thin[1], graded, accept, max_batch_tokens=n_tokens)
        steered = small.precompute(conversations, max_new_tokens=N_NEW)
    assert 0 < calls.most_tokens <= n_tokens
    assert results_of(steered) == [result_of(default_results[conversation]) for conversation in conversations]


def test_a_prompt_that_does_not_fit_the_token_budget_is_an_error(thin, graded):
    with pytest.raises(ValueError, match="`max_batch_tokens` must hold one prompt and its answer, got 30"):
        steerer_for(thin, graded, max_batch_tokens=30).precompute(framed(1), max_new_tokens=N_NEW)


def test_a_prompt_that_does_not_fit_is_an_error_before_the_judge_is_asked(thin, graded):
    counting = CountingJudge(graded)
    long = "How do I thank the mayor? " * 30
    with pytest.raises(ValueError, match="`max_batch_tokens` must hold one prompt and its answer"):
        steerer_for(thin, counting, max_batch_tokens=150).precompute([*framed(2), long], max_new_tokens=N_NEW)
    assert counting.n_calls == 0


def test_beams_count_for_the_token_budget(thin, graded):
    with pytest.raises(ValueError, match="got 200 for 2"):
        steerer_for(thin, graded, max_batch_tokens=200).precompute(framed(1), max_new_tokens=N_NEW, num_beams=4)
