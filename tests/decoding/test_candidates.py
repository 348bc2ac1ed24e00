"""Which candidates a flagged answer gets, which one continues it, and what they cost."""

import pytest
import torch
from helpers.strategies import answer_ids, chats_of, failing, fed_shapes, flags_first_call, generated, texts
from transformers import LogitsProcessor, StoppingCriteria, StopStringCriteria

from hf_alignbeam.evaluation.generation import encode


def test_the_likeliest_or_the_safest_candidate_continues(specialist, strategy):
    conversation = chats_of("harmful", 1)
    judge = flags_first_call()
    likeliest, _ = generated(specialist, conversation, strategy(judge, judge_after=8), return_dict_in_generate=True)
    candidates = [response for _, response, _ in judge.calls[1]]
    assert len(set(candidates)) >= 2
    for safest in set(candidates):
        (answer,) = texts(specialist, conversation, strategy(flags_first_call(safest), judge_after=8, choice="safest"))
        assert answer.startswith(safest)
    logp = [mean_logp(specialist, conversation, text) for text in candidates]
    assert int(likeliest.chosen) - 1 == max(range(len(logp)), key=lambda n: logp[n])


@torch.no_grad()
def mean_logp(target, conversation, text):
    """The target's mean log-probability of an answer's tokens, by a forward of its own."""
    model, tokenizer = target
    prompt = encode(conversation, tokenizer)["input_ids"][0].tolist()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if text.endswith("."):
        ids = [*ids, tokenizer.eos_token_id]
    logp = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
    return float(logp[range(len(prompt) - 1, len(prompt) + len(ids) - 1), ids].mean())


def test_candidates_cost_no_second_prefill(specialist, strategy):
    four_candidates = strategy(flags_first_call(), judge_after=8, num_candidates=4)
    with fed_shapes(specialist[0]) as fed:
        _, n_prompt = generated(specialist, chats_of("harmful", 3), four_candidates)
    assert fed[0] == (3, n_prompt)
    assert {length for _, length in fed[1:]} == {1}


def test_chosen_candidates_share_the_forwards_of_their_batch(specialist, strategy, oracle):
    """After the check, the chosen candidates continue in the rows that they replace."""
    conversations = [*chats_of("harmful", 2), *chats_of("general", 2)]
    flagged = {conversation[0]["content"] for conversation in conversations[:2]}
    n_calls = []

    def judge(conversations, responses):
        n_calls.append(len(responses))
        return torch.tensor([float(len(n_calls) == 1 and c[0]["content"] in flagged) for c in conversations])

    with fed_shapes(specialist[0]) as fed:
        generated(specialist, conversations, strategy(judge, judge_after=4, judge_every=None, num_candidates=3))
    n_rows = [shape[0] for shape in fed]
    n_candidates = 2 * 3
    assert n_rows[:7] == [4] * 4 + [n_candidates] * 3  # up to the check; the candidates, whose first token costs no forward
    assert set(n_rows[7:]) == {4}


def test_only_candidates_that_exist_are_written_and_judged(specialist, strategy):
    """No second token is as likely as the first: each answer has two candidates that begin alike, and no third row."""
    judge = flags_first_call()
    with fed_shapes(specialist[0]) as fed:
        options = {"judge_after": 4, "judge_every": None, "num_candidates": 3, "min_start": 1.0}
        output, _ = generated(specialist, chats_of("harmful", 2), strategy(judge, **options), return_dict_in_generate=True)
    assert [shape[0] for shape in fed][:7] == [2] * 4 + [2 * 2] * 3
    assert len(judge.calls[1]) == 2 * 2
    assert output.candidate_harm.isnan().tolist() == [[False, False, False, True]] * 2


@pytest.mark.parametrize("min_start", [0.1, 0.0])
def test_more_candidates_than_tokens_are_as_many_as_there_are(min_start, anchor, strategy, specialist, monkeypatch):
    """With `min_start`, more than the vocabulary's tokens are the same few; without, every token begins a candidate."""
    n_tokens = specialist[0].config.vocab_size
    options = {"judge_after": 4, "judge_every": None, "min_start": min_start, "n_steps": 2}
    judges = [flags_first_call(), flags_first_call()]
    outputs = [
        answer_ids(specialist, chats_of("harmful", 1), strategy(judge, num_candidates=n, **options), max_new_tokens=6)
        for judge, n in zip(judges, (n_tokens, 5000), strict=True)
    ]
    assert outputs[0] == outputs[1]
    assert judges[0].calls[1] == judges[1].calls[1]


class ForbidToken(LogitsProcessor):
    """Forbids one token."""

    def __init__(self, i):
        self._i = i

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, self._i] = -torch.inf
        return scores


def test_the_users_processors_and_criteria_apply_to_candidates(specialist, strategy):
    tokenizer = specialist[1]
    judge = flags_first_call()
    options = {"logits_processor": [ForbidToken(tokenizer.convert_tokens_to_ids("."))], "max_new_tokens": 24}
    (ids,) = answer_ids(specialist, chats_of("harmful", 1), strategy(judge, judge_after=10), **options)
    assert tokenizer.convert_tokens_to_ids(".") not in ids
    assert not any("." in response for call in judge.calls for _, response, _ in call)
    stops = [StopStringCriteria(tokenizer, ["Sorry", "safe", "dangerous"])]
    (cut,) = texts(specialist, chats_of("harmful", 1), strategy(flags_first_call(), judge_after=6), stopping_criteria=stops)
    assert cut.rstrip(",").endswith(("Sorry", "safe", "dangerous"))


def test_a_row_that_is_flagged_twice_has_one_anchor(specialist, strategy):
    """It gets the same tokens beside a row that passes as alone."""
    settings = {"judge_after": 4, "judge_every": 4, "num_candidates": 2, "n_steps": None, "n_watch": None}
    conversations = [*chats_of("harmful", 1), *chats_of("general", 1)]
    harmful = conversations[0][0]["content"]

    def flags_checks(*numbers):
        """A judge that flags the harmful prompt's own text at the checks of these numbers."""
        n_checks = 0

        def judge(conversations, responses):
            nonlocal n_checks
            is_harmful = [c[0]["content"] == harmful for c in conversations]
            is_check = sum(is_harmful) == 1  # its candidates are two
            n_checks += is_check
            return torch.tensor([float(mine and is_check and n_checks in numbers) for mine in is_harmful])

        return judge

    for numbers in ((1, 2), (1, 3), (2, 3), (1, 2, 3)):
        together = answer_ids(specialist, conversations, strategy(flags_checks(*numbers), **settings))
        assert together[0] == answer_ids(specialist, conversations[:1], strategy(flags_checks(*numbers), **settings))[0]


@pytest.mark.parametrize("way", ["eos", "criterion"])
def test_a_candidate_in_place_of_an_answer_that_had_ended_is_written_to_its_own_end(way, specialist, strategy):
    """It gets the same tokens beside a row that goes on as alone."""
    conversation, beside = chats_of("harmful", 1), chats_of("general", 1)
    own = answer_ids(specialist, conversation)[0][:3]
    ended = texts(specialist, conversation, max_new_tokens=3)[0]

    def judge(conversations, responses):
        return torch.tensor([float(response == ended) for response in responses])

    class StopsTheOwn(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return (input_ids[:, -3:] == torch.tensor(own)).all(-1)

    options = {"eos_token_id": [2, own[-1]]} if way == "eos" else {"stopping_criteria": [StopsTheOwn()]}
    settings = {"judge_after": 5, "num_candidates": 2}
    (alone,) = answer_ids(specialist, conversation, strategy(judge, **settings), **options)
    together = answer_ids(specialist, conversation + beside, strategy(judge, **settings), **options)
    assert together[0] == alone != own
    assert len(alone) > settings["judge_after"] + 1


def test_scores_explain_every_returned_token(specialist, strategy, oracle, one_of_each):
    """Greedy tokens are the most likely by the returned scores; the tokens of a refusal are the only possible ones."""
    wanted = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 40}
    ours, n_prompt = generated(specialist, one_of_each, strategy(oracle, judge_after=6, num_candidates=1), **wanted)
    refused, _ = generated(specialist, one_of_each, strategy(failing), **wanted)
    for output, shown in ((ours, ours.chosen >= 0), (refused, refused.chosen < 0)):
        assert shown.any()
        for row in shown.nonzero()[:, 0].tolist():
            written = output.sequences[row, n_prompt:].tolist()
            n_tokens = written.index(specialist[1].eos_token_id) + 1
            assert [int(step[row].argmax()) for step in output.scores[:n_tokens]] == written[:n_tokens]
