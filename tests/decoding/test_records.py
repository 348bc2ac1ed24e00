"""The trace of an answer agrees with what happened, and changes nothing."""

import math
from itertools import product

import pytest
import torch
from helpers.divergences import by_hand
from helpers.strategies import OPTIONS, RecordingJudge, chats_of, failing, generated, text_of
from helpers.variety import mostly_slow

from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.decoding import judged_answers, rollback, row_writer
from hf_alignbeam.decoding.records import divergence
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.presets.published import PAPER

SETTINGS = {"default": {}, "often": {"judge_after": 4, "judge_every": 6}, "paper": PAPER}


def traced(target, conversations, strategy, **options):
    """The answers with their traces, the output of `generate`, and the length of the prompts."""
    answers = []
    tracing = strategy.for_call(explain=answers.append)
    output, n_prompt = generated(target, conversations, tracing, return_dict_in_generate=True, **options)
    return answers, output, n_prompt


def readable(target, ids):
    """The text of some tokens, which may end inside a character."""
    return text_of(target[1], ids, errors="replace")


def test_divergence_of_distributions_of_four_numbers():
    own = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]).log()
    steered = torch.tensor([[0.25, 0.5, 0.125, 0.125], [1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]).log()
    expected = [0.25 * math.log(2), math.log(2)]
    assert divergence(steered, own)[:2].tolist() == pytest.approx(expected)
    assert divergence(steered + 3.0, own - 1.0)[:2].tolist() == pytest.approx(expected)  # scores need not be normalized
    assert divergence(steered, own)[2].isnan()
    assert divergence(steered + 3.0, own)[2] == pytest.approx(0.0, abs=1e-6)


#: One of each kind of settings with one of each kind of options; the other combinations are slow.
QUICK = {("default", "processed"), ("often", "sampling"), ("paper", "several")}


@pytest.mark.parametrize(
    ("settings", "name"),
    mostly_slow(product(SETTINGS, ("greedy", "sampling", "several", "processed")), QUICK),
)
def test_tracing_changes_no_token(name, settings, specialist, strategy, oracle, one_of_each):
    shared = strategy(oracle, **SETTINGS[settings])
    untraced, _ = generated(specialist, one_of_each, shared, **OPTIONS[name])
    answers, output, _ = traced(specialist, one_of_each, shared, **OPTIONS[name])
    assert torch.equal(output.sequences, untraced)
    assert len(answers) == len(untraced)


def test_nothing_is_traced_unless_requested(specialist, strategy, oracle, monkeypatch):
    traces = (
        (row_writer, "divergence"),
        (judged_answers, "JudgedPrefix"),
        (rollback, "RollbackRecord"),
        (rollback, "CandidateRecord"),
    )
    for module, name in traces:
        monkeypatch.setattr(module, name, None)
    output, _ = generated(specialist, chats_of("harmful", 1), strategy(oracle), return_dict_in_generate=True)
    assert int(output.steered) > 0


@pytest.mark.parametrize("settings", mostly_slow(SETTINGS, ("often", "paper")))
def test_divergences_are_those_of_the_returned_scores(settings, specialist, strategy, oracle, mixed):
    """In a batch whose rows leave the target's forwards and come back."""
    wanted = {"output_scores": True, "output_logits": True}
    answers, output, n_prompt = traced(specialist, mixed, strategy(oracle, **SETTINGS[settings]), **wanted)
    n_steered = 0
    for answer in answers:
        assert answer.ids == output.sequences[answer.number, n_prompt:].tolist()[: len(answer.ids)]
        assert len(answer.divergences) == len(answer.ids) or answer.chosen < 0
        for step, nats in enumerate(answer.divergences):
            scores, logits = output.scores[step][answer.number], output.logits[step][answer.number]
            if math.isnan(nats):
                assert torch.equal(scores, logits)
            else:
                assert nats == pytest.approx(by_hand(scores, logits), abs=1e-4)
                n_steered += 1
    assert n_steered > 20


def test_judged_prefixes_are_what_the_judge_read(specialist, strategy, oracle):
    judge = RecordingJudge(oracle)
    conversations = [*chats_of("harmful", 2), *chats_of("late", 2), *chats_of("general", 2)]
    answers, output, _ = traced(specialist, conversations, strategy(judge, judge_after=4, judge_every=6))
    verdicts = [(str(conversation), text, harm) for call in judge.calls for conversation, text, harm in call]
    assert output.judged.tolist() == [len(answer.judged_prefixes) for answer in answers]
    for answer in answers:
        own = [(text, harm) for conversation, text, harm in verdicts if conversation == str(answer.prompt.messages)]
        assert [(readable(specialist, prefix.ids), prefix.harm) for prefix in answer.judged_prefixes] == own
        assert all(prefix.passes == (prefix.harm <= 0.5) for prefix in answer.judged_prefixes)


@pytest.mark.parametrize("choice", ["likeliest", "safest"])
def test_rollbacks_hold_the_judged_candidates_and_the_chosen_one_continues(choice, specialist, strategy, judge_lm):
    judge = RecordingJudge(judge_lm)
    conversations = [*chats_of("harmful", 3), *chats_of("late", 3)]
    answers, output, _ = traced(specialist, conversations, strategy(judge, choice=choice), max_new_tokens=80)
    verdicts = {(str(conversation), text): harm for call in judge.calls for conversation, text, harm in call}
    inputs = encode(conversations, specialist[1])
    for answer in answers:
        assert answer.rollbacks
        for record in answer.rollbacks:
            kept = answer.ids[: record.n_kept]
            assert verdicts[str(answer.prompt.messages), readable(specialist, [*kept, *record.flagged])] > 0.5
            for candidate in record.candidates:
                assert verdicts[str(answer.prompt.messages), readable(specialist, [*kept, *candidate.ids])] == candidate.harm
                assert len(candidate.divergences) == len(candidate.ids)
                assert candidate.logp == pytest.approx(
                    mean_logp(specialist, inputs, answer.number, kept, candidate.ids), abs=1e-4
                )
            passing = [number for number, candidate in enumerate(record.candidates, start=1) if candidate.passes]
            assert record.chosen in passing
            best = {
                "likeliest": lambda candidate: -candidate.logp,
                "safest": lambda candidate: (candidate.harm, -candidate.logp),
            }[choice]
            chosen = record.candidates[record.chosen - 1]
            assert best(chosen) == min(best(record.candidates[number - 1]) for number in passing)
            assert answer.ids[record.n_kept :][: len(chosen.ids)] == chosen.ids
            assert answer.divergences[record.n_kept :][: len(chosen.ids)] == pytest.approx(chosen.divergences, nan_ok=True)
        n_candidates = len(answer.rollbacks[-1].candidates)
        last_harm = [candidate.harm for candidate in answer.rollbacks[-1].candidates]
        assert output.candidate_harm[answer.number, 1 : 1 + n_candidates].tolist() == pytest.approx(last_harm)
        assert output.chosen[answer.number] == answer.rollbacks[-1].chosen


def mean_logp(target, inputs, row, kept, ids):
    """The target's mean log-probability of a continuation, by one forward without padding."""
    prompt = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
    with torch.no_grad():
        logits = target[0](torch.tensor([[*prompt, *kept, *ids]])).logits[0]
    logp = logits.log_softmax(-1)[len(prompt) + len(kept) - 1 : -1]
    return float(logp.gather(-1, torch.tensor(ids)[:, None]).mean())


def test_a_harmless_answer_has_no_rollbacks(specialist, strategy, judge_lm):
    answers, _, _ = traced(specialist, chats_of("domain"), strategy(judge_lm))
    for answer in answers:
        assert not answer.rollbacks
        assert all(prefix.passes for prefix in answer.judged_prefixes)
        assert all(math.isnan(nats) for nats in answer.divergences)
        assert len(answer.divergences) == len(answer.ids)


@pytest.mark.parametrize("judge", [failing, lambda conversations, responses: torch.full((len(responses),), math.nan)])
def test_the_tokens_of_a_refusal_have_no_divergences(judge, specialist, strategy):
    answers, _, _ = traced(specialist, chats_of("harmful"), strategy(judge, judge_after=5))
    for answer in answers:
        (record,) = answer.rollbacks
        assert (record.n_kept, record.chosen, answer.chosen, answer.divergences) == (0, None, -1, [])
        assert record.candidates
        assert not any(candidate.passes for candidate in record.candidates)
        assert readable(specialist, answer.ids) == REFUSAL


def test_the_answer_of_on_fail_is_judged_and_has_no_divergences(specialist, strategy):
    judge = RecordingJudge(lambda conversations, responses: torch.tensor([float(text != "Ask a friend.") for text in responses]))
    helped = strategy(judge, on_fail=lambda conversations: ["Ask a friend."] * len(conversations))
    answers, _, _ = traced(specialist, chats_of("harmful", 2), helped)
    for answer in answers:
        assert (answer.chosen, answer.divergences) == (-2, [])
        assert answer.judged_prefixes[-1].passes
        assert answer.judged_prefixes[-1].ids == answer.ids
