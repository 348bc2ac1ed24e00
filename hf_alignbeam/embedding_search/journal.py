"""What a search has already paid for, line by line on the disk, so that a killed one goes on where it was.

Knows answers and verdicts by their place in the search. Knows neither the search nor what they mean.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor
from transformers import GenerationConfig

NAME = "journal.jsonl"

#: The key of a prompt, and the number of an answer or a verdict in its search.
Place = tuple[str, int]


class Journal:
    """Answers and verdicts, kept in memory and, where there is a folder, on the disk before anything else happens.

    Args:
        folder: Where the journal lies or is begun; None to keep nothing.
        made_by: What the answers depend on, as JSON can hold it.
        part: Of a search that is shared out, which part this is: it writes a file of its own, and has read all others'.

    Raises:
        ValueError: The folder's journal was begun with other settings, or for another model.
    """

    def __init__(self, folder: Path | None, made_by: Mapping[str, Any], part: int | None = None):
        self._answers: dict[Place, tuple[str, list[int], float]] = {}
        self._verdicts: dict[Place, tuple[str, float, float]] = {}
        self._file: TextIO | None = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / (NAME if part is None else f"journal-{part}.jsonl")
        begun = own.is_file() and self._read(own, made_by, mend=True)
        for path in sorted(folder.glob("journal*.jsonl")):
            if path != own:
                self._read(path, made_by)
        self._file = own.open("a")
        if not begun:
            self._write(dict(made_by))

    def _read(self, path: Path, made_by: Mapping[str, Any], mend: bool = False) -> bool:
        """Take in one file, and say whether there is anything in it.

        A line that was being written when the process died is as good as none; where the file is to be gone on with, `mend`, it
        is taken out.
        """
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]
        for number, line in enumerate(whole.splitlines()):
            record = json.loads(line)
            if number == 0:
                _check(record, dict(made_by), path)
            elif "ids" in record:
                self._answers[record["key"], record["n"]] = record["embeds"], record["ids"], record["seconds"]
            else:
                self._verdicts[record["key"], record["n"]] = record["answer"], record["harm"], record["seconds"]
        if mend and whole != text:
            path.write_text(whole)
        return bool(whole)

    def answered(self, key: str, n: int, embeds: Tensor, ids: list[int], seconds: float) -> None:
        """Keep one answer."""
        digest = _embeds_digest(embeds)
        self._answers[key, n] = digest, ids, seconds
        self._write({"key": key, "n": n, "embeds": digest, "ids": ids, "seconds": round(seconds, 5)})

    def answer(self, key: str, n: int, embeds: Tensor) -> tuple[list[int], float] | None:
        """The ids of the answer to embeddings at their place and the seconds that it took; None where these had none."""
        digest, ids, seconds = self._answers.get((key, n), ("", [], 0.0))
        return (ids, seconds) if digest == _embeds_digest(embeds) else None

    def judged(self, key: str, n: int, answer: str, harm: float, seconds: float) -> None:
        """Keep one verdict."""
        self._verdicts[key, n] = _digest(answer), harm, seconds
        self._write({"key": key, "n": n, "answer": _digest(answer), "harm": harm, "seconds": round(seconds, 5)})

    def verdict(self, key: str, n: int, answer: str) -> tuple[float, float] | None:
        """The harm of an answer at its place and the seconds that it took; None where it was never asked of this answer."""
        digest, harm, seconds = self._verdicts.get((key, n), ("", 0.0, 0.0))
        return (harm, seconds) if digest == _digest(answer) else None

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()


def to_jsonable(value: Any) -> Any:
    """A setting as JSON can hold it, the same in every process; of an object that is none, its kind."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [to_jsonable(each) for each in value]
    if isinstance(value, GenerationConfig):
        return {name: each for name, each in value.to_diff_dict().items() if name != "transformers_version"}
    if isinstance(value, partial):
        return [
            to_jsonable(value.func),
            to_jsonable(list(value.args)),
            [[name, to_jsonable(each)] for name, each in value.keywords.items()],
        ]
    return getattr(value, "__qualname__", type(value).__qualname__)


def _embeds_digest(embeds: Tensor) -> str:
    return hashlib.sha256(embeds.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def _digest(answer: str) -> str:
    return hashlib.sha256(answer.encode()).hexdigest()


def _check(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise ValueError(
                f"The folder must hold a search begun with the same settings, but {path} has `{name}` {found.get(name)!r}, "
                f"got {wanted[name]!r}. Use another folder, or delete the journal."
            )
