"""Files that are replaced as a whole: a reader sees the old contents or the new ones, also after a kill or on a full disk.

Knows bytes and paths. Knows nothing of what a file means.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside another one, and put it in its place once it is complete and on the disk.

    Args:
        path: The file to replace; its folder must exist. A link is followed.
        write: Writes the new file, given its path.

    Raises:
        OSError: It cannot be written. The old file is as it was.
    """
    path = Path(os.path.realpath(path))
    part = path.with_name(f"{path.name}.part")
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name with old, empty contents
        if path.exists():
            shutil.copymode(path, part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def replace_bytes(path: Path, data: bytes) -> None:
    """As `replace_file`, with the bytes of the new file. What is no file, such as `/dev/stdout`, is written to."""
    if path.exists() and not path.is_file():
        path.write_bytes(data)
    else:
        replace_file(path, lambda part: part.write_bytes(data))
