"""The target of a protected copy: which models may be one, and the files that the copy holds of it.

Knows configurations and file names. Knows no anchor and no judge.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import GenerationConfig, PreTrainedConfig

from hf_alignbeam.hub.loading_files import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    LICENSE_FILES,
    SETTINGS_FILES,
    TOKENIZER_FILES,
    WEIGHTS_FILES,
    check_own,
    model_files,
    named_files,
    weights_files,
)
from hf_alignbeam.hub.model_loading import explain_load_errors
from hf_alignbeam.hub.protected.checks import check_kind, check_settings, check_weights
from hf_alignbeam.hub.protected.generate import PROTECTION_KEY
from hf_alignbeam.hub.protected.model import TARGET_CONFIG, TARGET_FOLDER, TARGET_VARIANT
from hf_alignbeam.utils.written_files import copy_file

#: What is downloaded of a target on the Hub; its card names its license.
DOWNLOADED = (
    *SETTINGS_FILES,
    *TOKENIZER_FILES,
    *ADAPTER_FILES,
    *LICENSE_FILES,
    "README.md",
    "*.safetensors*",
    "pytorch_model*.bin*",
)
#: What a copy's configuration lacks: where another class would find code, and the name of its weights, which the copy changes.
NOT_COPIED = ("auto_map", "transformers_weights")


def find_target(model: str, revision: str | None = None) -> Path:
    """The folder of a target, downloaded where it is on the Hub.

    Raises:
        ValueError: It is no causal model of transformers, AlignBeam refuses its generation settings, or it lacks whole weights.
        OSError: It cannot be downloaded.
    """
    if revision is not None and os.path.isdir(model):
        raise ValueError(f"`revision` must be left out for a folder, got {revision!r} for {model}. A folder has one version.")
    with explain_load_errors(model):
        source = Path(
            model if os.path.isdir(model) else snapshot_download(model, revision=revision, allow_patterns=[*DOWNLOADED])
        )
    if (source / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"`model` must be a causal language model, but {model} is an adapter, and no loader of adapters loads a guard. Merge "
            f"it into its base, or add a strategy that each call names: alignbeam publish alignbeam --to {model}"
        )
    with explain_load_errors(model):
        check_kind("model", model, PreTrainedConfig.get_config_dict(source)[0])
    check_settings(model, _generation(source))
    weights = weights_files(source)
    if not weights:
        raise ValueError(
            f"`model` must hold weights that transformers finds, but {model} has none of {', '.join(WEIGHTS_FILES)}."
        )
    check_own(source, [*model_files(source), *named_files(source, LICENSE_FILES)])
    check_weights(source / name for name in weights)
    return source


def write_target(source: Path, folder: Path, protection: Mapping[str, Any], linked: bool) -> None:
    """Write a target's files into a copy, and beside its generation settings those of its guard.

    Args:
        source: The target's folder.
        folder: The copy's folder.
        protection: The settings of its guard.
        linked: Whether the files are links, for a folder that is uploaded at once.
    """
    (folder / TARGET_FOLDER).mkdir(parents=True)
    config = {key: value for key, value in _json(source / "config.json").items() if key not in NOT_COPIED}
    _write_json(folder / TARGET_FOLDER / TARGET_CONFIG, config)
    weights = weights_files(source)[0]
    for file in [*model_files(source), *named_files(source, LICENSE_FILES)]:
        name = file.relative_to(source).as_posix()
        if name != "config.json":
            copy_file(file, folder / TARGET_FOLDER / (_variant(name) if name == weights else name), linked)
    for file in named_files(source, TOKENIZER_FILES):  # where tokenizers are looked for
        copy_file(file, folder / file.relative_to(source), linked)
    _write_json(folder / "generation_config.json", {**_generation(source), PROTECTION_KEY: protection})


def _variant(name: str) -> str:
    """The name of a copy's file of weights, which one that its configuration has named loses."""
    stem, _, kind = next(known for known in WEIGHTS_FILES if name.endswith(known.partition(".")[2])).rpartition(".")
    return f"{stem}.{TARGET_VARIANT}.{kind}"


def _generation(source: Path) -> dict[str, Any]:
    """A target's generation settings: where it has no generation config, transformers takes those of its configuration."""
    file = source / "generation_config.json"
    if file.is_file():
        settings = _json(file)
    else:
        settings = GenerationConfig.from_pretrained(source, "config.json", _from_model_config=True).to_diff_dict()
    settings.pop("_from_model_config", None)  # if it is set, transformers 5.23 drops every key that it does not know
    return settings


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} must hold a JSON object: {error}. Mend it.") from error


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, default=asdict) + "\n", "utf-8")
