"""Calls with a time limit, or beside what their caller does: they run in one thread, which lives as long as it answers in time.

Knows threads. Knows nothing of what a call does, and not what follows from one that takes too long.
"""

import atexit
import contextvars
import queue
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Generic, TypeVar, cast

import torch

Result = TypeVar("Result")
#: What a call returned, and what it raised.
Outcome = tuple[object, BaseException | None]
#: How many seconds an interpreter that exits waits for the threads of this module: idle ones end at once.
EXIT_SECONDS = 1.0
_THREADS: "weakref.WeakKeyDictionary[threading.Thread, queue.SimpleQueue[Any]]" = weakref.WeakKeyDictionary()


class TimedOut(Exception):  # noqa: N818
    """A call has taken longer than its limit."""


class Pending(Generic[Result]):
    """A call that runs in another thread.

    Args:
        outcome: Gets its outcome.
        end: Is called when the outcome was taken.
    """

    def __init__(self, outcome: "queue.SimpleQueue[Outcome]", end: Callable[[], None]):
        self._outcome = outcome
        self._end = end

    @property
    def is_done(self) -> bool:
        """Whether the outcome is there."""
        return not self._outcome.empty()

    def result(self) -> Result:
        """Wait for the call, and return or raise what it did; once only."""
        result, error = self._outcome.get()
        self._end()
        if error is not None:
            raise error
        return cast(Result, result)


def check_timeout(timeout: float | None, name: str) -> None:
    """Raise ValueError, by the name of the limit, for one that is not above 0."""
    if timeout is not None and not (isinstance(timeout, int | float) and 0.0 < timeout <= threading.TIMEOUT_MAX):
        raise ValueError(f"`{name}` must be above 0 seconds and finite, got {timeout!r}. Use None for no limit.")


class TimedCalls:
    """Runs calls, each for at most `timeout` seconds.

    A call runs in a thread of its own, so that the caller can stop waiting. All calls of one caller run in the same thread:
    what a callable keeps for each thread, it keeps. A call that takes too long runs on in its thread, and its result is
    dropped; the next call gets a new thread. The threads end with the interpreter, their caller or this object.

    Args:
        timeout: Seconds; None for no limit, without a thread.
        name: What errors call the limit.

    Raises:
        ValueError: `timeout` is not above 0.
    """

    def __init__(self, timeout: float | None, name: str = "timeout"):
        check_timeout(timeout, name)
        self.timeout = timeout
        self._callers = threading.local()

    def __reduce__(self) -> Any:
        raise TypeError(
            "A strategy or a search must be shared, got a deep copy or a pickle of it: it holds threads. One object serves any "
            "number of calls and threads; in another process, build it anew."
        )

    def __call__(self, call: Callable[[], Result]) -> Result:
        """Run a call, and return or raise what it does.

        Raises:
            TimedOut: The call takes longer than the limit.
        """
        if self.timeout is None:
            return call()
        worker = self._take_worker()
        result, error = worker.run(_in_the_callers_context(call), self.timeout)
        self._callers.worker = worker
        if error is not None:
            raise error
        return cast(Result, result)

    def beside(self, call: Callable[[], Result]) -> Pending[Result]:
        """Start a call, without a limit, and return at once."""
        worker = self._take_worker()
        return Pending(worker.start(_in_the_callers_context(call)), lambda: setattr(self._callers, "worker", worker))

    def _take_worker(self) -> "_Worker":
        """The caller's thread, or a new one. Unless it answers, and is given back, it is not used again."""
        worker: _Worker | None = getattr(self._callers, "worker", None)
        self._callers.worker = None
        return worker if worker is not None and worker.is_alive else _Worker()


class _Worker:
    """A thread that runs one call after another until this object is dropped."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], object], queue.SimpleQueue[Outcome]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_serve, args=(self._calls,), daemon=True)
        self._thread.start()
        _THREADS[self._thread] = self._calls
        weakref.finalize(self, self._calls.put, None)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs; after a fork it does not."""
        return self._thread.is_alive()

    def start(self, call: Callable[[], object]) -> "queue.SimpleQueue[Outcome]":
        outcome: queue.SimpleQueue[Outcome] = queue.SimpleQueue()  # of this call alone: a late result is dropped
        self._calls.put((call, outcome))
        return outcome

    def run(self, call: Callable[[], object], timeout: float) -> Outcome:
        try:
            return self.start(call).get(timeout=timeout)
        except queue.Empty:
            pass
        raise TimedOut(f"no answer within {timeout:g} seconds")


def _serve(calls: "queue.SimpleQueue[tuple[Callable[[], object], queue.SimpleQueue[Outcome]] | None]") -> None:
    while (each := calls.get()) is not None:
        call, outcome = each
        try:
            outcome.put((call(), None))
        except BaseException as error:
            outcome.put((None, error))
        del each, call, outcome  # keep nothing alive while waiting


@atexit.register
def _end_threads() -> None:
    """End the threads before the interpreter does: one that frees a tensor later than that would abort the process."""
    end = time.monotonic() + EXIT_SECONDS
    threads = list(_THREADS.items())
    for _, calls in threads:
        calls.put(None)
    for thread, _ in threads:
        thread.join(max(0.0, end - time.monotonic()))


def _in_the_callers_context(call: Callable[[], Result]) -> Callable[[], Result]:
    """A call that runs in another thread as it would in this one: gradients, autocast, CUDA device and context variables."""
    context = contextvars.copy_context()
    has_grad, is_inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    autocast = [(kind, torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def run() -> Result:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(is_inference))
            stack.enter_context(torch.set_grad_enabled(has_grad))
            for kind, dtype in autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            if device is not None:
                stack.enter_context(torch.cuda.device(device))
            return context.run(call)

    return run
