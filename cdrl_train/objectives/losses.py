"""The losses of CDRL, as functions of networks and noised pairs; no optimisers, no state.

All on the energies and kernels of `cdrl_infer`, with levels mixed in a batch. Losses are means over the
batch; per-image values come beside them, so that they can be reported by level.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cdrl_infer.energies.base import Energy
from cdrl_infer.energies.recovery import RecoveryEnergy
from cdrl_infer.kernels.base import Kernel
from cdrl_infer.proposals import IdentityProposal, InitializerProposal, posterior_mean
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level

Coupling = Literal["shared", "markov"]
ContrastiveWeight = Literal["paper", "noise"]


class NoisedPair(NamedTuple):
    """One image at two neighbouring levels; all (B, C, H, W)."""

    x: Tensor  # the clean images
    x_t: Tensor  # at level t
    y: Tensor  # m_t x_{t-1}
    noise: Tensor  # ε with x_{t-1} = α_{t-1} x + σ̄_{t-1} ε


def noised_pair(x: Tensor, level: Level, coupling: Coupling, random: RandomSource) -> NoisedPair:
    """Draw (x_t, y) for clean images x.

    ``"shared"``: ``x_t = α_t x + σ̄_t ε`` with the ε of x_{t-1} (the paper's variance reduction).
    ``"markov"``: ``x_t = √(1-σ_t²) x_{t-1} + σ_t ε'``, the forward process itself.
    """
    noise = random.normal(x.shape[1:])
    previous = level.diffused(x, noise)
    if coupling == "shared":
        x_t = level.diffused_in(x, noise)
    else:
        x_t = level.noised(previous, random.normal(x.shape[1:]))
    return NoisedPair(x, x_t, level.expand(level.scale, x) * previous, noise)


class Loss(NamedTuple):
    """What to minimise, and its values per image (B,) before weighting, detached."""

    value: Tensor
    per_image: Tensor


class ScoreMatching(NamedTuple):
    """A `Loss`, and the energies (B,) of y that it took, with their graph: another loss may need them."""

    value: Tensor
    per_image: Tensor
    energy: Tensor


def score_matching_loss(energy: Energy, pair: NoisedPair, level: Level) -> ScoreMatching:
    """``mean ‖ m_t σ̄_{t-1} ∇_y E(y) - ε ‖² / dim`` (denoising score matching, Vincent 2011).

    Per image it is the sum over pixels: dim when nothing is learnt.
    """
    y = pair.y.detach().requires_grad_(True)
    with torch.enable_grad():
        values = energy(y, level)
        (grad,) = torch.autograd.grad(values.sum(), y, create_graph=True)
    predicted = level.expand(level.scale * level.sigma_bar, y) * grad
    per_image = (predicted - pair.noise).square().flatten(1).sum(1)
    return ScoreMatching(per_image.mean() / pair.noise[0].numel(), per_image.detach(), values)


def regression_loss(
    proposal: InitializerProposal | IdentityProposal, pair: NoisedPair, level: Level
) -> Loss:
    """``mean ‖ g(x_t) - m_t E[x_{t-1} | x_t, x] ‖² / σ_t² / dim``: the initializer's warm start."""
    target = posterior_mean(pair.x, pair.x_t, level)
    error = (proposal.mean(pair.x_t, level) - target).square().flatten(1).sum(1)
    per_image = error / level.noise_variance
    return Loss(per_image.mean() / target[0].numel(), per_image.detach())


class Refined(NamedTuple):
    """What the initializer proposed and what Langevin made of it; no graph."""

    start: Tensor  # y⁰
    end: Tensor  # y⁻


def refine(
    energy: Energy,
    proposal: InitializerProposal | IdentityProposal,
    mean: Tensor,
    kernel: Kernel[Any],
    step_size: Tensor,
    steps: int,
    x_t: Tensor,
    level: Level,
    random: RandomSource,
) -> Refined:
    """K steps of the kernel on ``p(y | x_t)`` from a proposal around its ``mean`` (B, C, H, W)."""
    start = proposal.around(mean.detach(), level, random)
    end = kernel.run(start, RecoveryEnergy(energy, x_t).at(level), step_size, random, steps)
    return Refined(start, end.y)


def contrastive_weight(level: Level, sigma_1: float, kind: ContrastiveWeight) -> Tensor:
    """Weight (B,) of a level's energy difference in nats.

    ``"paper"``: ``s_t² σ_1/σ_t``, since the paper weights ``f = -s_t² E`` by ``σ_1/σ_t``.
    ``"noise"``: ``m_t σ̄_{t-1}``, which gives the levels of an `InnerProductEnergy` an equal say.
    """
    if kind == "paper":
        return level.step_variance * sigma_1 / level.noise_variance.sqrt()
    return level.scale * level.sigma_bar


def contrastive_loss(positive: Tensor, negative: Tensor, weight: Tensor) -> Loss:
    """``mean_w [E(y⁺) - E(y⁻)]`` from energies (B,) in nats: the gradient of recovery likelihood.

    The recovery term has no parameters, so it drops out. Per image: the unweighted difference in nats.
    """
    gap = positive - negative
    return Loss((weight * gap).mean(), gap.detach())


def imitation_loss(mean: Tensor, refined: Refined) -> Loss:
    """``mean ‖ y⁻ - y⁰ ‖² / dim`` with ``y⁰ = g(x_t) + τ_t ε``: the initializer learns from the chain.

    Per image it is the sum over pixels.

    Args:
        mean: ``g(x_t)`` with its graph; the noise of y⁰ is a constant, so the value is that of y⁰
            and the gradient that of its mean.
        refined: what was proposed and where the chain ended.
    """
    start = mean + (refined.start - mean).detach()
    per_image = (refined.end - start).square().flatten(1).sum(1)
    return Loss(per_image.mean() / mean[0].numel(), per_image.detach())
