"""Fingerprints: of a model, the same in any dtype and wherever it is offloaded; and of a callable, by what decides its answers.

Knows parameters and where accelerate stores them; functions, and objects by their settings. Knows no prompt.
"""

import dis
import functools
import hashlib
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: About how many numbers of each parameter enter the hash.
N_SAMPLED = 1024
#: Arguments of judges that say how one is asked, or that another attribute holds the outcome of.
NOT_DECISIVE = {"batch_size", "exchanges", "key_variable", "max_concurrency", "max_retries", "max_size", "probe", "timeout"}
#: Methods that change a container in place: what a function calls them on is a log or a cache, not a setting.
MUTATORS = {"add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "setdefault", "update"}


@torch.no_grad()
def model_sha256(model: PreTrainedModel) -> str:
    """Hash a model, so that it differs from its fine-tunes and from itself with an adapter.

    The hash covers the names and shapes of all parameters, the whole embedding table, and some evenly spaced numbers of every
    other parameter. Offloaded parameters are read from where accelerate stores them.
    """
    embedding: Any = model.get_input_embeddings()
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if name in model.all_tied_weights_keys:  # a tied weight has one name in memory, and two if it is offloaded
            continue
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        numbers = _flat(_stored_weight(model, name, weight).detach())
        if weight is not embedding.weight:
            numbers = numbers[:: max(1, len(numbers) // N_SAMPLED)]
        digest.update(numbers.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _stored_weight(model: PreTrainedModel, name: str, weight: Tensor) -> Tensor:
    """A parameter's numbers. If accelerate has offloaded them, the hook of a module above holds them; the weight is empty."""
    if weight.device.type != "meta":
        return weight
    parts = name.split(".")
    for n in range(len(parts)):
        module_hook: Any = getattr(model.get_submodule(".".join(parts[:n])), "_hf_hook", None)
        for hook in getattr(module_hook, "hooks", [module_hook]):
            stored = (getattr(hook, "weights_map", None) or {}).get(".".join(parts[n:]))
            if stored is not None:
                return torch.as_tensor(stored)
    return weight


def _flat(weight: Tensor) -> Tensor:
    try:
        return weight.flatten()
    except NotImplementedError:  # quantized weights that cannot be reshaped (torchao 0.18)
        return weight.dequantize().flatten()


def identity(value: Any) -> str:
    """A name and a hash of a judge or another callable: another hash where its answers may differ.

    The hash covers the code of functions, with the values that they close over, their module's own values and defaults; and an
    object's class with what its constructor was given, models by `model_sha256`. What functions themselves change, such as
    counters and logs, does not count, nor does how a judge is asked (`NOT_DECISIVE`). An object with an attribute `identity`
    says itself what decides: a text or a number, or the judge that it wraps.
    """
    if callable(own := getattr(value, "identity", None)):
        return identity(own)
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{name} {hashlib.sha256(json.dumps(_described(value), sort_keys=True).encode()).hexdigest()[:16]}"


def _described(value: Any, outer: tuple[int, ...] = ()) -> Any:
    """A value as JSON can hold it, the same in every process. `outer` holds the ids of what it is a part of."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in outer:
        return "itself"
    inner = functools.partial(_described, outer=(*outer, id(value)))
    if isinstance(value, type | ModuleType):
        return value.__name__
    if (own := getattr(value, "identity", None)) is not None:
        return inner(own)
    if isinstance(value, Mapping):
        return [[inner(key), inner(each)] for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [inner(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted((inner(each) for each in value), key=json.dumps)
    if isinstance(value, Tensor):
        return [list(value.shape), hashlib.sha256(value.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()]
    if isinstance(value, torch.nn.Module):
        is_whole = hasattr(value, "all_tied_weights_keys")
        return model_sha256(cast(PreTrainedModel, value)) if is_whole else [_class(value), inner(value.state_dict())]
    if isinstance(value, PreTrainedTokenizerBase):
        return [type(value).__name__, len(value), value.chat_template]
    if isinstance(value, functools.partial):
        return [inner(value.func), inner(value.args), inner(value.keywords)]
    if isinstance(value, MethodType):
        return [value.__name__, inner(value.__self__)]
    if isinstance(value, FunctionType):
        return [value.__qualname__, _code(value.__code__), inner(_constants(value)), inner(value.__defaults__)]
    if isinstance(value, CodeType):
        return _code(value)
    return [_class(value), inner(_settings(value)) if hasattr(value, "__dict__") else str(value)]


def _code(code: CodeType) -> Any:
    return [code.co_code.hex(), _described(code.co_consts), code.co_names]


def _constants(function: FunctionType) -> dict[str, Any]:
    """The values that a function reads and does not change: of its closure, of its module if that is a user's, its keywords'."""
    changed = _changed_names(function.__code__)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    values = {name: cell.cell_contents for name, cell in cells.items() if name not in changed}
    if not _is_installed(function.__module__):
        names = {name for code in _all_code(function.__code__) for name in code.co_names} - changed
        values |= {name: function.__globals__[name] for name in sorted(names & set(function.__globals__))}
    return {**values, **(function.__kwdefaults__ or {})}


def _class(value: Any) -> Any:
    """An object's class, with the code of its methods if it is a user's."""
    methods = {} if _is_installed(type(value).__module__) else _methods(type(value))
    return [type(value).__qualname__, {name: _code(method.__code__) for name, method in sorted(methods.items())}]


def _settings(value: Any) -> dict[str, Any]:
    """What an object's constructor was given, by its attributes of these names; without them, what its methods do not change."""
    attributes = vars(value)
    arguments = [name for name in _arguments(type(value)) if name not in NOT_DECISIVE]
    stored = [next((kept for kept in (name, f"_{name}") if kept in attributes), None) for name in arguments]
    if None in stored:
        methods = [method for name, method in _methods(type(value)).items() if name != "__init__"]
        changed = {name for method in methods for name in _changed_names(method.__code__)}
        stored = sorted(set(attributes) - changed)
    return {name: attributes[name] for name in stored if name is not None}


def _arguments(cls: type) -> list[str]:
    try:
        return list(inspect.signature(cls).parameters)
    except (TypeError, ValueError):  # a class that is not written in Python
        return []


def _methods(cls: type) -> dict[str, FunctionType]:
    inherited = [vars(each) for each in reversed(cls.__mro__) if not _is_installed(each.__module__)]
    return {name: each for own in inherited for name, each in own.items() if isinstance(each, FunctionType)}


def _is_installed(module: str | None) -> bool:
    """Whether a module is of Python, of this package or of another installed one, and not of the user's own code."""
    root = str(module).partition(".")[0]
    path = getattr(sys.modules.get(str(module)), "__file__", None) or ""
    return root in sys.stdlib_module_names - {"__main__"} or root == __name__.partition(".")[0] or "-packages" in path


def _all_code(code: CodeType) -> Iterator[CodeType]:
    """A code object, and those of the functions inside it."""
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _all_code(each)


def _changed_names(code: CodeType) -> set[str]:
    """The variables and attributes that a function assigns, or changes in place."""
    changed = set()
    for each in _all_code(code):
        steps = list(dis.get_instructions(each))
        for step, after, second in zip(steps, [*steps[1:], *steps[:1]], [*steps[2:], *steps[:2]], strict=True):
            is_load = step.opname.startswith("LOAD_") and isinstance(step.argval, str)
            calls = is_load and after.opname in ("LOAD_ATTR", "LOAD_METHOD") and after.argval in MUTATORS
            sets_item = is_load and after.opname.startswith("LOAD_") and second.opname in ("COPY", "STORE_SUBSCR")
            if step.opname in ("STORE_DEREF", "STORE_GLOBAL", "STORE_ATTR") or calls or sets_item:
                changed.add(step.argval)
    return changed
