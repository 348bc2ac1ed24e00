"""A fingerprint of a model: a hash of its parameters, the same in any dtype and wherever they are offloaded.

Knows parameters and where accelerate stores them. Knows no prompt.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

#: About how many numbers of each parameter enter the hash.
N_SAMPLED = 1024


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
