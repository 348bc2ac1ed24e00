"""While a remote judge reads an answer, the target writes on speculatively; tokens, traces and streams are the same."""

import threading
import time

import pytest
import torch
from helpers.strategies import (
    RecordingStreamer,
    answer_ids,
    chats_of,
    failing,
    generated,
    passing,
    texts,
)
from helpers.variety import mostly_slow

from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.judges.base import CachedJudge
from hf_alignbeam.judges.calibration import CalibratedJudge
from hf_alignbeam.judges.failsafe import JudgeError
from hf_alignbeam.judges.remote.chat_api import ChatJudge
from hf_alignbeam.judges.remote.classify_api import ClassifyJudge
from hf_alignbeam.judges.remote.moderation_api import ModerationJudge

OFTEN = {"judge_after": 4, "judge_every": 6}


class RemoteJudge:
    """Another judge that answers when the target has made some more forwards, or makes none for a while.

    Attributes:
        n_forwards: How many forwards the target has made.
        seen: By call, how many it had made when the judge was called, and when it answered.
    """

    is_remote = True

    def __init__(self, judge, model, n_awaited=3, patience=0.1):
        self._judge, self._n_awaited, self._patience = judge, n_awaited, patience
        self._changed = threading.Condition()
        self.n_forwards, self.seen = 0, []
        self.hook = model.register_forward_pre_hook(self._count)

    def _count(self, *args):
        with self._changed:
            self.n_forwards += 1
            self._changed.notify_all()

    def __call__(self, conversations, responses):
        with self._changed:
            first = self.n_forwards
            while self.n_forwards < first + self._n_awaited and self._changed.wait(self._patience):
                pass
            self.seen.append((first, self.n_forwards))
        return self._judge(conversations, responses)


@pytest.fixture
def remote(specialist):
    """Makes remote judges, which count the specialist's forwards until the test ends."""
    made = []

    def make(judge, **options):
        made.append(RemoteJudge(judge, specialist[0], **options))
        return made[-1]

    yield make
    for judge in made:
        judge.hook.remove()


WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.3},
    "scores": {"output_scores": True, "output_logits": True},
    "static": {"cache_implementation": "static"},
    "uncached": {"use_cache": False},
}


@pytest.mark.parametrize("way", mostly_slow(WAYS, {"greedy", "sampling", "static"}))
def test_answers_and_their_traces_are_those_of_a_judge_that_is_waited_for(way, specialist, strategy, oracle, one_of_each, remote):
    judge = remote(oracle)
    found = []
    for each in (oracle, judge):
        answers = []
        guard = strategy(each, **OFTEN).for_call(explain=answers.append)
        output, _ = generated(specialist, one_of_each, guard, return_dict_in_generate=True, max_new_tokens=30, **WAYS[way])
        found.append((output, answers))
    (waited, known), (ahead, traced) = found
    assert torch.equal(ahead.sequences, waited.sequences)
    assert ahead.chosen.tolist() == waited.chosen.tolist()
    assert (waited.chosen > 0).any()
    assert any(last > first for first, last in judge.seen)
    for a, b in zip(traced, known, strict=True):
        assert a.ids == b.ids
        assert a.judged_prefixes == b.judged_prefixes
        assert [record.flagged for record in a.rollbacks] == [record.flagged for record in b.rollbacks]
        assert [[each.ids for each in record.candidates] for record in a.rollbacks] == [
            [each.ids for each in record.candidates] for record in b.rollbacks
        ]
        assert a.divergences == pytest.approx(b.divergences, abs=1e-4, nan_ok=True)
    for name in ("scores", "logits"):
        for answer in known if way == "scores" else ():
            for step in range(len(answer.ids)):
                a, b = (getattr(output, name)[step][answer.number] for output in (ahead, waited))
                torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("judge", "is_plain"), mostly_slow([(passing, True), (failing, False)], [(passing, True)]))
def test_an_answer_is_written_no_further_than_the_next_check(judge, is_plain, specialist, strategy, remote):
    asked = remote(judge, n_awaited=50, patience=0.4)
    guard = strategy(asked, judge_after=4, judge_every=5)
    answers = texts(specialist, chats_of("general", 1), guard, max_new_tokens=12)
    assert asked.seen[0][1] == 4 + 5
    assert answers == (texts(specialist, chats_of("general", 1), max_new_tokens=12) if is_plain else [REFUSAL])


def test_text_is_streamed_no_sooner(specialist, strategy, remote):
    streamer, seen = RecordingStreamer(), []

    def judge(conversations, responses):
        seen.append(len(streamer.ids))
        return passing(conversations, responses)

    asked = remote(judge)
    guard = strategy(asked, **OFTEN, streamer=streamer)
    answers = answer_ids(specialist, chats_of("general", 1), guard)
    assert asked.seen[0][1] > 4
    assert seen[:2] == [0, 4]
    assert [streamer.ids] == answers


def test_a_judge_beside_the_model_is_waited_for(specialist, strategy, remote):
    """It may share the model, and draw from its generators."""
    judge = remote(passing)
    judge.is_remote = False
    texts(specialist, chats_of("general", 1), strategy(judge, **OFTEN))
    assert all(last == first for first, last in judge.seen)


def test_an_error_of_a_remote_judge_ends_the_call(specialist, strategy, remote):
    def judge(conversations, responses):
        raise ConnectionError("secret")

    guard = strategy(remote(judge), on_judge_error="raise", **OFTEN)
    with pytest.raises(JudgeError, match="ConnectionError") as raised:
        texts(specialist, chats_of("general", 1), guard)
    assert "secret" not in str(raised.value)
    assert texts(specialist, chats_of("general", 1), strategy(remote(judge), **OFTEN)) == [REFUSAL]


def test_a_remote_judge_that_hangs_is_left_behind(specialist, strategy):
    released = threading.Event()

    def judge(conversations, responses):
        released.wait()
        return passing(conversations, responses)

    judge.is_remote = True
    start = time.monotonic()
    assert texts(specialist, chats_of("general", 2), strategy(judge, judge_timeout=0.3, **OFTEN)) == [REFUSAL] * 2
    assert time.monotonic() - start < 10
    released.set()


def test_judges_behind_an_endpoint_are_remote_also_inside_another():
    chat = ChatJudge("meta-llama/Llama-Guard-3-1B", "http://127.0.0.1:9", key_variable=None)
    classify = ClassifyJudge("x", {"LABEL_1": 1.0}, "http://127.0.0.1:9", key_variable=None)
    moderation = ModerationJudge(base_url="http://127.0.0.1:9", key_variable=None)
    for judge in (chat, classify, moderation):
        assert judge.is_remote
        assert CachedJudge(judge).is_remote
        assert CalibratedJudge(judge, 0.3).is_remote
    assert not CachedJudge(passing).is_remote
