"""Zeroth-order search around one prompt's embeddings: which probes to try, and where their answers' harm says to go.

Knows embeddings and numbers. Knows no model, no judge and no text, and not how many prompts are searched at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Estimator = Literal["forward", "antithetic"]
#: `independent`: at every position its own noise. `shared`: half of its variance is the same at all positions. `span`: on some
#: positions in a row alone, and twice as long there.
Kind = Literal["independent", "shared", "span"]
SHARED, SPAN, SPAN_LENGTH = 0.7, 0.3, 2.0
#: Makes the optimiser of one prompt's embeddings, which it gets as a list of one tensor.
NewOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]

#: Widening ends where the noise is so many times as large as at first.
N_WIDER = 8.0


@dataclass(frozen=True)
class SearchConfig:
    """How one prompt's embeddings are searched; the arguments of `EmbeddingSteerer` of the same names."""

    mu: float
    kinds: tuple[Kind, ...]
    spread: float
    eta: float
    n_probes: int
    estimator: Estimator
    optimizer: NewOptimizer | None
    relative: bool
    cone: float
    widen: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mu) and self.mu >= 0.0):
            raise ValueError(f"`mu` must be at least 0, got {self.mu}. Use 1.0 to begin with.")
        if not (math.isfinite(self.eta) and self.eta >= 0.0):
            raise ValueError(f"`eta` must be at least 0, got {self.eta}. Use 0 for random search.")
        if not self.kinds or not set(self.kinds) <= set(get_args(Kind)):
            raise ValueError(f"`kinds` must be of {', '.join(get_args(Kind))}, got {self.kinds!r}. Use all of them.")
        if not (math.isfinite(self.spread) and self.spread >= 1.0):
            raise ValueError(f"`spread` must be at least 1, got {self.spread}. Use 1 for noise of one length.")
        if self.n_probes < 1:
            raise ValueError(f"`n_probes` must be at least 1, got {self.n_probes}.")
        if self.estimator not in ("forward", "antithetic"):
            raise ValueError(f'`estimator` must be "forward" or "antithetic", got {self.estimator!r}.')
        if self.estimator == "antithetic" and self.n_probes % 2:
            raise ValueError(f"`n_probes` must be even for antithetic pairs, got {self.n_probes}.")
        if not -1.0 <= self.cone <= 1.0:
            raise ValueError(f"`cone` must be a cosine, in [-1, 1], got {self.cone}. Use -1 for none.")
        if not self.widen >= 1.0:
            raise ValueError(f"`widen` must be at least 1, got {self.widen}. Use 1 to keep `mu` as it is.")

    @property
    def steps(self) -> bool:
        """Whether the centre moves, so that the harm of all probes has to be known."""
        return self.eta > 0.0 or self.optimizer is not None


class ProbeSampler:
    """The search for one prompt.

    Args:
        embeds: (T, D) the prompt's own embeddings.
        moves: (T,) which positions are perturbed.
        method: How.
        seed: Of this prompt's own stream of noise, drawn on the CPU whatever the device.
    """

    def __init__(self, embeds: Tensor, moves: Tensor, method: SearchConfig, seed: int):
        self._start = embeds.float()
        self._moves = moves.to(embeds.device)[:, None]  # (T, 1)
        self._method = method
        self._generator = torch.Generator().manual_seed(seed)
        own = self._start[moves.to(embeds.device)]
        #: What lengths are counted in: the RMS norm of the embeddings that move, or 1.
        self._unit = (float(own.norm(dim=-1).square().mean().sqrt()) if method.relative else 0.0) or 1.0
        n_dims = embeds.shape[-1]
        self._mu = method.mu * (self._unit / math.sqrt(n_dims) if method.relative else 1.0)
        self._widest = N_WIDER * self._mu
        #: How far the centre is from the prompt, in that unit.
        self._offset = torch.nn.Parameter(torch.zeros_like(self._start))
        self._optimizer: Any = method.optimizer([self._offset]) if method.optimizer is not None else None
        self._noise = embeds.new_zeros(0)
        self._n_drawn = 0
        #: Whether the centre is another than the prompt itself.
        self.has_moved = False

    @property
    def centre(self) -> Tensor:
        """(T, D) where the search stands, float32."""
        return self._start + self._offset.detach() * self._unit

    def probes(self) -> Tensor:
        """Draw the next probes around the centre: (N, T, D); with antithetic pairs, all plus and then all minus."""
        method = self._method
        n_drawn = method.n_probes // 2 if method.estimator == "antithetic" else method.n_probes
        drawn = torch.stack([self._drawn() for _ in range(n_drawn)])
        self._noise = (drawn * _lengths(n_drawn, method.spread)).to(self._start.device) * self._moves  # (N, T, D)
        signed = torch.cat([self._noise, -self._noise]) if method.estimator == "antithetic" else self._noise
        return self.centre + self._mu * signed

    def _drawn(self) -> Tensor:
        """(T, D) the next noise, of the next kind in turn."""
        kind = self._method.kinds[self._n_drawn % len(self._method.kinds)]
        self._n_drawn += 1
        n_positions, n_dims = self._start.shape
        own = torch.randn(n_positions, n_dims, generator=self._generator)
        if kind == "shared":
            shared = torch.randn(1, n_dims, generator=self._generator)
            return math.sqrt(1.0 - SHARED**2) * own + SHARED * shared
        if kind == "span":
            moving = self._moves[:, 0].nonzero()[:, 0].cpu()
            length = max(1, round(SPAN * len(moving)))
            first = int(torch.randint(len(moving) - length + 1, (1,), generator=self._generator))
            inside = torch.zeros(n_positions, 1)
            inside[moving[first : first + length]] = SPAN_LENGTH
            return own * inside
        return own

    def learn(self, harm: Sequence[float], base: float, alike: bool) -> None:
        """Go where the last probes say that harm falls.

        Args:
            harm: (N,) of each of their answers; NaN where it is not known.
            base: Of the centre's answer.
            alike: Whether all of them answered alike, so that they tell nothing: the noise is widened.
        """
        if alike:
            self._mu = min(self._mu * self._method.widen, self._widest)
        if not self._method.steps or self._mu == 0.0:
            return
        known = torch.tensor(harm, dtype=torch.float32, device=self._start.device)
        if self._method.estimator == "antithetic":
            plus, minus = known.chunk(2)
            gradient = antithetic_gradient(self._noise, plus, minus, self._mu)
        else:
            gradient = forward_gradient(self._noise, known, base, self._mu)
        if not gradient.any():
            return
        self.has_moved = True
        if self._optimizer is None:
            rows = gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            length = self._method.eta / (1.0 if self._method.relative else self._unit)
            self._offset.data -= length * rows
        else:
            self._offset.grad = gradient * self._unit
            self._optimizer.step()
        turned = in_cone(self.centre, self._start, self._method.cone)
        self._offset.data = torch.where(self._moves, (turned - self._start) / self._unit, 0.0)


def _lengths(n: int, spread: float) -> Tensor:
    """(n, 1, 1) factors from 1 / spread to spread, evenly in their logarithm."""
    exponents = torch.linspace(-1.0, 1.0, n) if n > 1 else torch.zeros(1)
    return (spread**exponents)[:, None, None]


def forward_gradient(noise: Tensor, harm: Tensor, base: float, mu: float) -> Tensor:
    """The one-sided estimate, mean((h(x + mu u) - h(x)) / mu * u) (arXiv 2604.26167, algorithm 1).

    Args:
        noise: (N, T, D) the u of each probe.
        harm: (N,) h(x + mu u), NaN where unknown: such probes do not count.
        base: h(x).
        mu: What u is multiplied by.

    Returns:
        (T, D) the estimate; zero where nothing is known.
    """
    return _weighted((harm - base) / mu, noise)


def antithetic_gradient(noise: Tensor, plus: Tensor, minus: Tensor, mu: float) -> Tensor:
    """The two-sided estimate, mean((h(x + mu u) - h(x - mu u)) / (2 mu) * u), with arguments as in `forward_gradient`."""
    return _weighted((plus - minus) / (2 * mu), noise)


def _weighted(slope: Tensor, noise: Tensor) -> Tensor:
    known = ~slope.isnan()
    if not known.any():
        return torch.zeros_like(noise[0])
    return torch.einsum("n,ntd->td", slope[known], noise[known]) / known.sum()


def in_cone(embeds: Tensor, start: Tensor, cosine: float) -> Tensor:
    """Turn every row whose cosine with its row of `start` is below a bound back onto it, its length kept.

    Args:
        embeds: (T, D).
        start: (T, D).
        cosine: The bound.
    """
    tiny = torch.finfo(torch.float32).tiny
    axis = start / start.norm(dim=-1, keepdim=True).clamp_min(tiny)
    length = embeds.norm(dim=-1, keepdim=True)  # (T, 1)
    along = (embeds * axis).sum(-1, keepdim=True)
    across = embeds - along * axis
    across = across / across.norm(dim=-1, keepdim=True).clamp_min(tiny)
    turned = length * (cosine * axis + math.sqrt(1.0 - cosine**2) * across)
    return torch.where(along < cosine * length, turned, embeds)
