"""Prints lines and Markdown tables for every command, and reports user errors and interrupts.

Knows the terminal: what it can encode, and what it would obey instead of showing it. Knows no model and no file.
"""

import errno
import inspect
import io
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import typer
from huggingface_hub.errors import HTTPError
from rich.console import Console

_MAKE_ROOM = "Free some space there and run the command again, or name another place. What was written before is whole."
_BE_ALLOWED = "Name a place that you may read and write."
#: What to do about errors of the system that are not about a wrong path.
WAYS_OUT = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _MAKE_ROOM),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _BE_ALLOWED),
}
#: The exit status of a command that Ctrl-C ended, as shells give it.
INTERRUPTED = 130
#: Characters that a terminal obeys (cursor, colors, title, clipboard) or that reorder what it shows, except tabs and line feeds.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """A text that a terminal shows and does not obey: control characters are escaped as in Python."""
    return OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def check_encodable(option: str, text: object) -> None:
    """Raise ValueError where an option has text that UTF-8 lacks: bytes that the terminal's encoding lacks are read as such."""
    try:
        (text if isinstance(text, str) else "").encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{option} must be text in the terminal's encoding, got {text!a}. Set LC_ALL=C.UTF-8, or name a file instead."
        ) from error


def tell(console: Console, *lines: str) -> None:
    """Print lines without wrapping, markup, colors or control characters."""
    for line in lines:
        console.print(printable(line), soft_wrap=True, markup=False, emoji=False, highlight=False)


def command(app: typer.Typer) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make functions commands: each is listed with its whole summary, and says after Ctrl-C what remains of its work."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(**options: Any) -> None:
            _show_what_cannot_be_encoded()
            with report_interrupts("Nothing was kept but what is printed above."):
                function(**options)

        app.command(short_help=inspect.getdoc(function))(run)
        return run

    return register


def _show_what_cannot_be_encoded() -> None:
    """Let the output escape characters that the terminal's encoding lacks: no answer is lost to a locale."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def table_row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def table_head(columns: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [table_row(columns), "|---" * len(columns) + "|"]


def check_can_plot(option: str) -> None:
    """Raise ValueError if an option needs matplotlib, which is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(f'{option} needs matplotlib. Install it: pip install "hf-alignbeam[plot]"') from error


@contextmanager
def report_user_errors() -> Iterator[None]:
    """Print an error in the user's input, of the Hub or of a judge in one line, and exit with status 2."""
    try:
        yield
    except BrokenPipeError:  # whoever read the output has left, as `head` does
        raise
    except (OSError, ValueError, HTTPError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not getattr(error, "is_for_users", False):
            raise
        _report(error)
        raise typer.Exit(2) from error


@contextmanager
def report_interrupts(what_remains: str) -> Iterator[None]:
    """Say after Ctrl-C in one sentence what remains of the work, and exit with status 130. The innermost one speaks."""
    try:
        yield
    except KeyboardInterrupt:
        if hasattr(signal, "setitimer"):  # not on Windows
            signal.setitimer(signal.ITIMER_REAL, 0.0)  # it was heeded, and need not be repeated
        typer.echo(printable(f"Stopped. {what_remains}"), err=True)
        raise typer.Exit(INTERRUPTED) from None


def report_left_out(errors: Sequence[ValueError], n_prompts: int) -> None:
    """Print why prompts were left out, and exit with status 1 if any was: the others are done."""
    for error in errors:
        _report(error)
    if errors:
        typer.echo(f"{len(errors)} of {n_prompts} prompts were left out, for the reasons above.", err=True)
        raise typer.Exit(1)


def _report(error: Exception) -> None:
    typer.secho("Error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(printable(in_words(error)), err=True)


def in_words(error: Exception) -> str:
    """An error's message; of a file, without the number of the system's error."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    way_out = WAYS_OUT.get(error.errno or 0, "Check the path, which is taken from the folder that the command runs in.")
    if error.filename is None:  # of no file but the output, if the disk is full; otherwise of a connection
        return f"The output: {error.strerror}. {way_out}" if way_out == _MAKE_ROOM else str(error)
    return f"{error.filename}: {error.strerror}. {way_out}"
