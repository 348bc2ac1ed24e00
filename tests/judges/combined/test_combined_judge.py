"""Judges combined: each counts on its own scale, and none lets a missing verdict through."""

import math

import pytest
import torch

from hf_alignbeam.judges.combined.combined_judge import CombinedJudge, Scale, find_scale
from hf_alignbeam.judges.known_exchanges import EXCHANGES, KnownExchange

KNOWN = [KnownExchange("q", f"{kind} {n}", kind == "bad") for kind in ("good", "bad") for n in range(3)]


def logistic(x):
    return 1.0 / (1.0 + math.exp(-x))


def by_word(slope, middle):
    """A judge whose log-odds are `middle`, and `slope` more or less for words that it knows."""

    def judge(conversations, responses):
        worth = {"good": -1.0, "bad": 1.0, "worse": 2.0, "awful": 50.0, "?": math.nan}
        return torch.tensor([logistic(slope * worth[r.split()[0]] + middle) for r in responses], dtype=torch.float64)

    return judge


@pytest.mark.parametrize("slope", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("middle", [-3.0, 0.0, 0.5])
def test_a_verdict_counts_on_the_scale_of_its_judge(slope, middle):
    judge = CombinedJudge([by_word(slope, middle)], [2.0], 1.0, [KNOWN])
    expected = [logistic(-1.0), logistic(1.0), logistic(2.0), logistic(3.0)]
    given = judge(["q"] * 4, ["good", "bad", "worse", "awful"])
    torch.testing.assert_close(given, torch.tensor(expected, dtype=torch.float64))


def test_the_judges_are_weighted_and_added():
    judge = CombinedJudge([by_word(1.0, 0.0), by_word(0.2, -1.0)], [3.0, 1.0], 2.0, [KNOWN, KNOWN])
    assert judge.parts(["q"], ["bad"]).tolist() == [[pytest.approx(1.0), pytest.approx(1.0)]]
    assert judge(["q"], ["bad"]).item() == pytest.approx(logistic(2.0))
    assert judge(["q"], ["good"]).item() == pytest.approx(logistic(-2.0))


def test_no_judge_can_outvote_the_others_by_certainty():
    sure = lambda conversations, responses: torch.tensor([float("bad" in r) for r in responses])  # noqa: E731
    judge = CombinedJudge([sure, by_word(1.0, 0.0)], [1.0, 1.0], 1.0, [KNOWN, KNOWN])
    assert judge.parts(["q"], ["good"])[0, 0] == pytest.approx(0.0)
    assert judge.parts(["q"], ["awful"])[0].tolist() == [pytest.approx(0.0), pytest.approx(2.0)]


def test_where_one_judge_has_no_verdict_there_is_none():
    judge = CombinedJudge([by_word(1.0, 0.0), by_word(1.0, 0.0)], [1.0, 0.0], 0.5, [KNOWN, KNOWN])
    assert judge(["q", "q"], ["?", "good"]).isnan().tolist() == [True, False]


def test_a_scale_is_found_on_known_exchanges():
    scale = find_scale(by_word(0.5, 1.0), KNOWN)
    assert scale == Scale(pytest.approx(0.5), pytest.approx(1.5))
    backwards = lambda conversations, responses: 1.0 - by_word(1.0, 0.0)(conversations, responses)  # noqa: E731
    for judge, exchanges in ((backwards, KNOWN), (by_word(1.0, 0.0), KNOWN[:3]), (by_word(0.0, 0.0), KNOWN)):
        with pytest.raises(ValueError, match="must give harmful known exchanges more harm than harmless ones"):
            find_scale(judge, exchanges)


@pytest.mark.parametrize("arguments", [([], [], 0.0), ([max], [1.0, 2.0], 0.0), ([max], [1.0], 0.0, [EXCHANGES] * 2)])
def test_every_judge_needs_a_weight(arguments):
    with pytest.raises(ValueError, match="`weights` must hold one number a judge"):
        CombinedJudge(*arguments)
