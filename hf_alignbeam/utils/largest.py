"""The largest values of each row of a wide tensor.

Knows numbers only. `torch.topk` sorts through a whole vocabulary; this looks at the maximum of each stretch of it first.
"""

import torch
from torch import Tensor

#: How many values a stretch has.
WIDTH = 64


def largest(values: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the n largest values of each row (N, n), in descending order, and where they stand (N, n).

    Where there are fewer, all are returned. Equal values come in any order.

    Args:
        values: (N, A) values.
        n: How many.
    """
    width = values.shape[-1]
    n, n_stretches = min(n, width), width // WIDTH
    if n_stretches <= n:
        return values.topk(n)
    # the n largest values stand in the n stretches with the largest maxima, or in what is left at the end
    stretches = values[:, : n_stretches * WIDTH].unflatten(-1, (n_stretches, WIDTH))
    chosen = stretches.amax(-1).topk(n).indices  # (N, n)
    places = (chosen[..., None] * WIDTH + torch.arange(WIDTH, device=values.device)).flatten(1)
    end = torch.arange(n_stretches * WIDTH, width, device=values.device).expand(len(values), -1)
    places = torch.cat([places, end], dim=-1)
    found, order = values.gather(-1, places).topk(n)
    return found, places.gather(-1, order)
