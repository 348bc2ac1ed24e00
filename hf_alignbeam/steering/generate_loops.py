"""Which loop of `generate` is calling a processor, and the call that belongs to each loop.

Token ids alone cannot distinguish the next step of an answer from a new call whose prompt contains that answer. The list of
processors can: every `generate` builds a list of its own and drops it at the end (transformers 5.23).

Knows stack frames, threads and lists of processors. Knows nothing of what a call contains.
"""

import sys
import threading
import weakref
from collections.abc import Callable
from itertools import islice
from traceback import walk_stack
from typing import Any

from torch import Tensor
from transformers import LogitsProcessorList

from hf_alignbeam.steering.generate_call import GenerateCall

#: How many callers are searched for the list, because other processors may wrap ours.
N_CALLERS = 6


def calling_loop(input_ids: Tensor) -> tuple[LogitsProcessorList | None, list[int]]:
    """The list that is calling the current processor, None where user code calls it; and the rows that its loop only pads.

    Ids alone do not show every end, such as one by a stop string. Sampling and greedy search know all (transformers 5.24).
    """
    for frame, _ in islice(walk_stack(sys._getframe(2)), N_CALLERS):
        owner, caller = frame.f_locals.get("self"), frame.f_back
        if isinstance(owner, LogitsProcessorList) and caller is not None:
            known = caller.f_locals
            pads = known.get("has_eos_stopping_criteria") and known.get("input_ids") is input_ids
            unfinished = known.get("unfinished_sequences") if pads else None
            return owner, [] if unfinished is None else [row for row, goes_on in enumerate(unfinished.tolist()) if not goes_on]
    return None, []


class CallRegistry(threading.local):
    """The current thread's calls, one for each loop; direct calls of a processor (`loop` is None) form a loop of their own."""

    def __init__(self) -> None:
        self._calls: dict[int, GenerateCall] = {}
        self._last: weakref.ref[GenerateCall] | None = None

    def __reduce__(self) -> Any:
        raise TypeError("A processor must be shared, got a deep copy or a pickle of it. One serves any calls and threads.")

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

    def on_loop_end(self, loop: LogitsProcessorList, callback: Callable[[], Any]) -> None:
        """When a loop ends, remove its call and run the callback."""
        weakref.finalize(loop, self._calls.pop, id(loop), None).atexit = False
        weakref.finalize(loop, callback).atexit = False
