"""`python -m hf_alignbeam`, `torchrun -m hf_alignbeam` and `alignbeam`: the command, which Ctrl-C ends at any moment.

Knows signals and exit statuses. Imports the commands late, so that Ctrl-C ends their imports too.
"""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

#: The exit status of a command that Ctrl-C ended, as shells give it.
INTERRUPTED = 130
#: Seconds after which an interrupt is repeated: what is imported, or a finalizer that happens to run, may swallow one.
REPEATED_AFTER = 3.0


def main() -> None:
    """Run the command of the arguments."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell lets what it runs in the background ignore it
        for name in ("SIGINT", "SIGALRM"):  # the second one is not on Windows
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), _interrupt)
    try:
        from hf_alignbeam.cli.app import app

        app(prog_name="alignbeam")
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
    except SystemExit as ended:
        if ended.code != INTERRUPTED:
            raise
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(INTERRUPTED)  # at once: an interpreter that was interrupted in an import may hang as it ends


def _interrupt(number: int, frame: FrameType | None) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, REPEATED_AFTER)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
