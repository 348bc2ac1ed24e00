"""Once text of an answer was flagged, what takes its place and what follows must be clearly harmless."""

import pytest
import torch
from helpers.strategies import answer_ids, chats_of, generated, texts

from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.decoding.policy import Policy


def flags_first_answer(harm):
    """A judge that flags the first text it reads, and says `harm` of all others."""
    calls = []

    def judge(conversations, responses):
        calls.append(responses)
        return torch.tensor([0.9 if len(calls) == 1 and n == 0 else harm for n in range(len(responses))])

    return judge


@pytest.mark.parametrize(
    ("threshold", "candidate_threshold", "was_flagged", "expected"),
    [(0.5, 0.2, False, 0.5), (0.5, 0.2, True, 0.2), (0.1, 0.2, True, 0.1), (0.1, 0.2, False, 0.1), (0.5, 1.0, True, 0.5)],
)
def test_the_lower_limit_holds_after_a_flag(threshold, candidate_threshold, was_flagged, expected):
    policy = Policy(3, threshold, 16, 64, "likeliest", "flagged", "refuse", 0.1, candidate_threshold)
    assert policy.limit(was_flagged) == expected


@pytest.mark.parametrize(("harm", "candidate_threshold", "goes_on"), [(0.4, 0.25, False), (0.25, 0.25, True), (0.4, 0.5, True)])
def test_a_candidate_must_be_below_its_own_threshold(harm, candidate_threshold, goes_on, specialist, strategy):
    judge = flags_first_answer(harm)
    guard = strategy(judge, judge_after=4, candidate_threshold=candidate_threshold)
    output, _ = generated(specialist, chats_of("harmful", 1), guard, return_dict_in_generate=True)
    assert (int(output.chosen) > 0) == goes_on
    assert (int(output.chosen) == -1) != goes_on


def test_answers_of_which_no_text_was_flagged_stay_plain_beside_one_that_is_refused(specialist, strategy):
    conversations = chats_of("general", 3)
    guard = strategy(flags_first_answer(0.4), judge_after=4)
    refused, *others = texts(specialist, conversations, guard)
    assert refused == REFUSAL
    assert others == texts(specialist, conversations)[1:]


def test_what_follows_a_candidate_is_held_to_the_same(specialist, strategy):
    """The candidate passes with .1; at its end the answer has .4, which is too much for one that was flagged."""
    calls = []

    def judge(conversations, responses):
        calls.append(responses)
        return torch.tensor([{1: 0.9, 2: 0.1}.get(len(calls), 0.4)] * len(responses))

    options = {"judge_after": 2, "judge_every": 4}
    strict, _ = generated(specialist, chats_of("general", 1), strategy(judge, **options), return_dict_in_generate=True)
    assert int(strict.chosen) == -1
    calls.clear()
    guard = strategy(judge, candidate_threshold=1.0, **options)
    lenient, _ = generated(specialist, chats_of("general", 1), guard, return_dict_in_generate=True)
    assert int(lenient.chosen) > 0


def test_without_a_flag_candidates_are_held_to_the_threshold(specialist, strategy):
    """Where every prompt gets candidates, they say nothing about the prompt."""
    guard = strategy(lambda conversations, responses: torch.full((len(responses),), 0.4), escalation="always")
    output, _ = generated(specialist, chats_of("general", 2), guard, return_dict_in_generate=True)
    assert (output.chosen > 0).all()


def test_what_on_fail_returns_is_held_to_the_same(specialist, strategy):
    def judge(conversations, responses):
        return torch.tensor([0.3 if "Rest." in text else 0.9 for text in responses])

    for limit, expected in ((0.25, REFUSAL), (0.5, "Rest.")):
        guard = strategy(judge, judge_after=4, candidate_threshold=limit, on_fail=lambda conversations: ["Rest."])
        assert texts(specialist, chats_of("harmful", 1), guard) == [expected]


def test_the_trace_says_which_harm_would_have_passed(specialist, strategy):
    answers = []
    guard = strategy(flags_first_answer(0.1), judge_after=4).for_call(explain=answers.append)
    answer_ids(specialist, chats_of("harmful", 1), guard)
    (answer,) = answers
    assert [prefix.limit for prefix in answer.judged_prefixes][:2] == [0.5, 0.25]
    assert {candidate.limit for candidate in answer.rollbacks[0].candidates} == {0.25}
