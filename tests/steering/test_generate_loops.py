import gc
import threading

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from hf_alignbeam.steering.generate_loops import CallRegistry, calling_loop


class RecordingProcessor(LogitsProcessor):
    """A processor that records which loop calls it."""

    def __init__(self):
        self.loops = []

    def __call__(self, input_ids, scores):
        self.loops.append(self.find_loop(input_ids))
        return scores

    def find_loop(self, input_ids):
        return calling_loop(input_ids)


class Wrapper(LogitsProcessor):
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, input_ids, scores):
        return self.inner(input_ids, scores)


class PlaceholderCall:
    """Stands for a call; weak references to it are possible."""


def test_the_calling_list_is_found_through_wrapped_processors():
    processor = RecordingProcessor()
    loop = LogitsProcessorList([Wrapper(Wrapper(processor))])
    loop(None, None)
    assert processor.loops == [(loop, [])]
    processor.loops.clear()
    processor(None, None)
    assert processor.loops == [(None, [])]


class Copier(Wrapper):
    """A wrapper that gives its processor other rows than the loop's."""

    def __call__(self, input_ids, scores):
        return self.inner(input_ids.clone(), scores)


def sampling(processors, input_ids, unfinished_sequences, has_eos_stopping_criteria):
    """The variables that the loops of `generate` have."""
    processors(input_ids, None)


@pytest.mark.parametrize(
    ("wrapper", "has_eos", "expected"),
    [(Wrapper, True, [0, 2]), (Wrapper, False, []), (Copier, True, [])],  # without an EOS, nothing is padded
)
def test_padded_rows_are_those_of_a_loop_that_pads_and_has_the_same_rows(wrapper, has_eos, expected):
    processor = RecordingProcessor()
    loop = LogitsProcessorList([wrapper(processor)])
    sampling(loop, torch.tensor([[1], [2], [3]]), torch.tensor([0, 1, 0]), has_eos)
    assert processor.loops == [(loop, expected)]


def test_a_call_ends_with_its_loop():
    calls, call, ended = CallRegistry(), PlaceholderCall(), []
    loop = LogitsProcessorList()
    calls.on_loop_end(loop, lambda: ended.append(1))
    calls.put(loop, call)
    assert calls.last is call
    assert calls.take(LogitsProcessorList()) is None
    assert calls.take(loop) is call
    assert calls.take(loop) is None  # it stays out until `put`
    calls.put(loop, call)
    del loop, call
    gc.collect()
    assert calls.last is None
    assert ended == [1]


def test_threads_have_calls_of_their_own():
    calls, seen = CallRegistry(), []
    calls.put(None, PlaceholderCall())
    thread = threading.Thread(target=lambda: seen.append((calls.take(None), calls.last)))
    thread.start()
    thread.join()
    assert seen == [(None, None)]
    assert calls.take(None) is not None
