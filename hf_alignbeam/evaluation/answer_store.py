"""Finished batches on the disk, written by any number of processes, so that a killed run resumes.

Knows records, files and keys. Knows no system and no score.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import AutoConfig

from hf_alignbeam.utils.jsonl_log import JsonlLog, read_records

Record = Mapping[str, Any]


def digest(contents: Any) -> str:
    """The key of a batch: a hash of everything that its answers depend on, in a form that JSON can hold."""
    return hashlib.sha256(json.dumps(contents, sort_keys=True, default=str).encode()).hexdigest()[:16]


def files_of(name: str) -> list[tuple[str, str]]:
    """The names and hashes of a folder's files, and of an adapter's base, or its commit."""
    folder = Path(name)
    if not folder.is_dir():
        return []
    paths = sorted(path for pattern in ("*", "additional_chat_templates/*") for path in folder.glob(pattern) if path.is_file())
    files = [(path.relative_to(folder).as_posix(), _file_sha256(path)) for path in paths]
    adapter = folder / "adapter_config.json"
    base = json.loads(adapter.read_text("utf-8")).get("base_model_name_or_path") if adapter.is_file() else None
    if not base or base == name:
        return files
    return [*files, *(files_of(base) or [(base, str(commit_of(base, None)))])]


def _file_sha256(path: Path) -> str:
    """A hash of a file, computed once a process as long as the file stays as it is."""
    stat = path.stat()
    return _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=4096)
def _sha256(path: Path, *version: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache
def commit_of(name: str, revision: str | None) -> str | None:
    """The commit that a Hub id resolves to now, read from its configuration; None for a folder or a URL."""
    if Path(name).is_dir() or name.startswith(("http://", "https://")):
        return None
    try:
        return getattr(AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False), "_commit_hash", None)
    except (OSError, ValueError):  # loading the model will raise an error that names the problem
        return None


@dataclass(frozen=True)
class Batch:
    """The results of one batch: a record for each answer, and the cost of all of them."""

    records: list[Record]
    cost: Record


def remove_store(folder: Path, name: str) -> None:
    """Remove the files of a `Store`, and their folder if it holds nothing else."""
    for file in store_files(folder, name):
        file.unlink()
    with suppress(OSError):
        folder.rmdir()


def store_files(folder: Path, name: str) -> list[Path]:
    """The files of a `Store` in a folder, one of each process."""
    return sorted(folder.glob(f"{name}-[0-9]*.jsonl"))


class Store:
    """Batches by key, kept in memory and in the files `<name>-<process>.jsonl` of a folder that all processes share.

    The lines of a batch are written together, and the last one says that the batch is complete. A batch that was being written
    when its process died does not count.

    Args:
        folder: The folder of the files; it is made if it does not exist.
        name: The first part of the files' names.
        state: The number of this process, and of all processes.

    Raises:
        ValueError: Another run writes to the same files, or one holds something else.
    """

    def __init__(self, folder: Path, name: str, state: PartialState):
        self._folder = folder
        self._name = name
        self._state = state
        folder.mkdir(parents=True, exist_ok=True)
        self._log = JsonlLog(folder / f"{name}-{state.process_index}.jsonl")
        state.wait_for_everyone()
        try:
            self._batches = self._read()
        except ValueError:
            self._log.close()
            raise
        state.wait_for_everyone()  # no process writes before all have read: they must agree on which batches are done

    def __contains__(self, key: str) -> bool:
        return key in self._batches

    def __getitem__(self, key: str) -> Batch:
        return self._batches[key]

    def add(self, key: str, records: Sequence[Record], cost: Record) -> None:
        """Store a batch."""
        lines = [{"batch": key, **record} for record in records] + [{"batch": key, "done": len(records), "cost": cost}]
        self._log.append(*lines)
        self._batches[key] = Batch(list(records), cost)

    def gather(self) -> None:
        """Wait for all processes, and read what they have written."""
        self._state.wait_for_everyone()
        self._batches = self._read()

    def close(self) -> None:
        """Close the file."""
        self._log.close()

    def _read(self) -> dict[str, Batch]:
        batches: dict[str, Batch] = {}
        for path in store_files(self._folder, self._name):
            pending: dict[str, list[Record]] = {}
            for record in read_records(path):
                if "batch" not in record:
                    raise ValueError(f"{path} must hold what this command writes, but holds {str(record)[:80]}. Move it away.")
                key = record.pop("batch")
                if "done" not in record:
                    pending.setdefault(key, []).append(record)
                elif len(records := pending.pop(key, [])) >= record["done"]:
                    batches[key] = Batch(records[len(records) - record["done"] :], record["cost"])
        return batches
