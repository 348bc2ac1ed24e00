"""What tells a model from others: a hash of its parameters.

Knows parameters and where accelerate has put them. Knows no prompt."""

import hashlib
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

#: How many numbers of a parameter tell it from another's, about.
N_TOLD = 1024


@torch.no_grad()
def model_sha256(model: PreTrainedModel) -> str:
    """What tells a model from others, its fine-tunes and adapters among them, whatever dtype it was loaded in.

    The hash of its parameters' names and shapes, of its whole embedding table, and of some numbers of every other
    parameter, evenly spaced. What is offloaded is read from where it lies.
    """
    embedding: Any = model.get_input_embeddings()
    told = hashlib.sha256()
    for name, weight in model.named_parameters():
        if name in model.all_tied_weights_keys:  # by one name in memory, by two where it is offloaded
            continue
        told.update(f"{name} {tuple(weight.shape)}".encode())
        numbers = _flat(_where_it_lies(model, name, weight).detach())
        if weight is not embedding.weight:
            numbers = numbers[:: max(1, len(numbers) // N_TOLD)]
        told.update(numbers.float().cpu().contiguous().numpy().tobytes())
    return told.hexdigest()


def _where_it_lies(model: PreTrainedModel, name: str, weight: Tensor) -> Tensor:
    """A parameter's numbers: what accelerate has offloaded lies with the hook of a module above it, and is empty elsewhere."""
    if weight.device.type != "meta":
        return weight
    parts = name.split(".")
    for n in range(len(parts)):
        hook: Any = getattr(model.get_submodule(".".join(parts[:n])), "_hf_hook", None)
        for each in getattr(hook, "hooks", [hook]):
            lies = (getattr(each, "weights_map", None) or {}).get(".".join(parts[n:]))
            if lies is not None:
                return torch.as_tensor(lies)
    return weight


def _flat(weight: Tensor) -> Tensor:
    try:
        return weight.flatten()
    except NotImplementedError:  # quantised weights that are not to be seen as other shapes (torchao 0.18)
        return weight.dequantize().flatten()
