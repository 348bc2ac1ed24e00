"""Fingerprints: of a model, the same in any dtype and wherever it is offloaded; and of a callable, by what decides its answers.

Knows parameters, where accelerate stores them and which adapters are on, and what a callable consists of. Knows no prompt, and
no class of ours.
"""

import dataclasses
import functools
import hashlib
import io
import pickle
import re
import sys
from collections.abc import Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.inference.adapters import adapter_layers

#: About how many numbers of each parameter enter the hash.
N_SAMPLED = 1024
#: Attributes that Python and abstract classes add to a class.
ADDED = re.compile("__.*__|_abc_impl")


@torch.no_grad()
def model_sha256(model: PreTrainedModel) -> str:
    """Hash a model, so that it differs from its fine-tunes and from itself with another adapter.

    The hash covers the names and shapes of all parameters and of all buffers that are saved with the model, the whole embedding
    table, and some evenly spaced numbers of every other tensor. Offloaded tensors are read from where accelerate stores them. Of
    each layer with adapters, the hash covers which ones are active or merged, and their scaling.
    """
    embedding: Any = model.get_input_embeddings()
    digest = hashlib.sha256()
    for name, weight in (*model.named_parameters(), *_saved_buffers(model)):
        if name in model.all_tied_weights_keys:  # a tied weight has one name in memory, and two if it is offloaded
            continue
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        numbers = _flat(_stored_weight(model, name, weight).detach())
        if weight is not embedding.weight:
            numbers = numbers[:: max(1, len(numbers) // N_SAMPLED)]
        digest.update(numbers.float().cpu().contiguous().numpy().tobytes())
    for layer in adapter_layers(model):
        scaling = sorted(vars(layer).get("scaling", {}).items())
        digest.update(f"{layer.active_adapters} {layer.disable_adapters} {layer.merged_adapters} {scaling}".encode())
    return digest.hexdigest()


def _saved_buffers(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The buffers that are saved with a model, by name: quantized weights among them. Its configuration gives the others."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, buffer


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
    """A name and a hash of a judge or another callable, the same in every process: another hash where its answers may differ.

    An object with an attribute `identity` says itself what decides: a text, other values, or the judge that it wraps. Of any
    other, all that it consists of enters the hash: the code of functions and of a user's classes, the values that they close
    over or read from a user's module, and the attributes of objects. One that changes as it is used becomes another one.

    Raises:
        ValueError: It holds something that cannot be distinguished from another, such as a lock, and says nothing itself.
    """
    own = getattr(value, "identity", None)
    if callable(own):
        return identity(own)
    name = getattr(value, "__qualname__", type(value).__qualname__)
    try:
        return f"{name} {_digest(value)[:16]}"
    except Exception as error:  # pickling runs the code of any class
        raise ValueError(
            "A judge, `accept` or another object must be one that a resumed search can tell from another, but "
            f"{name} is not: {type(error).__name__}, {error}. Give it an attribute `identity`, a text that says what it decides; "
            "or search without a folder."
        ) from error


def _digest(value: Any) -> str:
    file = io.BytesIO()
    _Parts(file, protocol=4).dump(value)
    return hashlib.sha256(file.getvalue()).hexdigest()


class _Parts(pickle.Pickler):
    """Writes all that an object consists of, also what pickle writes by name only, and nothing that differs between processes."""

    def __init__(self, file: io.BytesIO, protocol: int):
        super().__init__(file, protocol)
        self._written: list[Any] = []  # functions and classes, which may hold themselves

    def persistent_id(self, value: Any) -> Any:
        """What is written in place of a value; None for what pickle itself writes in full."""
        if not isinstance(value, type | ModuleType) and (own := _own_identity(value)) is not None:
            return "identity", type(value), own
        if isinstance(value, FunctionType) or (isinstance(value, type) and not _is_installed(value.__module__)):
            if any(value is each for each in self._written):
                return "written", value.__qualname__
            self._written.append(value)
            return _function(value) if isinstance(value, FunctionType) else _class(value)
        if isinstance(value, type | ModuleType):
            return "named", value.__name__
        if isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, type | ModuleType | None):
            return "named", value.__qualname__
        if isinstance(value, torch.nn.Module):
            is_whole = hasattr(value, "all_tied_weights_keys")
            return "model", model_sha256(cast(PreTrainedModel, value)) if is_whole else (type(value), value.state_dict())
        if isinstance(value, Tensor):
            numbers = value.detach().float().cpu().contiguous().numpy().tobytes()
            return "tensor", str(value.dtype), tuple(value.shape), hashlib.sha256(numbers).digest()
        if isinstance(value, PreTrainedTokenizerBase):
            return "tokenizer", type(value).__name__, len(value), value.chat_template
        if isinstance(value, set | frozenset):  # their order differs between processes
            return "set", sorted(map(_digest, value))
        if isinstance(value, CodeType):
            return "code", value.co_code, value.co_consts, value.co_names
        if isinstance(value, property | staticmethod | classmethod):
            return "method", value.fget if isinstance(value, property) else value.__func__
        if isinstance(value, functools.cached_property) or hasattr(value, "cache_info"):  # what is kept decides nothing
            return "cached", getattr(value, "func", None) or value.__wrapped__
        if dataclasses.is_dataclass(value):
            return "fields", type(value), [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return None


def _own_identity(value: Any) -> Any:
    """What a value says itself of what decides; None where it says nothing."""
    own = vars(value).get("identity") if hasattr(value, "__dict__") else None
    own = value.identity if own is None and hasattr(type(value), "identity") else own
    return None if isinstance(own, bool) else own  # the answer to another question


def _function(function: FunctionType) -> Any:
    """A function's code, with the values that it reads: of its closure, its defaults, and its module if that is a user's."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    names = [] if _is_installed(function.__module__) else sorted(_names(function.__code__))
    values = [(name, function.__globals__[name]) for name in names if name in function.__globals__]
    modules = [each for _, each in values if isinstance(each, ModuleType) and not _is_installed(each.__name__)]
    values += [(name, vars(each)[name]) for each in modules for name in names if name in vars(each)]
    return "function", function.__qualname__, function.__code__, cells, function.__defaults__, function.__kwdefaults__, values


def _class(cls: type) -> Any:
    """A user's class, with its methods and its other attributes, but without what Python adds to it."""
    own = [(name, each) for name, each in vars(cls).items() if isinstance(each, FunctionType) or not ADDED.fullmatch(name)]
    return "class", cls.__qualname__, cls.__bases__, own


def _names(code: CodeType) -> set[str]:
    """The names that a function reads, and those of the functions inside it."""
    return set(code.co_names).union(*(_names(each) for each in code.co_consts if isinstance(each, CodeType)))


def _is_installed(module: str | None) -> bool:
    """Whether a module is of Python, of this package or of another installed one, and not of the user's own code."""
    root = str(module).partition(".")[0]
    path = getattr(sys.modules.get(str(module)), "__file__", None) or ""
    return root in sys.stdlib_module_names - {"__main__"} or root == __name__.partition(".")[0] or "-packages" in path
