"""The base model under a target's adapters: the same weights with the adapters turned off.

Knows peft's adapter layers by their properties, whether peft or transformers added them. Imports no peft.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

#: LoRA initializations that change the weights under the adapter.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def base_of(model: torch.nn.Module) -> PreTrainedModel:
    """Return the decoder inside a `PeftModel`; a model that carries its adapters itself is returned as it is.

    Raises:
        ValueError: The model has no adapters, they are merged into its weights, or turning them off does not give the base.
    """
    wrapped = hasattr(model, "get_base_model")
    layers = adapter_layers(model)
    configs = list((getattr(model, "peft_config", None) or {}).values())
    if not layers and not (wrapped and any(config.is_prompt_learning for config in configs)):
        raise ValueError(
            f'`model` must carry an adapter for `anchor="base"`, got {type(model).__name__} without one that can be turned '
            "off (or merged into its weights). Load it with peft, or give the safe model itself as `anchor`."
        )
    if any(getattr(layer, "merged", False) for layer in layers):
        raise ValueError(
            '`model` must keep its adapters apart for `anchor="base"`, but they are merged into its weights. Call '
            "`unmerge_adapter()`, or give the safe model itself as `anchor`."
        )
    for config in configs:
        init, bias = getattr(config, "init_lora_weights", True), getattr(config, "bias", "none")
        if bias != "none" or str(init).startswith(CHANGES_BASE):
            raise ValueError(
                f'`model` must leave the weights under its adapter as they were for `anchor="base"`, but with bias={bias!r} and '
                f"init_lora_weights={init!r} they were changed. Give the safe model itself as `anchor`."
            )
    return cast(PreTrainedModel, model.get_base_model() if wrapped else model)  # type: ignore[operator]


def n_embeddings(model: PreTrainedModel) -> int:
    """The number of rows in a model's embedding table, which adapters may have wrapped (peft 0.21)."""
    tables = model.get_input_embeddings().modules()
    return int(next(table.num_embeddings for table in tables if hasattr(table, "num_embeddings")))  # type: ignore[arg-type]


def adapter_layers(model: torch.nn.Module) -> list[Any]:
    """Return every layer of a model that has adapters to turn off."""
    return [module for module in model.modules() if isinstance(getattr(type(module), "disable_adapters", None), property)]


@contextmanager
def adapters_off(layers: Sequence[Any]) -> Iterator[None]:
    """Turn off the adapters of some layers inside a `with` block; blocks may be nested, and restore the state on leaving.

    This sets peft's own flag: `enable_adapters` would also mark every active adapter as trainable, and `disable_adapter`
    visits every module of the model each time (peft 0.21).

    Args:
        layers: The `adapter_layers` of a model.

    Raises:
        RuntimeError: A layer ignores the flag.
    """
    on = [layer for layer in layers if not layer.disable_adapters]
    try:
        for layer in on:
            layer._disable_adapters = True
        if not all(layer.disable_adapters for layer in on):
            raise RuntimeError("Adapters must be off while the base is the anchor, but this version of peft leaves them on.")
        yield
    finally:
        for layer in on:
            layer._disable_adapters = False


class OneThread:
    """Refuses a call while another thread is in one: adapters are turned off for all threads, so both would be wrong.

    Args:
        model: The model whose adapters are turned off; all objects of one model share its calls.
    """

    #: By model, the calls in progress and the thread of each.
    _calls: ClassVar[WeakKeyDictionary[torch.nn.Module, dict[object, threading.Thread]]] = WeakKeyDictionary()
    #: Reentrant, because garbage collection may end a call while another one begins.
    _lock: ClassVar[threading.RLock] = threading.RLock()

    def __init__(self, model: torch.nn.Module):
        self._model = model

    def claim(self) -> Callable[[], None]:
        """Begin a call in the current thread.

        Returns:
            A function that ends the call.

        Raises:
            RuntimeError: Another thread is in a call.
        """
        current, call = threading.current_thread(), object()
        with self._lock:
            calls = self._calls.setdefault(self._model, {})
            for owner in list(calls.values()):
                if owner is not current and owner.is_alive():
                    raise RuntimeError(
                        f"A model whose base is its anchor must be used by one thread at a time, got {current.name} while "
                        f"{owner.name} is in a call, or holds the error of one: adapters are turned off for all of them. Load "
                        "the base as a model of its own and give it as `anchor`."
                    )
            calls[call] = current

        def release() -> None:
            calls.pop(call, None)

        return release
