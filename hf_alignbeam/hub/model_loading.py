"""Models by their ids, and what is built of them: loaded once, kept for the life of the process.

Knows ids, folders and `from_pretrained`. Knows no argument of `generate`.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import HTTPError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_alignbeam.inference.engines import input_device

#: How many guards, strategies and judges are kept; the one that was not needed for longest goes first.
N_KEPT = 16

_loaded: dict[tuple[object, ...], Any] = {}
_built: OrderedDict[tuple[object, ...], tuple[object, Any]] = OrderedDict()
_lock = threading.RLock()


def load_anchor(
    anchor: Any, revision: str | None, model: PreTrainedModel, tokenizer: Any, anchor_tokenizer: Any = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """An anchor and its tokenizer: loaded once by its id or folder, to where the target is; else as it was given."""
    if isinstance(anchor, str) and anchor == "base":
        return anchor, tokenizer
    if not isinstance(anchor, str):
        if anchor_tokenizer is None:
            raise ValueError("`anchor_tokenizer` must be given with a loaded anchor, got None. Or name the anchor by its id.")
        return anchor, anchor_tokenizer
    return load_once(AutoModelForCausalLM, anchor, revision, input_device(model))


def load_model(
    name: str | Path,
    auto: Any = AutoModelForCausalLM,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: torch.device | None = None,
    **placement: Any,
) -> Any:
    """Load a model in evaluation mode by one of transformers' auto classes.

    Args:
        name: A folder or a Hub id.
        auto: The auto class.
        revision: The revision of the Hub repository.
        dtype: The dtype of the weights; `auto` is the checkpoint's.
        device: Its device; None leaves it where `placement` puts it.
        placement: Further arguments of `from_pretrained`.
    """
    model = auto.from_pretrained(name, revision=revision, dtype=dtype, **placement)
    return (model if device is None else model.to(device)).eval()


def auto_class_of(name: str | Path, revision: str | None = None) -> Any:
    """The auto class for a checkpoint: a sequence classifier's where its configuration says so, else a causal model's."""
    classifies = "SequenceClassification" in str(AutoConfig.from_pretrained(name, revision=revision).architectures)
    return AutoModelForSequenceClassification if classifies else AutoModelForCausalLM


def load_once(auto: Any, name: str, revision: str | None, device: torch.device) -> tuple[Any, PreTrainedTokenizerBase]:
    key = (name, revision, str(device))
    with _lock:
        if key not in _loaded:
            with explain_load_errors(name):
                network = load_model(name, auto, revision, device=device)
                _loaded[key] = network, AutoTokenizer.from_pretrained(name, revision=revision)
        return cast(tuple[Any, PreTrainedTokenizerBase], _loaded[key])


@contextmanager
def explain_load_errors(name: str) -> Iterator[None]:
    """Say which model it is that cannot be loaded, and what to do: where the Hub does not answer, transformers 5.23 does not."""
    try:
        yield
    except (OSError, HTTPError) as error:  # the latter where a connection breaks
        raise OSError(
            f"{name} could not be loaded, and nothing is guarded without it: {error}\nSee that it is there, that the Hub can be "
            "reached, and that you may read it (`hf auth login` or HF_TOKEN)."
        ) from error


def tokenizer_of(model: PreTrainedModel, tokenizer: Any) -> Any:
    """The tokenizer that was given, or the one that lies beside the model."""
    if tokenizer is not None:
        return tokenizer
    name = model.config.name_or_path
    if not name:
        raise ValueError("`tokenizer` must be given for a model that was not loaded from anywhere, got None.")
    with _lock:
        key = ("tokenizer", name)
        if key not in _loaded:
            _loaded[key] = AutoTokenizer.from_pretrained(name, trust_remote_code=False)  # None would ask at a terminal
        return _loaded[key]


def build_once(owner: object, key: tuple[object, ...], build: Callable[[], Any]) -> Any:
    """What was built for an owner under a key, built now if it was not; both are kept alive, so that no id is used twice."""
    key = (id(owner), *key)
    with _lock:
        if key not in _built:
            _built[key] = owner, build()
        _built.move_to_end(key)
        while len(_built) > N_KEPT:
            _built.popitem(last=False)
        return _built[key][1]


def settings_key(settings: Mapping[str, Any]) -> Sequence[tuple[str, object]]:
    """Settings as a part of a key; what cannot be compared is told by what it is."""
    return [(name, value if value.__hash__ else id(value)) for name, value in sorted(settings.items())]
