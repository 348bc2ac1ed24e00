"""A judge that writes before its verdict: the last marker counts, and what it never writes is no verdict."""

from dataclasses import replace

import pytest
from helpers.guards import GUARDS, HARM, recreate
from transformers import GPT2Config, GPT2LMHeadModel

from hf_alignbeam import GeneratingJudge
from hf_alignbeam.judges.profiles.general import YES_NO
from hf_alignbeam.judges.profiles.wildguard import WILDGUARD

QUESTIONS = ["What do you know?"] * 3
ANSWERS = ["I know nothing.", f"All of {HARM}.", "Why do you ask?"]


@pytest.fixture(scope="module")
def wildguard(real_tokenizer):
    (guard,) = [guard for guard in GUARDS if guard.profile == "wildguard"]
    return recreate(guard, real_tokenizer(guard.tokenizer))


def test_the_verdict_after_the_last_marker_counts(wildguard):
    """WildGuard writes three lines, and each ends in yes or no."""
    harm = GeneratingJudge(*wildguard, "wildguard")(QUESTIONS, ANSWERS)
    assert harm.tolist() == pytest.approx([0.0, 1.0, 0.0], abs=0.01)


def test_batches_give_the_verdicts_of_single_responses(wildguard):
    judge = GeneratingJudge(*wildguard, WILDGUARD)
    together = judge(QUESTIONS, ANSWERS)
    assert together.tolist() == pytest.approx([judge(QUESTIONS[:1], [answer]).item() for answer in ANSWERS])


def test_too_short_a_bound_is_an_error_that_says_what_was_written(wildguard):
    message = r"(?s)must answer with verdicts.*within 6 tokens.*it wrote, at last, 'Harmful.*max_new_tokens"
    with pytest.raises(ValueError, match=message):
        GeneratingJudge(*wildguard, replace(WILDGUARD, max_new_tokens=6))


def test_a_missing_verdict_is_explained_once_and_without_words_of_the_exchange(wildguard, caplog):
    judge = GeneratingJudge(*wildguard, replace(WILDGUARD, verdict_after="Never:"), probe=False)
    for _ in range(2):
        assert judge(["Secret question?"], ["Secret answer."]).isnan().all()
    assert len(caplog.records) == 1
    assert "'Never:'" in caplog.text
    assert "Secret" not in caplog.text


def test_an_exchange_that_leaves_no_room_for_what_it_writes_costs_no_other_one_its_own(real_tokenizer, caplog):
    """A model with learned positions fails beyond the last one."""
    tokenizer = real_tokenizer("gpt2")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=8, n_layer=1, n_head=1)).eval()
    profile = replace(WILDGUARD, prompt="Say: {response}", verdict_after="Verdict:", max_new_tokens=20)
    judge = GeneratingJudge(model, tokenizer, profile, probe=False)
    assert judge(["Hello?"] * 2, [" a" * 50, " a"]).isnan().all()  # it writes no verdict, but it does not fail
    assert "The judge's context takes 64 tokens, but the exchange has" in caplog.text


def test_its_own_threshold_is_reported_as_one_half(wildguard):
    """A scripted model is nearly certain, so the shift must not move its verdicts across."""
    judge = GeneratingJudge(*wildguard, WILDGUARD, threshold=0.9)
    assert judge.threshold == 0.9
    assert [harm > 0.5 for harm in judge(QUESTIONS, ANSWERS).tolist()] == [False, True, False]


def test_a_threshold_of_zero_is_an_error_and_none_is_found_on_known_exchanges(wildguard):
    with pytest.raises(ValueError, match="`threshold` must be between 0 and 1, got 0"):
        GeneratingJudge(*wildguard, WILDGUARD, threshold=0)
    with pytest.raises(ValueError, match="must tell harmful from harmless exchanges"):  # a scripted model knows one word only
        GeneratingJudge(*wildguard, replace(WILDGUARD, threshold=None))


def test_a_profile_without_a_marker_is_refused(wildguard):
    with pytest.raises(ValueError, match="`profile` must have `verdict_after`, but yes-no has none. Use the faster `LLMJudge`"):
        GeneratingJudge(*wildguard, YES_NO)
