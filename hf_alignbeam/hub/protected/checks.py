"""Checks of what a protected copy is made of: a copy that could not be loaded, or that refused every call, is not written.

Knows which models transformers has, whole files of weights, and how a guard is built. Writes nothing.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_alignbeam.decoding.strategy import AlignBeam
from hf_alignbeam.hub.judge_loading import judge_settings, load_judge
from hf_alignbeam.hub.model_loading import explain_load_errors, load_once
from hf_alignbeam.hub.protected.model import ProtectedConfig
from hf_alignbeam.hub.shared_arguments import setting_names
from hf_alignbeam.steering.refused_arguments import check_generation_config


def check_kind(argument: str, name: str, config: Mapping[str, Any]) -> None:
    """Check a model by its configuration: whether transformers has its class and, but for a judge, whether it generates text.

    Args:
        argument: What the model is given as: `model`, `anchor` or `judge`.
        name: Its folder or Hub id.
        config: The contents of its `config.json`.

    Raises:
        ValueError: It is a protected copy, its class is not one of transformers, or it is no causal language model.
    """
    model_type, architectures = config.get("model_type"), config.get("architectures") or ()
    if model_type == ProtectedConfig.model_type:
        raise ValueError(
            f"`{argument}` must be a model without a guard of its own, but {name} is a protected copy. Name its target."
        )
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"`{argument}` must be of a class that transformers has, but {name} has the model type {model_type!r}. Code of "
            "its own is not run. Use another model, or a newer release of transformers."
        )
    known = {*architectures} & {*dir(transformers)}  # a name of no class says nothing
    has_other_head = bool(known) and known.isdisjoint(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if argument != "judge" and (has_other_head or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        raise ValueError(
            f"`{argument}` must be a causal language model, but {name} has the architectures "
            f"{' '.join(architectures) or 'none'!r} and the model type {model_type!r}. Use another model."
        )


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Check the generation settings of a target.

    Args:
        name: Its folder or Hub id.
        settings: The contents of its `generation_config.json`.

    Raises:
        ValueError: With one of them, AlignBeam would refuse every call.
    """
    try:
        check_generation_config(GenerationConfig.from_dict(dict(settings)))
    except ValueError as error:
        raise ValueError(
            f"`model` must have generation settings with which it can be guarded, but in the generation_config.json of {name}: "
            f"{error} Leave it out there."
        ) from error


def check_weights(files: Iterable[Path]) -> None:
    """Check that files of weights are whole, without loading them.

    Raises:
        ValueError: A file is a pointer of Git LFS, cut off, or something else.
        OSError: A file is missing.
    """
    for file in files:
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, "pt"):
                    pass
            elif file.suffix == ".bin":
                torch.load(file, map_location="meta", weights_only=True)
        except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
            raise ValueError(
                f"A model's weights must be whole, but {file} is cut off, or a pointer of Git LFS: {error}. Download it again."
            ) from error


def check_guard(model: str, folder: Path, protection: Mapping[str, Any]) -> None:
    """Build a copy's guard, as loading the copy does: its anchor and its judge are loaded, on a GPU where there is one.

    Args:
        model: The target's folder or Hub id.
        folder: The copy's folder.
        protection: The guard's models and settings.

    Raises:
        ValueError: The tokenizer, the anchor, the judge and the settings do not go together.
        OSError: The anchor or the judge cannot be loaded.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with explain_load_errors(f"The tokenizer of {model}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    anchor = load_once(AutoModelForCausalLM, protection["anchor"], protection.get("anchor_revision"), device)
    judge = load_judge(protection["judge"], judge_settings(protection), device)
    settings = {name: value for name, value in protection.items() if name in setting_names(AlignBeam)}
    AlignBeam(*anchor, tokenizer, judge, **settings)
