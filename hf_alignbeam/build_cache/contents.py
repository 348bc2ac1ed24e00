"""Digests of all that a tokenizer's or a model's behavior depends on: equal ones are interchangeable, whichever object they are.

Knows tokenizers and models as objects in memory, which may have changed since they were loaded. Never looks at their files.
"""

import hashlib
import uuid

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_alignbeam.tokenization.backends import read_state

#: The module of the hooks that stay on a model once it was asked for its hidden states. They record, and change nothing.
_RECORDING_HOOKS = "transformers.utils.output_capturing"


def digest(*parts: object) -> str:
    """The SHA-256 of several values: of bytes as they are, of others as text."""
    result = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode(errors="surrogatepass")
        result.update(b"%d:" % len(data) + data)
    return result.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """The digest of a tokenizer's pieces, merges, added tokens, normalizer, pre-tokenizer and decoder; not of its template."""
    return digest(tokenizer.backend_tokenizer.model.__getstate__(), *read_state(tokenizer))


def model_digest(model: PreTrainedModel) -> str:
    """The digest of a model's layers, settings and place, and of a few of its weights."""
    layers = [(type(module).__module__, type(module).__qualname__, is_patched(module)) for module in model.modules()]
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device
    attention = getattr(model.config, "_attn_implementation", None)
    precision = torch.get_float32_matmul_precision()
    return digest(layers, model.config, attention, model.dtype, device, precision, _first_weights(model))


def _first_weights(model: PreTrainedModel) -> list[float] | str:
    """The first weights of each tensor: other weights may hold no numbers. What cannot be looked at equals nothing."""
    try:
        rows = [p.detach()[(0,) * (p.dim() - 1)] for p in model.parameters() if p.dim()]
        return torch.cat([row[:2].float().cpu() for row in rows]).tolist()
    except Exception:  # quantised and offloaded tensors of many kinds
        return uuid.uuid4().hex


def is_published(model: PreTrainedModel) -> bool:
    """Whether the code of a release of torch and transformers is all that runs in a model: then its name says what it does."""
    modules = list(model.modules())
    return all(type(m).__module__.split(".")[0] in ("torch", "transformers") and not is_patched(m) for m in modules)


def is_patched(module: torch.nn.Module) -> bool:
    """Whether a module's forward is not that of its class. Hooks of transformers that record outputs do not count."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return "forward" in vars(module) or any(getattr(hook, "__module__", None) != _RECORDING_HOOKS for hook in hooks)
