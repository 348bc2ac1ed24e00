"""What was paid for already, batch by batch on the disk, by any number of processes, so that a killed run goes on.

Knows lines, files and keys. Knows no system and no score.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from accelerate import PartialState
from filelock import FileLock, Timeout
from transformers import AutoConfig

from hf_alignbeam.utils.jsonl_log import JsonlLog, read_records

Record = Mapping[str, Any]


def digest(told: Any) -> str:
    """A key of what a batch is made of, as JSON can hold it."""
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def files_of(name: str) -> list[tuple[str, int, int]]:
    """What tells a folder's model from another one in its place: its files' names, sizes and times, an adapter's base's too."""
    folder = Path(name)
    if not folder.is_dir():
        return []
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.glob("*")) if path.is_file()]
    adapter = folder / "adapter_config.json"
    base = json.loads(adapter.read_text()).get("base_model_name_or_path") if adapter.is_file() else None
    return [*files, *(files_of(base) if base and base != name else [])]


@lru_cache
def commit_of(name: str, revision: str | None) -> str | None:
    """The commit that a Hub id stands for now, as far as its configuration tells; None for a folder or an address."""
    if Path(name).is_dir() or name.startswith(("http://", "https://")):
        return None
    try:
        return getattr(AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False), "_commit_hash", None)
    except (OSError, ValueError):  # no model of its own, or none that can be reached: loading it will tell
        return None


@dataclass(frozen=True)
class Batch:
    """What one batch gave: a record each, and what all of them cost."""

    records: list[Record]
    cost: Record


class Store:
    """Batches by their keys, kept in memory and in `<name>-<process>.jsonl` files of a folder that all processes share.

    The lines of a batch are written at once, the last one saying that they are all there; of a batch that was being written when
    the process died nothing counts.

    Args:
        folder: Where the files lie or are begun; it is made if need be.
        name: What they are called.
        state: Which of how many processes this one is.
    """

    def __init__(self, folder: Path, name: str, state: PartialState):
        self._folder = folder
        self._name = name
        self._state = state
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / f"{name}-{state.process_index}.jsonl"
        self._lock = FileLock(own.with_suffix(".lock"), timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ValueError(f"The folder must be of one run at a time, but another one writes to {own} now.") from error
        self._log = JsonlLog(own)
        state.wait_for_everyone()
        self._batches = self._read()
        state.wait_for_everyone()  # nobody writes before everybody has read: all have to see the same batches as done

    def __contains__(self, key: str) -> bool:
        return key in self._batches

    def __getitem__(self, key: str) -> Batch:
        return self._batches[key]

    def add(self, key: str, records: Sequence[Record], cost: Record) -> None:
        """Keep a batch."""
        self._batches[key] = Batch(list(records), cost)
        lines = [{"batch": key, **record} for record in records] + [{"batch": key, "done": len(records), "cost": cost}]
        self._log.append(*lines)

    def gather(self) -> None:
        """Wait for all processes, and take in what they have written."""
        self._state.wait_for_everyone()
        self._batches = self._read()

    def close(self) -> None:
        """Let go of the file."""
        self._log.close()
        self._lock.release()

    def _read(self) -> dict[str, Batch]:
        batches: dict[str, Batch] = {}
        for path in sorted(self._folder.glob(f"{self._name}-[0-9]*.jsonl")):
            begun: dict[str, list[Record]] = {}
            for record in read_records(path):
                key = record.pop("batch")
                if "done" not in record:
                    begun.setdefault(key, []).append(record)
                elif len(found := begun.pop(key, [])) >= record["done"]:
                    batches[key] = Batch(found[len(found) - record["done"] :], record["cost"])
        return batches
