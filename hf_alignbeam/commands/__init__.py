"""What `alignbeam` runs, a module a command; here, how all of them tell a user what went wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turn an error in the user's input into one line and exit status 2."""
    try:
        yield
    except (OSError, ValueError) as error:
        typer.secho("Error: ", fg="red", bold=True, err=True, nl=False)
        typer.echo(error, err=True)
        raise typer.Exit(2) from error
