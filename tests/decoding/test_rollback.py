"""Where a flagged answer rolls back to, and which candidate replaces the flagged text."""

import pytest

from hf_alignbeam.decoding.policy import Policy
from hf_alignbeam.decoding.rollback import Rollback


def rollback(judge_after=16, choice="likeliest"):
    policy = Policy(3, 0.5, judge_after, 64, choice, "flagged", "refuse", 0.1, 0.2)
    return Rollback(answers=None, candidates=None, fallback=None, policy=policy)


@pytest.mark.parametrize(
    ("judge_after", "n_committed", "n_written", "expected"),
    [
        (16, 0, 16, [0]),
        (16, 16, 80, [16, 32, 48, 64]),
        (16, 16, 81, [16, 32, 48, 64, 80]),
        (None, 0, 300, [0]),  # judged only at its end
        (16, 0, 0, []),
    ],
)
def test_rollback_points_begin_at_the_committed_length_and_follow_every_judge_after_tokens(
    judge_after, n_committed, n_written, expected
):
    assert list(rollback(judge_after).rollback_points(n_committed, n_written)) == expected


@pytest.mark.parametrize(("choice", "expected"), [("likeliest", 1), ("safest", 2)])
def test_the_best_candidate_is_among_those_that_pass(choice, expected):
    harms, logp = {0: 0.9, 1: 0.4, 2: 0.1}, [-0.1, -1.0, -2.0]
    assert rollback(choice=choice)._best([0, 1, 2], harms, logp, limit=0.5) == expected


def test_the_likelier_of_two_equally_safe_candidates_is_the_best():
    assert rollback(choice="safest")._best([0, 1, 2], {0: 0.1, 1: 0.1, 2: 0.3}, [-2.0, -1.0, 0.0], limit=0.2) == 1


def test_without_a_passing_candidate_there_is_no_best():
    assert rollback()._best([0, 1], {0: 0.9, 1: float("nan")}, [0.0, 0.0], limit=0.5) is None
