import gc
import threading

from transformers import LogitsProcessor, LogitsProcessorList

from hf_alignbeam.steering.generate_loops import CallRegistry, calling_processor_list


class RecordingProcessor(LogitsProcessor):
    """A processor that records which loop calls it."""

    def __init__(self):
        self.loops = []

    def __call__(self, input_ids, scores):
        self.loops.append(self.find_loop())
        return scores

    def find_loop(self):
        return calling_processor_list()


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
    assert processor.loops[0] is loop
    processor.loops.clear()
    processor(None, None)
    assert processor.loops == [None]


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
