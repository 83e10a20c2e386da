"""The two joint densities of a transition, and the path of densities between them.

For a transition t the pair ``(x_t, y)`` has two laws. Going down, ``e_t(x_t)`` draws x_t and a Gaussian
around the initializer's mean draws y. Going up, ``E(y)`` draws y and the forward kernel draws x_t:

    a(x_t, y) = exp(-e_t(x_t)) N(y; g(x_t), v)                 e_t is the energy of x_t at the level above
    b(x_t, y) = exp(-E(y)) N(x_t; √r_t y/m_t, σ_t² I)          y = m_t x_{t-1}

The ratio of their normalisers is the ratio of the normalisers of two adjacent levels. For one x_t the
path moves y only. The whitened point is ``z = (y - g(x_t)) / √v``, so a's law of z is N(0, I).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl_infer.energies.base import Energy, Potential
from cdrl_infer.proposals import MeanProposal
from cdrl_infer.random import BatchRandom
from cdrl_infer.schedule import NoiseSchedule

SHRINKAGE = 8  # points of the common variance that are added to those of each pixel
REPEATS = 8  # partners of each point, for the variance


class InParts:
    """A potential that looks at a batch in parts, so that memory does not grow with the batch.

    Args:
        potential: the potential; it has no state of its batch.
        size: points at once.
    """

    def __init__(self, potential: Potential, size: int) -> None:
        self.potential = potential
        self.size = size

    def __call__(self, y: Tensor) -> Tensor:
        """(B, ...) -> (B,) nats."""
        return torch.cat([self.potential(part) for part in torch.split(y, self.size)])

    def value_and_grad(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (B,) and gradient (B, ...), both detached."""
        parts = [self.potential.value_and_grad(part) for part in torch.split(y, self.size)]
        values, grads = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(grads)


class StandardNormal:
    """``½‖x‖² + (d/2) log 2π``: the law of the noisiest level, which is normalised."""

    def __call__(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B,) nats."""
        flat = x.flatten(1)
        return 0.5 * flat.square().sum(1) + 0.5 * flat.shape[1] * math.log(2 * math.pi)


class Transition:
    """What the two laws of a transition need.

    Args:
        energy: the energies of all levels, for any number of points.
        proposal: gives the mean g(x_t).
        schedule: the noise levels.
        t: the transition, 1 … T.
        device: of the points.
        batch_size: points that a network sees at once.
    """

    def __init__(
        self,
        energy: Energy,
        proposal: MeanProposal,
        schedule: NoiseSchedule,
        t: int,
        device: torch.device,
        batch_size: int,
    ) -> None:
        self.t = t
        self.level = schedule.level(t, device)
        self.potential = InParts(energy.at(self.level), batch_size)
        self.proposal = proposal
        self.batch_size = batch_size
        self.gain = self.level.gain
        self.above: StandardNormal | InParts = StandardNormal()
        self.above_scale = torch.ones((), device=device)
        if t < schedule.num_levels:
            upper = schedule.level(t + 1, device)
            self.above, self.above_scale = InParts(energy.at(upper), batch_size), upper.scale

    def mean(self, x_t: Tensor) -> Tensor:
        """``g(x_t)``, (B, ...)."""
        parts = torch.split(x_t, self.batch_size)
        return torch.cat([self.proposal.mean(part, self.level) for part in parts])

    def noised(self, y: Tensor, noise: Tensor) -> Tensor:
        """``x_t = √r_t y/m_t + σ_t ε``, (B, ...)."""
        return self.level.noised(y / self.level.scale, noise)

    def energy_above(self, x_t: Tensor) -> Tensor:
        """``e_t(x_t)``, the energy of x_t at its own level, (B,) nats."""
        return self.above(x_t * self.above_scale)

    def variance(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """The variance v of each pixel of ``y - g(x_t)``, shrunk to their mean.

        It makes a as wide as b, or the weights of a's draws would miss a part of b.

        Args:
            y: (P, ...) draws of b; they must not be weighed later.
            generator: of the noise in their partners x_t.

        Returns:
            (...) the shape of one point.
        """
        many = y.repeat(REPEATS, *[1] * (y.ndim - 1))
        noise = BatchRandom(len(many), generator).normal(y.shape[1:])
        square = (many - self.mean(self.noised(many, noise))).square().mean(0)
        return (len(y) * square + SHRINKAGE * square.mean()) / (len(y) + SHRINKAGE)


@dataclass(frozen=True)
class Path:
    """The densities ``π_β(z) ∝ exp(-½‖z‖² + β V(z))`` between a (β = 0) and b (β = 1), for B given x_t.

    ``V(z) = log b - log a`` but for what x_t alone determines, which is in `constant`.

    Args:
        transition: the two laws.
        x_t: (B, ...).
        mean: (B, ...) g(x_t).
        variance: v, the shape of one point.
    """

    transition: Transition
    x_t: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, transition: Transition, x_t: Tensor, variance: Tensor, copies: int = 1) -> Path:
        """The path for each x_t (B, ...), ``copies`` times: copies of one x_t are neighbours."""
        mean = transition.mean(x_t)
        x_t, mean = (value.repeat_interleave(copies, 0) for value in (x_t, mean))
        return cls(transition, x_t, mean, variance)

    def point(self, z: Tensor) -> Tensor:
        """``y = g(x_t) + √v z``."""
        return self.mean + self.variance.sqrt() * z

    def whitened(self, y: Tensor) -> Tensor:
        """``z = (y - g(x_t)) / √v``."""
        return (y - self.mean) / self.variance.sqrt()

    def log_ratio(self, z: Tensor) -> Tensor:
        """``V(z)``, (B, ...) -> (B,) nats."""
        y = self.point(z)
        return self._without_energy(z, y) - self.transition.potential(y)

    def log_ratio_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``V(z)`` (B,) and its gradient (B, ...)."""
        y = self.point(z)
        energy, grad = self.transition.potential.value_and_grad(y)
        level, gain = self.transition.level, self.transition.gain
        pull = grad - gain * (self.x_t - gain * y) / level.noise_variance
        return self._without_energy(z, y) - energy, z - self.variance.sqrt() * pull

    def constant(self) -> Tensor:
        """``e_t(x_t) + ½ Σ log(v/σ_t²)``: the part of ``log b - log a`` without z, (B,) float64."""
        spread = self.variance.double() / self.transition.level.noise_variance.double()
        return self.transition.energy_above(self.x_t).double() + 0.5 * spread.log().sum()

    def _without_energy(self, z: Tensor, y: Tensor) -> Tensor:
        noise = self.x_t - self.transition.gain * y
        fit = noise.square().flatten(1).sum(1) / self.transition.level.noise_variance
        return 0.5 * (z.square().flatten(1).sum(1) - fit)


class Tempered:
    """``½‖z‖² - β V(z)``, the potential of π_β; its points are the whitened ones, z.

    Args:
        path: gives V.
        beta: β in [0, 1], one for all points.
    """

    def __init__(self, path: Path, beta: float) -> None:
        self.path = path
        self.beta = beta

    def __call__(self, y: Tensor) -> Tensor:
        """(B, ...) -> (B,) nats."""
        return 0.5 * y.square().flatten(1).sum(1) - self.beta * self.path.log_ratio(y)

    def value_and_grad(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (B,) and gradient (B, ...)."""
        return self.mixed(y, *self.path.log_ratio_and_grad(y))

    def mixed(self, z: Tensor, value: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Energies and gradient from V(z) and its gradient."""
        return 0.5 * z.square().flatten(1).sum(1) - self.beta * value, z - self.beta * grad

    def unmixed(self, z: Tensor, energy: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """V(z) and its gradient from the energies and their gradient; β is not 0."""
        return (0.5 * z.square().flatten(1).sum(1) - energy) / self.beta, (z - grad) / self.beta
