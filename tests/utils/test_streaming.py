"""A streamer is ended, also if generation fails."""

import pytest
import torch

from hf_alignbeam.utils.streaming import streaming


class Recorder:
    """A streamer that records what it is given."""

    def __init__(self):
        self.received = []

    def put(self, value):
        self.received.append(value.tolist())

    def end(self):
        self.received.append("end")


class Gone(Recorder):
    """A streamer that cannot be ended."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error or BrokenPipeError("gone")

    def end(self):
        raise self.error


def test_a_streamer_gets_the_prompt_first_and_its_end_last():
    streamer = Recorder()
    with streaming(streamer, torch.tensor([[5, 6]])):
        streamer.put(torch.tensor([7]))
    assert streamer.received == [[[5, 6]], [7], "end"]


def test_a_streamer_is_ended_once_if_generation_fails():
    streamer = Recorder()
    with pytest.raises(ConnectionError), streaming(streamer, torch.tensor([[5, 6]])):
        raise ConnectionError
    assert streamer.received == [[[5, 6]], "end"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConnectionError])
def test_a_streamer_whose_end_fails_replaces_no_error(error):
    with pytest.raises(error) as caught, streaming(Gone(), torch.tensor([[5, 6]])):
        raise error
    assert caught.value.__notes__ == ["`streamer.end()` failed, too: BrokenPipeError('gone')"]


def test_an_end_that_fails_alone_or_is_interrupted_is_raised():
    with pytest.raises(BrokenPipeError), streaming(Gone(), torch.tensor([[5, 6]])):
        pass
    with pytest.raises(KeyboardInterrupt), streaming(Gone(KeyboardInterrupt()), torch.tensor([[5, 6]])):
        raise ConnectionError


def test_a_batch_is_refused_and_its_streamer_is_ended():
    streamer = Recorder()
    with (
        pytest.raises(ValueError, match="`streamer` must be left out for a batch, got one for 2 rows. Stream one prompt."),
        streaming(streamer, torch.tensor([[5], [6]])),
    ):
        pytest.fail("generation must not start")
    assert streamer.received == ["end"]


def test_without_a_streamer_a_batch_of_any_size_is_allowed():
    with streaming(None, torch.tensor([[5], [6]])):
        pass
