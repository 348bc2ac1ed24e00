"""The model under a target's adapters: the same weights, with the adapters off for the length of a block.

Knows peft's adapter layers by what they can do, whether peft or transformers put them there; imports no peft.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import PreTrainedModel


def base_of(model: torch.nn.Module) -> PreTrainedModel:
    """The decoder inside a `PeftModel`; a model that carries its adapters itself is its own.

    Raises:
        ValueError: The model has no adapters, or they are merged into its weights.
    """
    wrapped = hasattr(model, "get_base_model")
    layers = adapter_layers(model)
    if not wrapped and not layers:
        raise ValueError(
            f'`model` must carry an adapter for `anchor="base"`, got {type(model).__name__} without one. Load it with '
            "peft, or give the safe model itself as `anchor`."
        )
    if any(getattr(layer, "merged", False) for layer in layers):
        raise ValueError(
            '`model` must keep its adapters apart for `anchor="base"`, but they are merged into its weights. Call '
            "`unmerge_adapter()`, or give the safe model itself as `anchor`."
        )
    return cast(PreTrainedModel, model.get_base_model() if wrapped else model)  # type: ignore[operator]


def adapter_layers(model: torch.nn.Module) -> list[Any]:
    """Every layer in a model that an adapter can be turned off in."""
    return [module for module in model.modules() if isinstance(getattr(type(module), "disable_adapters", None), property)]


@contextmanager
def adapters_off(layers: Sequence[Any]) -> Iterator[None]:
    """Turn off the adapters in some layers; blocks may be nested, and leave everything as they found it.

    The flag is set as it is: peft's `enable_adapters` also marks every active adapter as trainable, and its
    `disable_adapter` takes as long as the forward of a small model (peft 0.21).

    Args:
        layers: The `adapter_layers` of a model.

    Raises:
        RuntimeError: A layer does not take the flag.
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
    """Refuses a second thread while one is in a call: adapters are off for every thread alike, so both would be wrong."""

    def __init__(self) -> None:
        self._owner: threading.Thread | None = None

    def claim(self, over: bool) -> None:
        """Say that the current thread is in a call, or that it needs the adapters off no more.

        Raises:
            RuntimeError: Another thread is in one.
        """
        me, owner = threading.current_thread(), self._owner
        if owner is not None and owner is not me and owner.is_alive():
            raise RuntimeError(
                f'A guard with `anchor="base"` must be used by one thread at a time, got {me.name} while {owner.name} is in a '
                "call: adapters are turned off for all of them. Load the base as a model of its own and give it as `anchor`."
            )
        self._owner = None if over else me
