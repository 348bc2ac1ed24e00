"""The logits of a few tokens in float32, where a model's last layer computes in fewer bits.

Knows the last layer and ids. Knows no text and no verdict.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_alignbeam.inference.engines import takes_argument


@contextmanager
def precise_logits(model: PreTrainedModel, ids: Sequence[int]) -> Iterator[None]:
    """Compute the logits of some tokens in float32 inside a `with` block.

    A logit near 20 is a multiple of 1/8 in bfloat16. That is coarse for the difference of two. Only a plain linear layer is
    refined, and only in a model that computes the logits of the last tokens alone: those of a whole text would be copied.

    Args:
        model: A decoder.
        ids: The tokens.
    """
    head = model.get_output_embeddings()
    is_plain = type(head) is nn.Linear and head.weight.dtype in (torch.bfloat16, torch.float16) and not head.weight.is_meta
    if not is_plain or not takes_argument("logits_to_keep", model):
        yield
        return

    def refine(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        index = torch.tensor(ids, device=layer.weight.device)
        weight = layer.weight[index].float()
        bias = None if layer.bias is None else layer.bias[index].float()
        refined = nn.functional.linear(inputs[0].to(weight), weight, bias)
        output = output.float()
        output[..., index.to(output.device)] = refined.to(output)
        return output

    handle = head.register_forward_hook(refine)
    try:
        yield
    finally:
        handle.remove()
