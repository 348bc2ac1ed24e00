"""Ctrl-C ends a command soon, whatever swallows it and whatever the interpreter waits for."""

import subprocess
import sys
import time

import pytest

CODE = """
import os, signal, sys, threading, time
import hf_alignbeam.cli.app as commands
from hf_alignbeam import __main__ as entry
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it

def swallowed(prog_name):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
    except BaseException:
        pass
    time.sleep(20)

def hanging(prog_name):
    threading.Thread(target=time.sleep, args=[20]).start()  # the interpreter would wait for it
    print("an answer", end="")
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)

def failing(prog_name):
    sys.exit(2)

commands.app = globals()[sys.argv[1]]
entry.main()
"""


@pytest.mark.parametrize(("kind", "status"), [("swallowed", 130), ("hanging", 130), ("failing", 2)])
def test_a_command_ends_soon_after_an_interrupt_with_the_status_of_shells(kind, status):
    start = time.monotonic()
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE, kind], capture_output=True, text=True, timeout=60)
    assert ended.returncode == status
    assert ended.stderr == ("Stopped.\n" if status == 130 else "")
    assert ended.stdout == ("an answer" if kind == "hanging" else "")
    assert time.monotonic() - start < 15
