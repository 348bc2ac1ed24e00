"""Which loop of `generate` is calling a processor, and the call that belongs to each loop.

Token ids alone cannot distinguish the next step of an answer from a new call whose prompt contains that answer. The list of
processors can: every `generate` builds a list of its own and drops it at the end (transformers 5.23).

Knows stack frames, threads and lists of processors. Knows nothing of what a call contains.
"""

import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import LogitsProcessorList

from hf_alignbeam.steering.generate_call import GenerateCall

#: How many callers are searched for the list, because other processors may wrap ours.
N_CALLERS = 6


def calling_processor_list() -> LogitsProcessorList | None:
    """The list that is calling the current processor; None where user code calls the processor directly."""
    frame = sys._getframe(2)
    for _ in range(N_CALLERS):
        owner = frame.f_locals.get("self")
        if isinstance(owner, LogitsProcessorList):
            return owner
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


class CallRegistry(threading.local):
    """The current thread's calls, one for each loop; direct calls of a processor (`loop` is None) form a loop of their own."""

    def __init__(self) -> None:
        self._calls: dict[int, GenerateCall] = {}
        self._last: weakref.ref[GenerateCall] | None = None

    @property
    def last(self) -> GenerateCall | None:
        """The call that was put here last, as long as it exists."""
        return self._last() if self._last is not None else None

    def take(self, loop: LogitsProcessorList | None) -> GenerateCall | None:
        """Remove and return the call of a loop. It stays out until `put`, so that no step continues a call that failed."""
        return self._calls.pop(id(loop), None)

    def put(self, loop: LogitsProcessorList | None, call: GenerateCall) -> None:
        """Store the call of a loop."""
        self._calls[id(loop)] = call
        self._last = weakref.ref(call)

    def on_loop_end(self, loop: LogitsProcessorList, *callbacks: Callable[[], Any]) -> None:
        """When a loop ends, remove its call and run the callbacks."""
        remove: Callable[[], Any] = partial(self._calls.pop, id(loop), None)
        for callback in (remove, *callbacks):
            weakref.finalize(loop, callback).atexit = False
