"""Local copies of what a recipe names on the Hub, in folders that environment variables name."""

import os
from pathlib import Path

#: The variables that name a folder of models, and one that holds the folder `prompts` of prompt files.
MODELS, DATA = "HF_ALIGNBEAM_MODELS", "HF_ALIGNBEAM_TEST_DATA"


def local_model(name: str | None) -> str | None:
    """The folder of a model; None where it has no name or the variable is unset."""
    return _local(MODELS, name)


def local_prompts(name: str | None) -> Path | None:
    """A file of prompts; None where it has no name or the variable is unset."""
    path = _local(DATA, None if name is None else f"prompts/{name}")
    return None if path is None else Path(path)


def _local(variable: str, name: str | None) -> str | None:
    folder = os.environ.get(variable)
    return None if not folder or name is None else str(Path(folder) / name)
