"""Logs of JSON records, one record a line, that stay readable when the writing process is killed.

Knows lines, bytes and files: a line is written at once and counts once its newline is on the disk. Knows nothing of what a
record means, and takes no locks: a file has one writer at a time, and any number of readers.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any


class JsonlLog:
    """One file, opened for appending; a torn last line is dropped first.

    Args:
        path: The file, created if it does not exist. Its folder must exist.
    """

    def __init__(self, path: Path):
        drop_torn_line(path)
        self._file = path.open("ab")

    def append(self, *records: Mapping[str, Any]) -> None:
        """Write records, in UTF-8 and in one piece, and flush them. A dataclass inside a record becomes a dictionary."""
        lines = [json.dumps(dict(record), ensure_ascii=False, default=asdict) + "\n" for record in records]
        self._file.write("".join(lines).encode())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that has no newline: its writer was killed. Does nothing if there is no such file."""
    if path.is_file():
        with path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def read_records(*paths: Path) -> Iterator[dict[str, Any]]:
    """Read the records of some files, one file after the other.

    A last line without a newline is skipped, since it is still being written, or its writer was killed.

    Raises:
        ValueError: A whole line is not JSON.
    """
    for path in paths:
        with path.open("rb") as file:
            for line in file:  # bytes end at b"\n" only; text would also end at U+2028
                if line.endswith(b"\n"):
                    yield json.loads(line)
