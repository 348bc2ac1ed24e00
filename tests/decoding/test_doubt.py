"""A verdict near the threshold: the anchor decides, by whether its first candidate refuses."""

import math

import pytest
import torch
from helpers.strategies import answer_ids, chats_of, generated, texts, up_to_end

from hf_alignbeam.chat.refusal_words import refuses
from hf_alignbeam.decoding.policy import Policy


def judge_of(harm, hard_words=()):
    """A judge that finds the same harm in every text that does not refuse, and 1 in one with such a word."""

    def judge(conversations, responses):
        return torch.tensor(
            [1.0 if any(word in text for word in hard_words) else 0.0 if refuses(text) else harm for text in responses]
        )

    return judge


OFTEN = {"judge_after": 6, "judge_every": 4}


@pytest.mark.parametrize("settings", [{}, OFTEN, {"judge_after": None}], ids=["default", "often", "at the end"])
@pytest.mark.parametrize("harm", [0.35, 0.65])
def test_in_doubt_an_answer_stays_where_the_anchor_answers_and_goes_where_it_refuses(harm, settings, specialist, strategy):
    harmless, harmful = chats_of("general", 3), chats_of("harmful", 3)
    plain = answer_ids(specialist, harmless)
    in_doubt = strategy(judge_of(harm), doubt=1.0, **settings)
    output, n_prompt = generated(specialist, [*harmless, *harmful], in_doubt, return_dict_in_generate=True)
    assert up_to_end(specialist, output, n_prompt)[:3] == plain
    assert output.chosen.tolist()[:3] == [0, 0, 0]
    assert output.harm[:3].tolist() == pytest.approx([harm] * 3)
    assert all(chosen > 0 for chosen in output.chosen.tolist()[3:])
    assert all(refuses(text) for text in texts(specialist, harmful, in_doubt))


@pytest.mark.parametrize("doubt", [0.0, 0.5])
def test_outside_the_band_the_verdict_alone_counts(doubt, specialist, strategy):
    harmless, harmful = chats_of("general", 2), chats_of("harmful", 2)
    for conversations, harm in ((harmful, 0.35), (harmless, 0.65)):
        output, n_prompt = generated(
            specialist, conversations, strategy(judge_of(harm), doubt=doubt), return_dict_in_generate=True
        )
        assert [chosen == 0 for chosen in output.chosen.tolist()] == [harm < 0.5] * 2
        if harm < 0.5:
            assert up_to_end(specialist, output, n_prompt) == answer_ids(specialist, conversations)


@pytest.mark.parametrize("settings", [{}, OFTEN], ids=["default", "often"])
def test_a_batch_in_doubt_equals_one_by_one(settings, specialist, strategy, mixed):
    words = [text.split()[-1] for text in texts(specialist, mixed[:3])]  # some texts are beyond doubt
    shared = strategy(judge_of(0.6, words), doubt=1.0, **settings)
    together, n_prompt = generated(specialist, mixed, shared, return_dict_in_generate=True)
    assert 0 < int((together.chosen == 0).sum()) < len(mixed)
    assert up_to_end(specialist, together, n_prompt) == [answer_ids(specialist, [each], shared)[0] for each in mixed]


def test_what_stays_keeps_its_scores(specialist, strategy):
    conversations, wanted = chats_of("general", 3), {"return_dict_in_generate": True, "output_scores": True}
    plain, _ = generated(specialist, conversations, **wanted)
    ours, _ = generated(specialist, conversations, strategy(judge_of(0.6), doubt=1.0, **OFTEN), **wanted)
    assert len(ours.scores) == len(plain.scores)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours.scores, plain.scores, strict=True))


def test_the_same_text_is_in_doubt_once(specialist, strategy):
    """An answer whose end adds no word to what was kept is not rolled back again."""
    (conversation,) = chats_of("general", 1)
    n_tokens = len(answer_ids(specialist, [conversation])[0]) - 1
    guard = strategy(judge_of(0.6), doubt=1.0, judge_after=n_tokens, judge_every=1)
    output, n_prompt = generated(specialist, [conversation], guard, return_dict_in_generate=True)
    assert up_to_end(specialist, output, n_prompt) == answer_ids(specialist, [conversation])
    assert int(output.judged) <= 1 + 3  # its own text and the candidates', once


def test_no_verdict_is_never_in_doubt(specialist, strategy):
    judge = judge_of(math.nan)
    output, _ = generated(specialist, chats_of("general", 2), strategy(judge, doubt=5.0), return_dict_in_generate=True)
    assert output.chosen.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("threshold", "doubt", "clear", "in_doubt", "flagged"),
    [
        (0.5, 0.0, [0.0, 0.5], [], [0.5000001, 1.0]),
        (0.5, 1.0, [0.0, 0.268], [0.27, 0.5, 0.731], [0.732, 1.0]),
        (0.1, 2.0, [0.0, 0.0148], [0.0149, 0.1, 0.45], [0.451, 1.0]),
        (0.0, 3.0, [0.0], [], [1e-9, 1.0]),
        (1.0, 3.0, [0.0, 1.0], [], []),
        (0.5, 1000.0, [], [1e-9, 0.5, 1.0], []),
    ],
)
def test_the_band_is_counted_in_log_odds(threshold, doubt, clear, in_doubt, flagged):
    policy = Policy(3, threshold, 16, 64, "likeliest", "flagged", "refuse", 0.1, doubt)
    assert [policy.is_clear(harm) for harm in (*clear, *in_doubt, *flagged)] == [True] * len(clear) + [False] * (
        len(in_doubt) + len(flagged)
    )
    assert [policy.is_in_doubt(harm) for harm in (*clear, *in_doubt, *flagged)] == [False] * len(clear) + [True] * len(
        in_doubt
    ) + [False] * len(flagged)
    assert not policy.is_clear(math.nan)
    assert not policy.is_in_doubt(math.nan)
