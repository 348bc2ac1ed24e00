"""The journal of a search: every answer and every verdict that was paid for, on disk, so that a killed search resumes.

A resumed search starts again with the same random streams, and `search_loop` takes from here what was paid for. Knows answers
and verdicts by their place in the search. Knows neither how a search proceeds nor what a verdict decides.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from hf_alignbeam.utils.checks import check_whole_number
from hf_alignbeam.utils.jsonl_log import JsonlLog, read_records

NAME = "journal.jsonl"

#: A way out for those who have not changed the judge or `accept`.
_SAME = dict.fromkeys(("judge", "accept"), "; or, if it is the same, give it an attribute `identity` before the first search")

#: The key of a prompt, and the number of an answer or a verdict in its search.
Place = tuple[str, int]


class Journal:
    """Answers and verdicts, kept in memory and, if there is a folder, written to disk before the search continues.

    Args:
        folder: The folder of the journal, created if need be; None to keep nothing on disk.
        made_with: All that the answers depend on, as JSON can hold it. It is the first record of every file, and written with the
            first answer: a search that ends before it leaves the folder to any other.
        part: The number of this process, from 0, if several processes share the search: each writes a file of its own and reads
            all of them.

    Raises:
        ValueError: The folder's journal was started with other settings, or for another model or judge, or is damaged; another
            run writes to it now; or `part` is no such number.
    """

    def __init__(self, folder: Path | None, made_with: Mapping[str, Any], part: int | None = None):
        if part is not None:
            check_whole_number("part", part, 0, "Give each process a number of its own, or leave it out for a single one.")
        self._answers: dict[Place, tuple[str, list[int], float]] = {}
        self._verdicts: dict[Place, tuple[str, float, float]] = {}
        self._log: JsonlLog | None = None
        self._unwritten: list[Mapping[str, Any]] = []
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / (NAME if part is None else f"journal-{part}.jsonl")
        self._log = JsonlLog(own)
        try:
            is_started = {path: self._read(path, made_with) for path in sorted(folder.glob("journal*.jsonl"))}[own]
            self._unwritten = [] if is_started else [made_with]
        except BaseException:
            self._log.close()
            raise

    def _read(self, path: Path, made_with: Mapping[str, Any]) -> bool:
        """Read one file, and return whether it holds the settings. Records before them are not known to be of this search."""
        has_settings = False
        for record in read_records(path):
            try:
                if "key" not in record:
                    _check_settings(record, made_with, path)
                    has_settings = True
                elif has_settings and "ids" in record:
                    self._answers[record["key"], record["n"]] = record["embeds"], record["ids"], record["seconds"]
                elif has_settings:
                    self._verdicts[record["key"], record["n"]] = record["answer"], record["harm"], record["seconds"]
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{path} must hold records as a search wrote them, but one is {record!r}. Delete its line."
                ) from error
        return has_settings

    def add_answer(self, key: str, n: int, embeds: Tensor, ids: list[int], seconds: float) -> None:
        """Keep one answer."""
        digest = _embeds_digest(embeds)
        self._append({"key": key, "n": n, "embeds": digest, "ids": ids, "seconds": round(seconds, 5)})
        self._answers[key, n] = digest, ids, seconds

    def answer(self, key: str, n: int, embeds: Tensor) -> tuple[list[int], float] | None:
        """The ids of the answer at a place and the seconds that it took; None if these embeddings were not answered there."""
        digest, ids, seconds = self._answers.get((key, n), ("", [], 0.0))
        return (ids, seconds) if digest == _embeds_digest(embeds) else None

    def add_verdict(self, key: str, n: int, answer: str, harm: float, seconds: float) -> None:
        """Keep one verdict."""
        self._append({"key": key, "n": n, "answer": _text_digest(answer), "harm": harm, "seconds": round(seconds, 5)})
        self._verdicts[key, n] = _text_digest(answer), harm, seconds

    def verdict(self, key: str, n: int, answer: str) -> tuple[float, float] | None:
        """The harm of the answer at a place and the seconds that the verdict took; None if this answer was not judged there."""
        digest, harm, seconds = self._verdicts.get((key, n), ("", 0.0, 0.0))
        return (harm, seconds) if digest == _text_digest(answer) else None

    def close(self) -> None:
        """Close the file."""
        if self._log is not None:
            self._log.close()

    def _append(self, record: Mapping[str, Any]) -> None:
        if self._log is not None:
            self._log.append(*self._unwritten, record)
            self._unwritten = []


def to_jsonable(value: Any, describe: Callable[[Any], str]) -> Any:
    """A setting as JSON can hold it, and reads it back. `describe` is called for objects that JSON has no type for."""
    as_json = partial(to_jsonable, describe=describe)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, Mapping):
        items = [(as_json(key), as_json(item)) for key, item in value.items()]
        has_names = all(isinstance(key, str) for key, _ in items)
        return dict(items) if has_names else sorted(map(list, items), key=str)
    if isinstance(value, GenerationConfig):
        return as_json({name: setting for name, setting in value.to_diff_dict().items() if name != "transformers_version"})
    if isinstance(value, partial):
        return [as_json(value.func), as_json(value.args), as_json(value.keywords)]
    return describe(value)


def name_of(value: Any) -> str:
    """The name of a function or a class, or of an object's class."""
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _embeds_digest(embeds: Tensor) -> str:
    return hashlib.sha256(embeds.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_settings(recorded: Mapping[str, Any], current: Mapping[str, Any], path: Path) -> None:
    for name in current:
        if recorded.get(name) != current[name]:
            raise ValueError(
                f"The folder must hold a search started with the same settings, but {path} has `{name}` {recorded.get(name)!r}, "
                f"got {current[name]!r}. Use another folder, or delete the journal{_SAME.get(name, '')}."
            )
