"""Files that are replaced as a whole: a reader sees the old contents or the new ones, also after a kill or on a full disk.

Knows bytes and paths. Knows nothing of what a file means.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside another one, and put it in its place once it is complete and on the disk.

    Args:
        path: The file to replace; its folder must exist. A link is followed.
        write: Writes the new file, given its path.

    Raises:
        OSError: It cannot be written; the error names the file. The old one is as it was.
    """
    path = Path(os.path.realpath(path))
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")  # another process may be replacing the same file
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name with old, empty contents
        if path.exists():
            shutil.copymode(path, part)
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(part)):
            error.filename, error.filename2 = str(path), None
        raise


def replace_bytes(path: Path, data: bytes) -> None:
    """As `replace_file`, with the bytes of the new file. What is no file, such as `/dev/stdout`, is written to."""
    if path.exists() and not path.is_file():
        path.write_bytes(data)
    else:
        replace_file(path, lambda part: part.write_bytes(data))


def replace_together(files: Sequence[tuple[Path, bytes]]) -> None:
    """Replace files that belong together, by their new bytes: where one of them cannot be written, all stay as they were."""
    (path, data), *others = files

    def write(part: Path) -> None:
        part.write_bytes(data)
        if others:
            replace_together(others)

    replace_file(path, write)
