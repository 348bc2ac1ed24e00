"""Folders that a command writes: another's file is never replaced, and a folder appears whole or not at all.

Knows files, links and hashes. Knows nothing of what the files mean.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "linux":
    import fcntl

#: The request to share a file's blocks until one of the two is changed (Linux).
FICLONE = 0x40049409


def check_unused(folder: Path, ours: set[str]) -> None:
    """Check that a folder is new, or empty but for these names."""
    if folder.is_file():
        raise ValueError(f"The folder must be new or empty, but {folder} is a file.")
    others = {path.name for path in folder.iterdir()} - ours if folder.is_dir() else set()
    if others:
        raise ValueError(f"The folder must be new or empty, but {folder} holds {', '.join(sorted(others))}.")


def check_written(folder: Path, names: Sequence[str], record: str, place: str | None = None) -> None:
    """Check that what a folder holds under some names is as it was recorded.

    Args:
        folder: The folder.
        names: Files and folders in it.
        record: The file that `record_written` wrote there.
        place: What an error calls the folder; its path by default.

    Raises:
        ValueError: A file is not recorded, has been changed since, or is a link.
    """
    recorded = folder / record
    try:
        written = json.loads(recorded.read_text("utf-8"))
    except (OSError, ValueError):
        written = {}
    for path in (folder / name for name in names):
        inside = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
        for file in inside:
            if file.is_symlink() or (file.is_file() and file != recorded and not _is_recorded(file, folder, written)):
                raise ValueError(
                    f"{place or folder}/{file.relative_to(folder).as_posix()} must be new or as this command wrote it, but it is "
                    "not, and would be replaced. Move it away, or name another place."
                )


def _is_recorded(file: Path, folder: Path, written: Mapping[str, str]) -> bool:
    return "__pycache__" in file.parts or written.get(file.relative_to(folder).as_posix()) == _sha256(file)


def record_written(folder: Path, names: Sequence[str], record: str) -> None:
    """Record the hashes of the files under some names.

    Args:
        folder: The folder.
        names: Files and folders in it.
        record: The file in it that gets the hashes.
    """
    files = [file for name in names for file in [folder / name, *(folder / name).rglob("*")] if file.is_file()]
    hashes = {file.relative_to(folder).as_posix(): _sha256(file) for file in sorted(files)}
    (folder / record).write_text(json.dumps(hashes) + "\n", "utf-8")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder whose contents take another one's place when everything is written; after an error, all is as it was.

    Args:
        folder: The folder. What it holds under the names that are written is replaced.

    Returns:
        The folder to write into.

    Raises:
        OSError: Something cannot be written; the error names the folder.
        ValueError: The folder was new, and another run has filled it meanwhile.
    """
    folder = folder.resolve()
    made = (folder if folder.is_dir() else folder.parent) / f".{folder.name}.{os.getpid()}"  # on the same disk
    try:
        made.mkdir(parents=True)
        yield made
        if made.parent == folder:
            for path in sorted(made.iterdir()):
                if (folder / path.name).is_dir():
                    (folder / path.name).rename(made / f".{path.name}")
                path.replace(folder / path.name)
        else:
            made.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and error.filename2 == str(folder):
            raise ValueError(
                f"The folder must be of one run at a time, but another one filled {folder} meanwhile. Run the command again, or "
                "name another place."
            ) from error
        if error.errno and str(error.filename2 or error.filename or made).startswith(str(made)):
            error.filename, error.filename2 = str(folder), None
        raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def copy_file(source: Path, to: Path, linked: bool) -> None:
    """Copy a file; where the disk can share the blocks of both until one is changed, that costs no space.

    Args:
        source: The file.
        to: The path of the copy, in a folder that is created if need be.
        linked: Whether to make a link instead, for a copy that does not last.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    if linked:
        to.symlink_to(source.resolve())
        return
    if sys.platform == "linux":
        with source.open("rb") as read, to.open("wb") as written, suppress(OSError):
            fcntl.ioctl(written.fileno(), FICLONE, read.fileno())
            return
    shutil.copyfile(source, to)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
