"""The model under a target's adapters: the same weights, with the adapters off for the length of a block.

Knows peft's adapter layers by what they can do, whether peft or transformers put them there; imports no peft.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

#: Ways to start a LoRA that take their share out of the weights under it.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def base_of(model: torch.nn.Module) -> PreTrainedModel:
    """The decoder inside a `PeftModel`; a model that carries its adapters itself is its own.

    Raises:
        ValueError: The model has no adapters, they are merged into its weights, or taking them off does not give the base.
    """
    wrapped = hasattr(model, "get_base_model")
    layers = adapter_layers(model)
    settings = list((getattr(model, "peft_config", None) or {}).values())
    if not layers and not (wrapped and any(some.is_prompt_learning for some in settings)):
        raise ValueError(
            f'`model` must carry an adapter for `anchor="base"`, got {type(model).__name__} without one that can be turned '
            "off (or merged into its weights). Load it with peft, or give the safe model itself as `anchor`."
        )
    if any(getattr(layer, "merged", False) for layer in layers):
        raise ValueError(
            '`model` must keep its adapters apart for `anchor="base"`, but they are merged into its weights. Call '
            "`unmerge_adapter()`, or give the safe model itself as `anchor`."
        )
    for some in settings:
        start, bias = getattr(some, "init_lora_weights", True), getattr(some, "bias", "none")
        if bias != "none" or str(start).startswith(CHANGES_BASE):
            raise ValueError(
                f'`model` must leave the weights under its adapter as they were for `anchor="base"`, but with bias={bias!r} and '
                f"init_lora_weights={start!r} they were changed. Give the safe model itself as `anchor`."
            )
    return cast(PreTrainedModel, model.get_base_model() if wrapped else model)  # type: ignore[operator]


def adapter_layers(model: torch.nn.Module) -> list[Any]:
    """Every layer in a model that an adapter can be turned off in."""
    return [module for module in model.modules() if isinstance(getattr(type(module), "disable_adapters", None), property)]


@contextmanager
def adapters_off(layers: Sequence[Any]) -> Iterator[None]:
    """Turn off the adapters in some layers; blocks may be nested, and leave everything as they found it.

    The flag is set as it is: peft's `enable_adapters` also marks every active adapter as trainable, and its
    `disable_adapter` walks the whole model each time (peft 0.21).

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
    """Refuses a second thread while one is in a call: adapters are off for every thread alike, so both would be wrong.

    Args:
        model: Whose adapters are turned off, whatever guards it has.
    """

    #: By model, the calls that are under way and the thread of each.
    _calls: ClassVar[WeakKeyDictionary[torch.nn.Module, dict[object, threading.Thread]]] = WeakKeyDictionary()
    #: Reentrant, for a call may be found to have ended while another one begins.
    _lock: ClassVar[threading.RLock] = threading.RLock()

    def __init__(self, model: torch.nn.Module):
        self._model = model

    def claim(self) -> Callable[[], None]:
        """Say that the current thread has begun a call.

        Returns:
            What says that it has ended.

        Raises:
            RuntimeError: Another thread is in one.
        """
        me, call = threading.current_thread(), object()
        with self._lock:
            calls = self._calls.setdefault(self._model, {})
            for owner in list(calls.values()):
                if owner is not me and owner.is_alive():
                    raise RuntimeError(
                        f"A model whose base is its anchor must be used by one thread at a time, got {me.name} while "
                        f"{owner.name} is in a call: adapters are turned off for all of them. Load the base as a model of its "
                        "own and give it as `anchor`."
                    )
            calls[call] = me

        def release() -> None:
            calls.pop(call, None)

        return release
