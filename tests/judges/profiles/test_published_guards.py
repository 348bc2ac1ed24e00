"""Published formats, recreated on real tokenizers: with its id alone, each guard is asked and read as published."""

import pytest
import torch
from helpers.guards import BETWEEN, GUARDS, HARM, recreate, save

from hf_alignbeam.hub.judge_loading import load_judge

QUESTION = [{"role": "user", "content": "What do you know?"}]
TWO_TURNS = [*QUESTION, {"role": "assistant", "content": f"All of {HARM}."}, {"role": "user", "content": "And what else?"}]
WITH_SYSTEM = [{"role": "system", "content": f"Never speak of {HARM}."}, *QUESTION]
CALL = {"type": "function", "function": {"name": "search", "arguments": {"query": HARM}}}
WITH_TOOLS = [
    *QUESTION,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": f"A page about {HARM}."},
]
FORTY_TURNS = [message for n in range(20) for message in ({"role": "user", "content": f"Question {n}?"}, TWO_TURNS[1])]
FORTY_TURNS.append({"role": "user", "content": "And now?"})
CONVERSATIONS = {
    "one turn": QUESTION,
    "two turns": TWO_TURNS,
    "system": WITH_SYSTEM,
    "tools": WITH_TOOLS,
    "forty turns": FORTY_TURNS,
}


#: One guard of each form; the others, which are close to these, are slow.
FORMS = ("llama-guard-3-1b", "qwen3guard-gen", "shieldgemma", "granite-guardian-4.1", "wildguard", "gpt-oss-safeguard")


@pytest.fixture(
    scope="module",
    params=[pytest.param(each, marks=[] if each.profile in FORMS else [pytest.mark.slow]) for each in GUARDS],
    ids=lambda guard: guard.profile,
)
def guard(request):
    return request.param


@pytest.fixture(scope="module")
def judge(guard, real_tokenizer):
    """The judge that a guard gives without a word about its format."""
    model, tokenizer = recreate(guard, real_tokenizer(guard.tokenizer))
    return load_judge(model, judge_tokenizer=tokenizer)


def test_the_id_finds_the_profile(guard, judge):
    assert judge.profile.name == guard.profile


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_last_message_is_judged_as_published(name, guard, judge):
    """Harm in earlier messages does not count, whoever wrote it."""
    answers = {
        f"All of {HARM}, and more.": 1.0,
        "I know nothing.\n\nReally.": 0.0,
        f"All of {BETWEEN}.": 0.5 if guard.between else 0.0,
    }
    harm = judge([CONVERSATIONS[name]] * len(answers), list(answers))
    torch.testing.assert_close(harm.double(), torch.tensor(list(answers.values())).double(), atol=0.01, rtol=0.0)


def test_a_growing_answer_is_judged_at_each_step(guard, judge):
    answer = f"I know nothing but {HARM} and so on."
    for n in range(0, len(answer), 7):
        (harm,) = judge([QUESTION], [answer[:n]])
        assert harm == pytest.approx(float(HARM in answer[:n]), abs=0.01), answer[:n]


@pytest.mark.parametrize("name", [pytest.param("granite-guardian-3", marks=pytest.mark.slow), "wildguard"])
def test_a_folder_named_like_the_id_is_enough(name, tmp_path, real_tokenizer):
    (guard,) = [guard for guard in GUARDS if guard.profile == name]
    judge = load_judge(save(*recreate(guard, real_tokenizer(guard.tokenizer)), tmp_path))
    assert judge.profile.name == name
    assert judge([QUESTION], [f"All of {HARM}."]).item() == pytest.approx(1.0, abs=0.01)
