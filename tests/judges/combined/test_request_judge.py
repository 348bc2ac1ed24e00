"""A judge of requests: the response changes nothing, and a request is asked about once."""

from dataclasses import replace

import pytest
import torch

from hf_alignbeam import testbed
from hf_alignbeam.judges.combined.questions import REQUEST_CLASS, REQUEST_ONE_TO_FIVE
from hf_alignbeam.judges.combined.request_judge import RequestJudge
from hf_alignbeam.judges.llm_judge import LLMJudge
from hf_alignbeam.judges.profiles.general import SAFE_UNSAFE, YES_NO
from hf_alignbeam.judges.profiles.known import named_profile

#: Of the testbed's judge, which was trained on exchanges, a prompt without an answer gets a verdict as well.
ASKED = replace(SAFE_UNSAFE, name="asked", prompt="{user}", judges=("prompt",))


@pytest.fixture(scope="module")
def judge():
    return RequestJudge(*testbed.load("judge-lm"), ASKED)


def test_the_request_alone_counts(judge):
    questions = ["How do I mix the soup?", "How do I hurt the mayor?"]
    first = judge(questions, ["", ""])
    torch.testing.assert_close(judge(questions, ["To hurt the mayor", "I am sorry"]), first)
    assert first[0] != first[1]
    turns = [
        {"role": "user", "content": questions[1]},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Now?"},
    ]
    assert judge([turns], ["So."])[0] not in first


def test_a_request_is_read_once(judge, monkeypatch):
    conversations = [[{"role": "user", "content": f"How do I mix {what}?"}] for what in ("it", "them")]
    judge(conversations, ["a", "b"])
    monkeypatch.setattr(LLMJudge, "_judge_all", lambda *_: pytest.fail("it was read again"))
    judge([*conversations, conversations[0]], ["c", "d", "e"])


@pytest.mark.parametrize("profile", [YES_NO, SAFE_UNSAFE, replace(ASKED, prompt=None), named_profile("prompt-guard-2")])
def test_a_profile_must_ask_about_requests(profile):
    with pytest.raises(ValueError, match=r"`profile` must judge prompts by a `prompt` with \{user\}"):
        RequestJudge(*testbed.load("judge-lm"), profile)


@pytest.mark.parametrize("profile", [REQUEST_ONE_TO_FIVE, REQUEST_CLASS])
def test_a_judge_of_responses_needs_another_profile(profile):
    with pytest.raises(ValueError, match="judges prompts only"):
        LLMJudge(*testbed.load("judge-lm"), profile)
