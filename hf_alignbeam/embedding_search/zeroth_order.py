"""Zeroth-order search around one prompt's embeddings: draws probes, and moves its center by the harm of their answers.

Knows embeddings and numbers. Knows no model, no judge and no text, and not how many prompts are searched at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from hf_alignbeam.utils.checks import check_whole_number, is_number, refuse_none

Estimator = Literal["forward", "antithetic"]
#: `independent`: independent noise at every position. `shared`: about half of the noise's variance is common to all positions.
#: `span`: noise on a span of consecutive positions only, and twice as long there.
NoiseKind = Literal["independent", "shared", "span"]
#: The share of the common noise in the standard deviation; the share of the positions in a span; the noise's length there.
SHARED, SPAN, SPAN_LENGTH = 0.7, 0.3, 2.0
#: Builds the optimizer of one prompt's embeddings, given as a list of one tensor.
OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]

#: The noise is widened to at most this many times its first length.
MAX_WIDENING = 8.0


@dataclass(frozen=True)
class SearchConfig:
    """How one prompt's embeddings are searched: the arguments of `EmbeddingSteerer` of the same names."""

    mu: float
    kinds: tuple[NoiseKind, ...]
    spread: float
    eta: float
    n_probes: int
    estimator: Estimator
    optimizer: OptimizerFactory | None
    relative: bool
    cone: float
    widen: float

    def __post_init__(self) -> None:
        refuse_none(vars(self), "optimizer")
        if not is_number(self.mu) or not 0.0 <= self.mu < math.inf:
            raise ValueError(f"`mu` must be at least 0, got {self.mu!r}. Use 1.0 as a start.")
        if not is_number(self.eta) or not 0.0 <= self.eta < math.inf:
            raise ValueError(f"`eta` must be at least 0, got {self.eta!r}. Use 0 for random search.")
        if not self.kinds or not set(self.kinds) <= set(get_args(NoiseKind)):
            raise ValueError(f"`kinds` must hold some of {', '.join(get_args(NoiseKind))}, got {self.kinds!r}. Use all of them.")
        if not is_number(self.spread) or not 1.0 <= self.spread < math.inf:
            raise ValueError(f"`spread` must be at least 1, got {self.spread!r}. Use 1 for noise of one length.")
        check_whole_number("n_probes", self.n_probes, 1, "Use 8.")
        if self.estimator not in ("forward", "antithetic"):
            raise ValueError(f'`estimator` must be "forward" or "antithetic", got {self.estimator!r}.')
        if self.estimator == "antithetic" and self.n_probes % 2:
            raise ValueError(f"`n_probes` must be even for antithetic pairs, got {self.n_probes}. Use {self.n_probes + 1}.")
        if self.optimizer is not None and not callable(self.optimizer):
            raise ValueError(
                f"`optimizer` must be callable with a list of a tensor, got {self.optimizer!r}. Use torch.optim.Adam."
            )
        if not isinstance(self.relative, bool):
            raise ValueError(f"`relative` must be True or False, got {self.relative!r}.")
        if not is_number(self.cone) or not -1.0 <= self.cone <= 1.0:
            raise ValueError(f"`cone` must be a cosine, in [-1, 1], got {self.cone!r}. Use -1 for no bound.")
        if not is_number(self.widen) or not self.widen >= 1.0:
            raise ValueError(f"`widen` must be at least 1, got {self.widen!r}. Use 1 to keep `mu` as it is.")

    @property
    def moves_center(self) -> bool:
        """Whether the search's center moves. This needs the harm of all probes."""
        return self.eta > 0.0 or self.optimizer is not None


class ProbeSampler:
    """Draws the probes of one prompt, and moves their center.

    Args:
        embeds: (T, D) the prompt's own embeddings.
        perturbable: (T,) bool, the positions that are perturbed.
        config: How the search draws and moves.
        seed: The seed of this prompt's noise, which is drawn on the CPU for any device.

    Attributes:
        has_moved: Whether the center differs from the prompt itself.
    """

    def __init__(self, embeds: Tensor, perturbable: Tensor, config: SearchConfig, seed: int):
        self._origin = embeds.float()
        self._perturbable = perturbable.to(embeds.device)[:, None]  # (T, 1)
        self._config = config
        self._generator = torch.Generator().manual_seed(seed)
        perturbed = self._origin[perturbable.to(embeds.device)]
        #: The unit of lengths: the RMS norm of the embeddings that are perturbed, or 1.
        self._unit = (float(perturbed.norm(dim=-1).square().mean().sqrt()) if config.relative else 0.0) or 1.0
        n_dims = embeds.shape[-1]
        self._mu = config.mu * (self._unit / math.sqrt(n_dims) if config.relative else 1.0)
        self._max_mu = MAX_WIDENING * self._mu
        #: (T, D) the center's distance from the prompt, in that unit.
        self._offset = torch.nn.Parameter(torch.zeros_like(self._origin))
        self._optimizer: Any = config.optimizer([self._offset]) if config.optimizer is not None else None
        self._noise = embeds.new_zeros(0)
        self._n_drawn = 0
        self.has_moved = False

    @property
    def center(self) -> Tensor:
        """(T, D) the embeddings that probes are drawn around, float32."""
        return self._origin + self._offset.detach() * self._unit

    def probes(self) -> Tensor:
        """Draw the next probes around the center: (N, T, D). Antithetic pairs come as all plus, then all minus."""
        config = self._config
        n_drawn = config.n_probes // 2 if config.estimator == "antithetic" else config.n_probes
        drawn = torch.stack([self._draw_noise() for _ in range(n_drawn)])
        self._noise = (drawn * _length_factors(n_drawn, config.spread)).to(self._origin.device) * self._perturbable  # (N, T, D)
        signed = torch.cat([self._noise, -self._noise]) if config.estimator == "antithetic" else self._noise
        return self.center + self._mu * signed

    def _draw_noise(self) -> Tensor:
        """Draw (T, D) noise, of the next kind in turn."""
        kind = self._config.kinds[self._n_drawn % len(self._config.kinds)]
        self._n_drawn += 1
        n_positions, n_dims = self._origin.shape
        independent = torch.randn(n_positions, n_dims, generator=self._generator)
        if kind == "shared":
            shared = torch.randn(1, n_dims, generator=self._generator)
            return math.sqrt(1.0 - SHARED**2) * independent + SHARED * shared
        if kind == "span":
            positions = self._perturbable[:, 0].nonzero()[:, 0].cpu()
            length = max(1, round(SPAN * len(positions)))
            first = int(torch.randint(len(positions) - length + 1, (1,), generator=self._generator))
            factors = torch.zeros(n_positions, 1)
            factors[positions[first : first + length]] = SPAN_LENGTH
            return independent * factors
        return independent

    def update(self, harm: Sequence[float], base: float, all_alike: bool) -> None:
        """Move the center in the direction in which the last probes show that harm falls.

        Args:
            harm: (N,) of the probes' answers; NaN for an answer that was not judged.
            base: The harm of the center's answer.
            all_alike: Whether all probes had the same answer. Then their harm shows no direction, and the noise is widened. In
                random search it is widened in any case: this round found nothing.
        """
        if all_alike or not self._config.moves_center:
            self._mu = min(self._mu * self._config.widen, self._max_mu)
        if not self._config.moves_center or self._mu == 0.0:
            return
        harms = torch.tensor(harm, dtype=torch.float32, device=self._origin.device)
        if self._config.estimator == "antithetic":
            plus, minus = harms.chunk(2)
            gradient = antithetic_gradient(self._noise, plus, minus, self._mu)
        else:
            gradient = forward_gradient(self._noise, harms, base, self._mu)
        if not gradient.any():
            return
        self.has_moved = True
        if self._optimizer is None:
            directions = gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            self._offset.data -= self._config.eta * directions
        else:
            self._offset.grad = gradient * self._unit
            self._optimizer.step()
        clamped = clamp_to_cone(self.center, self._origin, self._config.cone)
        self._offset.data = torch.where(self._perturbable, (clamped - self._origin) / self._unit, 0.0)


def _length_factors(n: int, spread: float) -> Tensor:
    """(n, 1, 1) factors from 1 / spread to spread, evenly spaced in their logarithm."""
    exponents = torch.linspace(-1.0, 1.0, n) if n > 1 else torch.zeros(1)
    return (spread**exponents)[:, None, None]


def forward_gradient(noise: Tensor, harm: Tensor, base: float, mu: float) -> Tensor:
    """The one-sided estimate, mean((h(x + mu u) - h(x)) / mu * u) (arXiv 2604.26167, algorithm 1).

    Args:
        noise: (N, T, D) the u of each probe.
        harm: (N,) h(x + mu u). Probes with NaN do not count.
        base: h(x).
        mu: The factor of u.

    Returns:
        (T, D) the estimate; zero if no harm is known.
    """
    return _mean_slope((harm - base) / mu, noise)


def antithetic_gradient(noise: Tensor, plus: Tensor, minus: Tensor, mu: float) -> Tensor:
    """The two-sided estimate, mean((h(x + mu u) - h(x - mu u)) / (2 mu) * u). Arguments are as in `forward_gradient`."""
    return _mean_slope((plus - minus) / (2 * mu), noise)


def _mean_slope(slope: Tensor, noise: Tensor) -> Tensor:
    known = ~slope.isnan()
    if not known.any():
        return torch.zeros_like(noise[0])
    return torch.einsum("n,ntd->td", slope[known], noise[known]) / known.sum()


def clamp_to_cone(embeds: Tensor, axes: Tensor, cosine: float) -> Tensor:
    """Turn each row whose cosine with its axis is below a bound towards the axis, up to the bound. Its length stays.

    Args:
        embeds: (T, D).
        axes: (T, D).
        cosine: The bound.
    """
    tiny = torch.finfo(torch.float32).tiny
    axis = axes / axes.norm(dim=-1, keepdim=True).clamp_min(tiny)
    length = embeds.norm(dim=-1, keepdim=True)  # (T, 1)
    along = (embeds * axis).sum(-1, keepdim=True)
    across = embeds - along * axis
    across = across / across.norm(dim=-1, keepdim=True).clamp_min(tiny)
    turned = length * (cosine * axis + math.sqrt(1.0 - cosine**2) * across)
    return torch.where(along < cosine * length, turned, embeds)
