"""Models loaded by name, and the guards and judges built from them: both cached for the life of the process.

Knows Hub ids, folders and `from_pretrained`. Knows no argument of `generate`.
"""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import HTTPError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from hf_alignbeam.inference.engines import input_device

#: How many guards, strategies and judges are cached; the least recently used one is dropped first.
MAX_OBJECTS = 16

_models: dict[tuple[object, ...], Any] = {}
_objects: OrderedDict[tuple[object, ...], tuple[object, Any]] = OrderedDict()
_lock = threading.RLock()


def load_anchor(
    anchor: Any, revision: str | None, model: PreTrainedModel, tokenizer: Any, anchor_tokenizer: Any = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """An anchor and its tokenizer: given by name, loaded once onto the target's device; given as a model, returned as it is.

    Raises:
        ValueError: The anchor is a model, and its tokenizer is missing; or it is no name, and a revision is given.
    """
    if isinstance(anchor, str) and anchor != "base":
        network, own_tokenizer = load_once(AutoModelForCausalLM, anchor, revision, input_device(model))
        return network, own_tokenizer if anchor_tokenizer is None else anchor_tokenizer
    if revision is not None:
        raise ValueError(f"`anchor_revision` must be left out for an anchor that is not named, got {revision!r}. Load it so.")
    if anchor != "base" and anchor_tokenizer is None:
        raise ValueError("`anchor_tokenizer` must be given with a loaded anchor, got None. Or name the anchor by its id.")
    return anchor, tokenizer if anchor == "base" else anchor_tokenizer


def load_model(
    name: str | Path,
    auto: Any = AutoModelForCausalLM,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: torch.device | None = None,
    **placement: Any,
) -> Any:
    """Load a model in evaluation mode, by folder or Hub id, with one of transformers' auto classes; an adapter on its base.

    The dtype "auto" is the checkpoint's, whose own code is not run. `placement` holds further arguments of `from_pretrained`,
    which place the model where no `device` is given. Raises ValueError for a classifier in place of a decoder: its output layer
    would be random.
    """
    adapter = adapter_config(name, revision)
    base, base_revision = (name, revision) if adapter is None else base_of_adapter(name, adapter)
    try:
        model = auto.from_pretrained(base, revision=base_revision, dtype=dtype, trust_remote_code=False, **placement)
    except ValueError as error:
        if auto is not AutoModelForCausalLM or "Unrecognized configuration class" not in str(error):
            raise
        model = None
    if model is None or (auto is AutoModelForCausalLM and "Classification" in str(model.config.architectures)):
        raise ValueError(f"{name} must be a decoder that generates text, got another kind of model. Use a causal language model.")
    if adapter is not None:  # transformers 5.23 would look for the adapter's revision in its base's repository
        model.load_adapter(str(name), adapter_kwargs={"revision": revision})
        for weight in getattr(model.get_output_embeddings(), "parameters", list)():  # frozen, it is slow in bfloat16 (torch 2.13)
            weight.requires_grad_(weight.is_floating_point())
    return (model if device is None else model.to(device)).eval()


def load_tokenizer(name: str | Path, revision: str | None = None, **options: Any) -> Any:
    """Load a tokenizer, and run no code of its repository; for an adapter without one, load that of its base."""
    try:
        _check_pinned(name, revision)
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False, **options)
    except (OSError, ValueError):
        if (adapter := adapter_config(name, revision)) is None:
            raise
    return load_tokenizer(*base_of_adapter(name, adapter), **options)


def adapter_config(name: str | Path, revision: str | None = None) -> dict[str, Any] | None:
    """The configuration of an adapter's folder or repository; None for a model of its own."""
    _check_pinned(name, revision)
    file = None if (Path(name) / "config.json").is_file() else find_adapter_config_file(str(name), revision=revision)
    return None if file is None else cast(dict[str, Any], json.loads(Path(file).read_text("utf-8")))


def base_of_adapter(name: str | Path, adapter: Mapping[str, Any]) -> tuple[str, str | None]:
    """The base model that an adapter's configuration names, and its revision."""
    base, revision = adapter.get("base_model_name_or_path"), adapter.get("revision")
    if not base or adapter.get("peft_type") in ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"):
        raise ValueError(
            f"An adapter must change layers of a base that its adapter_config.json names, but {name} is "
            f"{adapter.get('peft_type')} on {base!r}. Load it with peft and give the model itself, or merge it into its base."
        )
    _check_pinned(base, revision)
    return str(base), revision


def _check_pinned(name: str | Path, revision: str | None) -> None:
    """Raise ValueError for a pinned Hub id that a folder of its name would stand in for: transformers loads folders first."""
    if revision is not None and Path(name).is_dir():
        raise ValueError(
            f"A revision must be left out for a folder, got {revision!r} for {name}, which is the folder {Path(name).resolve()} "
            "here. A folder has one version; for the Hub's model of its name, start elsewhere."
        )


def load_once(auto: Any, name: str, revision: str | None, device: torch.device) -> tuple[Any, PreTrainedTokenizerBase]:
    """A model and its tokenizer by Hub id or folder; later calls with the same name, revision and device return the same."""
    key = (os.path.abspath(name) if os.path.isdir(name) else name, revision, str(device))
    with _lock:
        if key not in _models:
            with explain_load_errors(name):
                _models[key] = load_model(name, auto, revision, device=device), load_tokenizer(name, revision)
        return cast(tuple[Any, PreTrainedTokenizerBase], _models[key])


@contextmanager
def explain_load_errors(name: str) -> Iterator[None]:
    """Add to an error the model's name and what to do: transformers 5.23 names neither where the Hub does not answer."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(f"{name} must be of a class that transformers has, for its own code is not run. Use another.") from error
    except (OSError, HTTPError) as error:  # an HTTPError where a connection breaks
        raise OSError(
            f"{name} could not be loaded, and nothing is guarded without it: {error}\nCheck that it exists, that the Hub can be "
            "reached, and that you may read it (`hf auth login` or HF_TOKEN)."
        ) from error


def tokenizer_for(model: PreTrainedModel, tokenizer: Any) -> Any:
    """The given tokenizer, or else the one in the folder or the commit of the repository that the model was loaded from."""
    if tokenizer is not None:
        return tokenizer
    name = model.config.name_or_path
    if not name:
        raise ValueError("`tokenizer` must be given for a model that was not loaded by name, got None.")
    revision = getattr(model.config, "_commit_hash", None)
    with _lock:
        key = ("tokenizer", os.path.abspath(name) if revision is None else name, revision)
        if key not in _models:
            _models[key] = load_tokenizer(name, revision)
        return _models[key]


def get_or_build(owner: object, key: tuple[object, ...], build: Callable[[], Any]) -> Any:
    """The object cached for an owner and a key, built now if there is none; the owner is kept too: no other gets its id."""
    key = (id(owner), *key)
    with _lock:
        if key not in _objects:
            _objects[key] = owner, build()
        _objects.move_to_end(key)
        while len(_objects) > MAX_OBJECTS:
            _objects.popitem(last=False)
        return _objects[key][1]


def cache_key(settings: Mapping[str, Any]) -> Sequence[tuple[str, object]]:
    """Settings as part of a cache's key; the id stands in for a value that is not hashable."""
    return [(name, value if value.__hash__ else id(value)) for name, value in sorted(settings.items())]
