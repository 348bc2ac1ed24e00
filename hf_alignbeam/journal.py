"""What a search has already paid for, line by line on the disk, so that a killed one goes on where it was.

Knows answers and verdicts by their place in the search. Knows neither the search nor what they mean.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

NAME = "journal.jsonl"

#: The key of a prompt, and the how manieth answer or verdict of its search this is.
Place = tuple[str, int]


class Journal:
    """Answers and verdicts, kept in memory and, where there is a folder, on the disk before anything else happens.

    Args:
        folder: Where the journal lies or is begun; None to keep nothing.
        made_by: What the answers depend on, as JSON can hold it.

    Raises:
        ValueError: The folder's journal was begun with other settings, or for another model.
    """

    def __init__(self, folder: Path | None, made_by: Mapping[str, Any]):
        #: Each with the seconds that it took.
        self.answers: dict[Place, tuple[list[int], float]] = {}
        self.harm: dict[Place, tuple[float, float]] = {}
        self._file: TextIO | None = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / NAME
        text = path.read_text() if path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]  # a line that was being written when the process died is as good as none
        for number, line in enumerate(whole.splitlines()):
            record = json.loads(line)
            if number == 0:
                self._check(record, dict(made_by), path)
            elif "ids" in record:
                self.answers[record["key"], record["n"]] = record["ids"], record["seconds"]
            else:
                self.harm[record["key"], record["n"]] = record["harm"], record["seconds"]
        if whole != text:
            path.write_text(whole)
        self._file = path.open("a")
        if not whole:
            self._write(dict(made_by))

    def answered(self, place: Place, ids: list[int], seconds: float) -> None:
        """Keep one answer."""
        self.answers[place] = ids, seconds
        self._write({"key": place[0], "n": place[1], "ids": ids, "seconds": round(seconds, 5)})

    def judged(self, place: Place, harm: float, seconds: float) -> None:
        """Keep one verdict."""
        self.harm[place] = harm, seconds
        self._write({"key": place[0], "n": place[1], "harm": harm, "seconds": round(seconds, 5)})

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    @staticmethod
    def _check(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
        for name in wanted:
            if found.get(name) != wanted[name]:
                raise ValueError(
                    f"The folder must hold a search begun with the same settings, but {path} has `{name}` {found.get(name)!r}, "
                    f"got {wanted[name]!r}. Use another folder, or delete the journal."
                )
