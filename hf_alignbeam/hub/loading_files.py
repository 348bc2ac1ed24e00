"""Which files of a model's folder loading needs, and a hash of them: other files decide nothing about a model.

Knows file names. Loads no model.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_alignbeam.judges.probes.saved_probes import PROBES_FILE

#: Files from which a tokenizer is loaded.
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template*",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "additional_chat_templates/*.jinja",
)
#: Other files beside the weights.
SETTINGS_FILES = ("config.json", "generation_config.json", "*processor_config.json")
LICENSE_FILES = ("LICEN[SC]E*", "NOTICE*", "USE_POLICY*")
#: The file by which an adapter's repository is recognized.
ADAPTER_CONFIG = "adapter_config.json"
#: An adapter in the folder of a whole model is loaded on top of it (transformers 5.23).
ADAPTER_FILES = (ADAPTER_CONFIG, "adapter_model.*")
#: A judge of one's own, in a folder with or without an adapter.
JUDGE_FILES = (PROBES_FILE,)
#: Files of weights, in the order in which transformers looks for them; an index lists the files of a sharded checkpoint.
WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def model_files(folder: Path) -> list[Path]:
    """The files that a model is loaded from.

    Args:
        folder: The model's folder.
    """
    return named_files(folder, (*SETTINGS_FILES, *TOKENIZER_FILES, *ADAPTER_FILES, *JUDGE_FILES, *weights_files(folder)))


def named_files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files of a folder with these names, which are no hidden ones."""
    files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return sorted(file for file in files if not file.name.startswith("."))


def check_own(folder: Path, files: Iterable[Path]) -> None:
    """Check that the files of a folder lie in it.

    Raises:
        ValueError: A file is a link that leads out of the folder.
    """
    roots = [folder.resolve()]
    if roots[0].parent.name == "snapshots":  # the Hub's cache links each file to one of its own
        roots.append(roots[0].parents[1] / "blobs")
    for file in files:
        if not any(file.resolve().is_relative_to(root) for root in roots):
            raise ValueError(
                f"A model's folder must hold its own files, but {file} is a link to {file.resolve()}. Put a copy of it there."
            )


def folder_sha256(folder: Path) -> str:
    """A hash of all files that a model is loaded from, and of their names.

    Args:
        folder: The model's folder.

    Raises:
        ValueError: There are none.
    """
    digest, files = hashlib.sha256(), model_files(folder)
    if not files:
        raise ValueError(f"A folder must hold the files of a model, but {folder} holds none. Check its path.")
    for file in files:
        with file.open("rb") as opened:
            contents = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()} {contents}\n".encode())
    return digest.hexdigest()


def weights_files(folder: Path) -> list[str]:
    """The names of the files that hold a model's weights: transformers takes the first kind that it finds.

    Args:
        folder: The model's folder.

    Returns:
        The file that is looked for, and behind an index the files that it lists; nothing where there is none.
    """
    config = folder / "config.json"
    own = _read(config).get("transformers_weights") if config.is_file() else None
    name = next((name for name in (own, *WEIGHTS_FILES) if name and (folder / name).is_file()), None)
    if name is None:
        return []
    parts = _read(folder / name).get("weight_map", {}).values() if name.endswith(".index.json") else ()
    return [name, *sorted(set(parts))]


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text("utf-8")))
