"""Streamers get exactly the returned text, and end whatever happens."""

import pytest
import torch
from helpers.strategies import KINDS, RecordingStreamer, chats_of, generated, passing, texts
from transformers import (
    StoppingCriteria,
    TextIteratorStreamer,
    TextStreamer,
)

from hf_alignbeam.judges.failsafe import JudgeError


@pytest.mark.parametrize("kind", KINDS)
def test_the_streamed_text_is_the_returned_text(kind, specialist, strategy, oracle):
    streamer = RecordingStreamer()
    output, n_prompt = generated(specialist, chats_of(kind, 1), strategy(oracle, judge_after=4, judge_every=4, streamer=streamer))
    assert streamer.ids == output[0, n_prompt:].tolist()
    assert torch.equal(streamer.prompt, output[:, :n_prompt])
    assert streamer.n_ends == 1


def test_transformers_streamers_end(specialist, strategy):
    streamer = TextIteratorStreamer(specialist[1], skip_prompt=True, timeout=5, skip_special_tokens=True)
    (answer,) = texts(specialist, chats_of("general", 1), strategy(passing, streamer=streamer))
    assert "".join(streamer).strip() == answer
    broken = TextIteratorStreamer(specialist[1], skip_prompt=True, timeout=5)
    with pytest.raises(JudgeError):
        texts(specialist, chats_of("general", 1), strategy(broken_judge, streamer=broken, on_judge_error="raise"))
    assert "".join(broken) == ""


def broken_judge(conversations, responses):
    raise OSError("the judge is gone")


def test_the_streamer_argument_of_generate_is_refused(specialist, strategy):
    with pytest.raises(ValueError, match="`streamer` must be given to AlignBeam"):
        generated(specialist, chats_of("general", 1), strategy(passing), streamer=TextStreamer(specialist[1]))


def test_streamers_end_after_any_error(specialist, strategy):
    for options, error in (({"num_beams": 2}, ValueError), ({"stopping_criteria": [BrokenCriterion()]}, OSError)):
        streamer = TextIteratorStreamer(specialist[1], timeout=5, skip_prompt=True)
        with pytest.raises(error):
            generated(specialist, chats_of("general", 1), strategy(passing, streamer=streamer), **options)
        assert "".join(streamer) == ""


class BrokenCriterion(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        raise OSError("no more")


def test_a_streamer_needs_a_batch_of_one(specialist, strategy):
    with pytest.raises(ValueError, match="`streamer` must be left out for a batch, got one for 2 rows"):
        generated(specialist, chats_of("general", 2), strategy(passing, streamer=TextStreamer(specialist[1])))
