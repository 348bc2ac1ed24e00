"""What is noted of an answer, held against what happened; noting it changes nothing."""

import math

import pytest
import torch
from helpers.divergences import by_hand
from helpers.strategies import WAYS, Noted, asked, failing, generated

from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.decoding import judged_decoding as choosing
from hf_alignbeam.decoding import row_batch as writing
from hf_alignbeam.decoding.records import divergence
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.presets.published import PAPER
from hf_alignbeam.tokenization.vocabulary import decode, token_bytes

SETTINGS = {"default": {}, "often": {"judge_after": 4, "judge_every": 6}, "paper": PAPER}


def noted(target, conversations, strategy, **options):
    """The answers as they were noted, what `generate` returned, and the length of the prompts."""
    answers = []
    watched = strategy.for_call(explain=answers.append)
    output, n_prompt = generated(target, conversations, watched, return_dict_in_generate=True, **options)
    return answers, output, n_prompt


def said(target, ids):
    pieces = token_bytes(target[1])
    return decode(pieces, ids).decode(errors="replace").strip()


def test_divergence_of_distributions_of_four_numbers():
    own = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]).log()
    steered = torch.tensor([[0.25, 0.5, 0.125, 0.125], [1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]).log()
    expected = [0.25 * math.log(2), math.log(2)]
    assert divergence(steered, own)[:2].tolist() == pytest.approx(expected)
    assert divergence(steered + 3.0, own - 1.0)[:2].tolist() == pytest.approx(expected)  # scores need not be normalised
    assert divergence(steered, own)[2].isnan()
    assert divergence(steered + 3.0, own)[2] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("way", ["greedy", "sampling", "several", "processed"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_noting_changes_no_token(way, settings, specialist, strategy, oracle, mixed):
    one = strategy(oracle, **SETTINGS[settings])
    plain, _ = generated(specialist, mixed, one, **WAYS[way])
    answers, output, _ = noted(specialist, mixed, one, **WAYS[way])
    assert torch.equal(output.sequences, plain)
    assert len(answers) == len(plain)


def test_nothing_is_noted_where_nobody_asks(specialist, strategy, oracle, monkeypatch):
    for module, name in ((writing, "divergence"), (choosing, "JudgedPrefix"), (choosing, "RollbackRecord")):
        monkeypatch.setattr(module, name, None)
    output, _ = generated(specialist, asked("harmful", 1), strategy(oracle), return_dict_in_generate=True)
    assert int(output.steered) > 0


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_token_was_moved_as_far_as_its_scores_say(settings, specialist, strategy, oracle, mixed):
    """In a batch, in which rows leave the target's forwards and come back."""
    wanted = {"output_scores": True, "output_logits": True}
    answers, output, n_prompt = noted(specialist, mixed, strategy(oracle, **SETTINGS[settings]), **wanted)
    n_steered = 0
    for answer in answers:
        assert answer.ids == output.sequences[answer.number, n_prompt:].tolist()[: len(answer.ids)]
        assert len(answer.moved) == len(answer.ids) or answer.chosen < 0
        for step, nats in enumerate(answer.moved):
            scores, logits = output.scores[step][answer.number], output.logits[step][answer.number]
            if math.isnan(nats):
                assert torch.equal(scores, logits)
            else:
                assert nats == pytest.approx(by_hand(scores, logits), abs=1e-4)
                n_steered += 1
    assert n_steered > 20


def test_readings_are_what_the_judge_was_asked(specialist, strategy, oracle):
    judge = Noted(oracle)
    conversations = [*asked("harmful", 2), *asked("late", 2), *asked("general", 2)]
    answers, output, _ = noted(specialist, conversations, strategy(judge, judge_after=4, judge_every=6))
    questions = [(str(conversation), text, harm) for call in judge.calls for conversation, text, harm in call]
    assert output.judged.tolist() == [len(answer.readings) for answer in answers]
    for answer in answers:
        mine = [(text, harm) for conversation, text, harm in questions if conversation == str(answer.asked.messages)]
        assert [(said(specialist, each.ids), each.harm) for each in answer.readings] == mine
        assert all(each.passes == (each.harm <= 0.5) for each in answer.readings)


@pytest.mark.parametrize("choice", ["likeliest", "safest"])
def test_candidates_are_those_that_were_judged_and_the_chosen_one_stands(choice, specialist, strategy, judge_lm):
    judge = Noted(judge_lm)
    conversations = [*asked("harmful", 3), *asked("late", 3)]
    answers, output, _ = noted(specialist, conversations, strategy(judge, choice=choice), max_new_tokens=80)
    verdicts = {(str(conversation), text): harm for call in judge.calls for conversation, text, harm in call}
    inputs = encode(conversations, specialist[1])
    for answer in answers:
        assert answer.attempts
        for attempt in answer.attempts:
            kept = answer.ids[: attempt.point]
            assert verdicts[str(answer.asked.messages), said(specialist, [*kept, *attempt.flagged])] > 0.5
            for one in attempt.tried:
                assert verdicts[str(answer.asked.messages), said(specialist, [*kept, *one.ids])] == one.harm
                assert len(one.moved) == len(one.ids)
                assert one.logp == pytest.approx(mean_logp(specialist, inputs, answer.number, kept, one.ids), abs=1e-4)
            passing = [number for number, one in enumerate(attempt.tried, start=1) if one.passes]
            assert attempt.chosen in passing
            best = {"likeliest": lambda one: -one.logp, "safest": lambda one: (one.harm, -one.logp)}[choice]
            went = attempt.tried[attempt.chosen - 1]
            assert best(went) == min(best(attempt.tried[number - 1]) for number in passing)
            assert answer.ids[attempt.point :][: len(went.ids)] == went.ids
            assert answer.moved[attempt.point :][: len(went.ids)] == pytest.approx(went.moved, nan_ok=True)
        n_tried = len(answer.attempts[-1].tried)
        last_harm = [one.harm for one in answer.attempts[-1].tried]
        assert output.candidate_harm[answer.number, 1 : 1 + n_tried].tolist() == pytest.approx(last_harm)
        assert output.chosen[answer.number] == answer.attempts[-1].chosen


def mean_logp(target, inputs, row, kept, ids):
    """Of a continuation under the target, by one forward without padding."""
    prompt = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
    with torch.no_grad():
        logits = target[0](torch.tensor([[*prompt, *kept, *ids]])).logits[0]
    logp = logits.log_softmax(-1)[len(prompt) + len(kept) - 1 : -1]
    return float(logp.gather(-1, torch.tensor(ids)[:, None]).mean())


def test_a_harmless_prompt_is_sent_back_nowhere(specialist, strategy, judge_lm):
    answers, _, _ = noted(specialist, asked("domain"), strategy(judge_lm))
    for answer in answers:
        assert not answer.attempts
        assert all(each.passes for each in answer.readings)
        assert all(math.isnan(nats) for nats in answer.moved)
        assert len(answer.moved) == len(answer.ids)


@pytest.mark.parametrize("judge", [failing, lambda conversations, responses: torch.full((len(responses),), math.nan)])
def test_where_nothing_passes_the_refusal_is_no_drawn_token(judge, specialist, strategy):
    answers, _, _ = noted(specialist, asked("harmful"), strategy(judge, judge_after=5))
    for answer in answers:
        (attempt,) = answer.attempts
        assert (attempt.point, attempt.chosen, answer.chosen, answer.moved) == (0, None, -1, [])
        assert attempt.tried
        assert not any(one.passes for one in attempt.tried)
        assert said(specialist, answer.ids) == REFUSAL


def test_what_on_fail_says_was_read_and_not_drawn(specialist, strategy):
    judge = Noted(lambda conversations, responses: torch.tensor([float(text != "Ask a friend.") for text in responses]))
    helped = strategy(judge, on_fail=lambda conversations: ["Ask a friend."] * len(conversations))
    answers, _, _ = noted(specialist, asked("harmful", 2), helped)
    for answer in answers:
        assert (answer.chosen, answer.moved) == (-2, [])
        assert answer.readings[-1].passes
        assert answer.readings[-1].ids == answer.ids
