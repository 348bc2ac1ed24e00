"""The text of a file in UTF-8, gzipped or not, and its lines.

Knows bytes, encodings and the ends of lines. Knows no format, and no locale: a file is read alike on every machine.
"""

import gzip
import re
import zlib
from pathlib import Path

#: What ends a line, on any system. Other separators (U+2028, U+0085, form feeds) stand inside a prompt.
LINE_END = re.compile(r"\r\n?|\n")


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Args:
        path: The file; one that ends in `.gz` is decompressed.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not text in UTF-8; the message names the line.
    """
    data = path.read_bytes()
    try:
        data = gzip.decompress(data) if path.suffix.lower() == ".gz" else data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} must be a complete gzip file, as its suffix says: {error}.") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"Line {line} of {path} must be text in UTF-8: {error}. Convert the file.") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(
            f"Line {line} of {path} must be text in UTF-8, got a NUL, which only other files hold. Convert the file."
        )
    return text


def numbered_lines(path: Path, text: str) -> list[tuple[str, str]]:
    """The lines of a file that are not blank, each with its place and without white space around it."""
    lines = enumerate(LINE_END.split(text), start=1)
    return [(f"Line {number} of {path}", line.strip()) for number, line in lines if line.strip()]
