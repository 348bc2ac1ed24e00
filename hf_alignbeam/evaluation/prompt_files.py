"""Files of prompts that a user names at the terminal."""

import json
from pathlib import Path

from hf_alignbeam.chat.conversations import Conversation


def read_prompts(file: Path) -> list[Conversation]:
    """The prompts in a file: one a line, or JSON lines with `prompt` or `messages`.

    Raises:
        ValueError: A line is none of that; it is named.
    """
    lines = enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1)
    return [_parsed(line, f"{file}:{number}") for number, line in lines if line.strip()]


def _parsed(line: str, place: str) -> Conversation:
    if not line.lstrip().startswith("{"):
        return line.strip()
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} begins like JSON but is not: {error}.") from error
    if not isinstance(record.get("messages"), list) and not isinstance(record.get("prompt"), str):
        raise ValueError(f"{place} must have a string 'prompt' or a list 'messages', got {line.strip()}.")
    return record["messages"] if isinstance(record.get("messages"), list) else record["prompt"]
