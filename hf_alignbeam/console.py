"""Prints lines and Markdown tables for every command, and reports user errors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer
from huggingface_hub.errors import HTTPError
from rich.console import Console


def tell(console: Console, *lines: str) -> None:
    """Print lines without wrapping, markup or colors."""
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


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
    """Print an error in the user's input, or of the Hub, in one line, and exit with status 2."""
    try:
        yield
    except (OSError, ValueError, HTTPError) as error:
        typer.secho("Error: ", fg="red", bold=True, err=True, nl=False)
        typer.echo(_in_words(error), err=True)
        raise typer.Exit(2) from error


def _in_words(error: Exception) -> str:
    """An error's message; of a file, without the number of the system's error."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}. Check the path, which is taken from the folder that the command runs in."
    return str(error)
