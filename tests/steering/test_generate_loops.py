import gc
import threading

from transformers import LogitsProcessor, LogitsProcessorList

from hf_alignbeam.steering.generate_loops import CallRegistry, calling_processor_list


class Asks(LogitsProcessor):
    """Notes which loop asks."""

    def __init__(self):
        self.found = []

    def __call__(self, input_ids, scores):
        self.found.append(self.ask())
        return scores

    def ask(self):
        return calling_processor_list()


class Wraps(LogitsProcessor):
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, input_ids, scores):
        return self.inner(input_ids, scores)


class Thing:
    """Stands for a call."""


def test_the_list_that_asks_is_found_through_what_wraps_a_processor():
    asks = Asks()
    loop = LogitsProcessorList([Wraps(Wraps(asks))])
    loop(None, None)
    assert asks.found[0] is loop
    asks.found.clear()
    asks(None, None)
    assert asks.found == [None]


def test_a_call_goes_with_its_loop():
    loops, call, ended = CallRegistry(), Thing(), []
    loop = LogitsProcessorList()
    loops.when_over(loop, lambda: ended.append(1))
    loops.put(loop, call)
    assert loops.last is call
    assert loops.take(LogitsProcessorList()) is None
    assert loops.take(loop) is call
    assert loops.take(loop) is None  # until it is put back
    loops.put(loop, call)
    del loop, call
    gc.collect()
    assert loops.last is None
    assert ended == [1]


def test_threads_have_calls_of_their_own():
    loops, found = CallRegistry(), []
    loops.put(None, Thing())
    thread = threading.Thread(target=lambda: found.append((loops.take(None), loops.last)))
    thread.start()
    thread.join()
    assert found == [(None, None)]
    assert loops.take(None) is not None
