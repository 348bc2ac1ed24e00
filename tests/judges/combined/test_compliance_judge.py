"""Harm is to comply with a harmful request: neither alone is, and what one judge does not say the other cannot make up for."""

import math

import pytest
import torch

from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.judges.combined.compliance_judge import CLEARLY, COMPLIES, SLOPE, ComplianceJudge
from hf_alignbeam.judges.known_exchanges import KnownExchange

KNOWN = [
    KnownExchange("kill?", "kill so", True),
    KnownExchange("kill?", "no", False),
    KnownExchange("bake?", "bake so", False),
    KnownExchange("boil?", "boil so", False),
]
BASE = {"kill?": 0.3, "bake?": -0.2, "boil?": 0.0, "?": 1.0}


def of_requests(conversations, responses):
    """Requests to kill are harmful."""
    asked = [chat[-1]["content"] for chat in conversations]
    return torch.tensor([math.nan if q == "?" else 0.9 if "kill" in q else 0.1 for q in asked])


def rating(conversations, responses):
    """Half a point of log-odds for an answer, less for half a one, around another base for each question: it knows no harm."""
    worth = {"so": 0.5, "half": 0.15, "bit": 0.1, REFUSAL.split()[-1]: 0.0, "no": -0.1, "": math.nan}
    pairs = zip(conversations, responses, strict=True)
    return torch.tensor([BASE[chat[-1]["content"]] + worth[r.split(" ")[-1]] for chat, r in pairs]).double().sigmoid()


@pytest.fixture(scope="module")
def judge():
    return ComplianceJudge(of_requests, rating, KNOWN)


@pytest.mark.parametrize(
    ("question", "response", "log_odds"),
    [
        ("kill?", "kill so", math.log(9)),
        ("bake?", "bake so", -math.log(9)),
        ("kill?", "no", SLOPE * (-0.2 - COMPLIES)),
        ("kill?", REFUSAL, SLOPE * -COMPLIES),
        ("kill?", "a half", SLOPE * (0.3 - COMPLIES)),
        ("kill?", "a bit", SLOPE * (0.2 - COMPLIES)),
    ],
)
def test_the_smaller_log_odds_count(question, response, log_odds, judge):
    assert torch.logit(judge([question], [response])).item() == pytest.approx(log_odds, abs=1e-5)


@pytest.mark.parametrize(
    ("question", "response", "log_odds"),
    [
        ("kill?", "kill so", 2.0 * (1.0 - CLEARLY) + math.log(9)),
        ("bake?", "bake so", 2.0 * (1.0 - CLEARLY) - math.log(9)),
        ("bake?", "a half", -math.log(9)),
        ("kill?", REFUSAL, SLOPE * -COMPLIES),
        ("kill?", "no", SLOPE * (-0.2 - COMPLIES)),
    ],
)
def test_a_clearer_answer_is_more_harm_and_a_refusal_passes_all_the_same(question, response, log_odds):
    judge = ComplianceJudge(of_requests, rating, KNOWN, weight=2.0)
    assert torch.logit(judge([question], [response])).item() == pytest.approx(log_odds, abs=1e-5)


def test_a_refusal_passes_and_an_answer_does_not(judge):
    harm = judge(["kill?", "kill?", "kill?", "bake?"], ["kill so", REFUSAL, "no", "bake so"])
    assert (harm > 0.5).tolist() == [True, False, False, False]


def test_where_one_judge_has_no_verdict_there_is_none(judge):
    assert judge(["kill?", "bake?", "?"], ["", "", "x so"]).isnan().all()


def test_a_refusal_is_rated_once_a_conversation():
    asked = []

    def counted(conversations, responses):
        asked.extend(responses)
        return rating(conversations, responses)

    judge = ComplianceJudge(of_requests, counted, KNOWN)
    before = asked.count(REFUSAL)
    for response in ("kill so", "a half", "no"):
        judge(["kill?"] * 2, [response] * 2)
    assert asked.count(REFUSAL) == before == 3


def test_a_rating_that_tells_no_answer_from_a_refusal_is_refused():
    constant, missing = (lambda c, r, value=value: torch.full((len(r),), value) for value in (0.5, math.nan))
    for rated in (constant, missing, lambda c, r: 1.0 - rating(c, r)):
        with pytest.raises(ValueError, match="`response` must rate known answers above a plain refusal"):
            ComplianceJudge(of_requests, rated, KNOWN)


def test_what_the_judge_of_responses_says_is_passed_on(judge):
    assert judge.describe_missing() == ""
    rated = type("Rated", (), {"__call__": staticmethod(rating), "describe_missing": lambda self: "It writes a poem."})()
    assert ComplianceJudge(of_requests, rated, KNOWN).describe_missing() == "It writes a poem."
