"""Which loop of `generate` is asking, and the call that each loop of a thread is in.

Ids alone cannot tell a step of an answer from a new call whose prompt holds that answer: the list of processors can. Each
`generate` makes a list of its own, and drops it when it ends (transformers 5.23).
"""

import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import LogitsProcessorList

from hf_alignbeam.steering.generate_call import GenerateCall

#: How many callers up the list is looked for: a processor may be wrapped in others.
N_CALLERS = 6


def calling_processor_list() -> LogitsProcessorList | None:
    """The list of processors whose turn it is; None where somebody calls a processor by hand."""
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
    """Each thread's calls, by the loop that they belong to; what is called by hand is a loop of its own."""

    def __init__(self) -> None:
        self._calls: dict[int, GenerateCall] = {}
        self._last: weakref.ref[GenerateCall] | None = None

    @property
    def last(self) -> GenerateCall | None:
        """The call that was put here last, while it is under way."""
        return self._last() if self._last is not None else None

    def take(self, loop: LogitsProcessorList | None) -> GenerateCall | None:
        """The call of a loop, which is gone from here until it is put back: an error must leave nothing to go on from."""
        return self._calls.pop(_key(loop), None)

    def put(self, loop: LogitsProcessorList | None, call: GenerateCall) -> None:
        """Keep a loop's call."""
        self._calls[_key(loop)] = call
        self._last = weakref.ref(call)

    def when_over(self, loop: LogitsProcessorList, *then: Callable[[], Any]) -> None:
        """Forget a loop's call, and do something more, when the loop ends."""
        forget: Callable[[], Any] = partial(self._calls.pop, _key(loop), None)
        for what in (forget, *then):
            weakref.finalize(loop, what).atexit = False


def _key(loop: LogitsProcessorList | None) -> int:
    return 0 if loop is None else id(loop)
