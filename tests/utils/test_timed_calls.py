"""Calls with a time limit run in one thread for as long as it answers, as they would in the caller's."""

import gc
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.variety import mostly_slow

from hf_alignbeam.utils.timed_calls import TimedCalls, TimedOut


def test_a_call_returns_or_raises_what_it_does():
    for timeout in (None, 20):
        timed = TimedCalls(timeout)
        assert timed(lambda: 5) == 5
        for kind in (ZeroDivisionError, KeyboardInterrupt, SystemExit):
            with pytest.raises(kind, match="^x$"):
                timed(lambda kind=kind: (_ for _ in ()).throw(kind("x")))
        assert timed(lambda: 6) == 6


def test_a_callers_calls_share_a_thread_until_one_hangs():
    timed, ended = TimedCalls(0.5), threading.Event()
    first, second = (timed(threading.get_ident) for _ in range(2))
    assert first == second != threading.get_ident()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(timed, threading.get_ident).result() != first
    with pytest.raises(TimedOut, match=r"0\.5 seconds"):
        timed(lambda: ended.wait(20))
    third = timed(threading.get_ident)
    assert third not in (first, threading.get_ident())
    ended.set()
    assert timed(threading.get_ident) == third  # the late result reached nobody


@pytest.fixture
def interrupts():
    """SIGINT raises KeyboardInterrupt, whatever another test has left."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_wait_does_not_answer_the_next_call(interrupts):
    """Ctrl-C while a call runs: its result comes later and reaches nobody."""
    timed, ended = TimedCalls(20), threading.Event()
    thread = timed(threading.get_ident)
    interrupt = threading.Timer(0.2, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        timed(lambda: ended.wait(20) and "late")
    assert timed(lambda: "next") == "next"
    assert timed(threading.get_ident) != thread
    ended.set()


def test_the_callers_modes_hold_in_the_thread():
    timed = TimedCalls(20)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert timed(torch.is_grad_enabled) == grad
    with torch.inference_mode():
        assert timed(torch.is_inference_mode_enabled)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert timed(lambda: torch.get_autocast_dtype("cpu")) == torch.bfloat16
        assert timed(lambda: torch.is_autocast_enabled("cpu"))
    assert not timed(lambda: torch.is_autocast_enabled("cpu"))


def test_threads_end_with_their_owner():
    before = set(threading.enumerate())
    timed = TimedCalls(20)
    timed(lambda: None)
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon
    del timed
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_a_caller_that_ends_ends_its_thread():
    timed, found = TimedCalls(20), []
    caller = threading.Thread(target=lambda: found.append(timed(threading.current_thread)))
    caller.start()
    caller.join()
    deadline = time.monotonic() + 10
    while found[0].is_alive() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert not found[0].is_alive()


def test_a_call_beside_returns_or_raises_what_it_does_in_the_same_thread():
    timed, released = TimedCalls(None), threading.Event()
    pending = timed.beside(lambda: (released.wait(20), threading.get_ident()))
    assert not pending.is_done
    released.set()
    waited, thread = pending.result()
    assert waited
    assert timed.beside(threading.get_ident).result() == thread != threading.get_ident()
    with pytest.raises(ZeroDivisionError, match="^x$"):
        timed.beside(lambda: (_ for _ in ()).throw(ZeroDivisionError("x"))).result()


AT_EXIT = """
import sys, threading, time, torch
from hf_alignbeam.utils.timed_calls import TimedCalls
kept = threading.local()
class Slow:
    def __del__(self):
        time.sleep(0.3)
        print("freed", flush=True)
def call():
    kept.value = Slow()
timed = TimedCalls(20)
timed(call)
timed.beside(lambda: time.sleep(float(sys.argv[1])))
if sys.argv[2] == "dropped":
    del timed
"""


@pytest.mark.parametrize(("busy", "kept"), mostly_slow([("0", "kept"), ("0", "dropped"), ("30", "kept")], [("0", "dropped")]))
def test_threads_end_before_the_interpreter_does(busy, kept):
    """What a thread keeps is freed while it can be; a call that hangs delays the exit by a second at most."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", AT_EXIT, busy, kept], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "freed\n" or busy != "0"
    assert time.monotonic() - start < 25
