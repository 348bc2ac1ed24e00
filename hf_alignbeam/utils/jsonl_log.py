"""Logs of JSON records, one record a line, that stay readable when the writing process is killed or the disk is full.

Knows lines, bytes and files: a line is written at once and counts once its newline is on the disk. A log has one writer at a
time, and any number of readers. Knows nothing of what a record means.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


#: A first line that is longer, in bytes, is no record.
MAX_LINE = 2**24


class JsonlLog:
    """One file, opened for appending. Before the first record, a torn last line is dropped.

    Args:
        path: The file, created if it does not exist. Its folder must exist.

    Raises:
        OSError: The file cannot be written.
        ValueError: Another log has the file open, in this process or in another one.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._is_whole = False
        try:
            _lock(self._file.fileno())
        except BlockingIOError as error:
            self._file.close()
            raise ValueError(f"The folder must be of one run at a time, but another one writes to {path} now.") from error

    def append(self, *records: Mapping[str, Any]) -> None:
        """Write records, in UTF-8 and in one piece. A dataclass inside a record becomes a dictionary.

        Raises:
            OSError: The disk is full, for example. Nothing of these records stays in the file.
        """
        data = b"".join(map(json_line, records))
        if not self._is_whole:
            drop_torn_line(self._path)
            self._is_whole = True
        _write(self._file, data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def append_shared(path: Path, record: Mapping[str, Any]) -> None:
    """Append one record to a file that other threads and processes may append to at any time.

    Raises:
        OSError: The file cannot be written. Nothing of the record stays in it.
    """
    with path.open("ab", buffering=0) as file:
        _lock(file.fileno(), wait=True)
        drop_torn_line(path)
        _write(file, json_line(record))


def check_records(path: Path, option: str, *kinds: set[str], torn: bytes | None = None) -> None:
    """Check a file before it is written to: it must be new, empty, or begin with a JSON record of a known kind.

    Args:
        path: The file.
        option: What names it, for the error.
        kinds: For each kind of record, the keys that it has among others.
        torn: How a first line may begin whose writer was killed before its end; None where no line is ever torn.

    Raises:
        ValueError: It holds something else, which would be replaced or mixed with records. The error names the option.
        OSError: It cannot be read.
    """
    if not path.is_file():  # what is no file, such as a pipe, is only written to
        return
    with path.open("rb") as file:
        line = file.readline(MAX_LINE)
    is_torn = torn is not None and not line.endswith(b"\n") and (line.startswith(torn) or torn.startswith(line))
    try:
        record = {} if is_torn else json.loads(line)
    except ValueError:
        record = None
    is_known = isinstance(record, dict) and (is_torn or any(kind <= record.keys() for kind in kinds))
    if line and not is_known:
        raise ValueError(f"{option} must be new, or as this wrote it before, but {path} holds something else. Name another file.")


def json_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line of JSON in UTF-8; what UTF-8 cannot hold, such as a lone surrogate, is escaped."""
    try:
        return (json.dumps(dict(record), ensure_ascii=False, default=asdict) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(dict(record), default=asdict) + "\n").encode()


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that has no newline: its writer was killed. Does nothing if there is no such file."""
    if path.is_file():
        with path.open("rb+") as file:
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)


def read_records(*paths: Path) -> Iterator[dict[str, Any]]:
    """Read the records of some files, one file after the other.

    A last line without a newline is skipped, since it is still being written, or its writer was killed. So is a line with a
    NUL, which JSON never holds: a power cut leaves NULs in place of bytes that had not reached the disk.

    Raises:
        ValueError: Any other whole line is not a JSON object; the message names the file and the line.
    """
    for path in paths:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):  # bytes end at b"\n" only; text would also end at U+2028
                if line.endswith(b"\n") and b"\0" not in line:
                    yield _record(path, number, line)


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path} must hold JSON in UTF-8, but line {number} is not: {error}. Delete the line.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} must hold one JSON object a line, but line {number} holds {record!r}. Delete the line.")
    return record


def _write(file: FileIO, data: bytes) -> None:
    """Write at the end of a file, or nothing if that fails."""
    descriptor, left = file.fileno(), memoryview(data)
    size = os.fstat(descriptor).st_size
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except BaseException as error:
        if os.fstat(descriptor).st_size > size:
            os.ftruncate(descriptor, size)
        if isinstance(error, OSError):
            error.filename = file.name
        raise


def _lock(descriptor: int, wait: bool = False) -> None:
    """Lock a file until it is closed. Raise BlockingIOError where another one holds the lock, or wait for it."""
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return
