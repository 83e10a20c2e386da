"""The formulas of the losses, as functions of energies, proposals and noised pairs.

Each image of a batch has its own level. A loss is the mean over the batch. Its values per image are for
the log, which has means by transition.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cdrl_infer.energies.base import Energy
from cdrl_infer.proposals import InitializerProposal, posterior_mean
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level, NoiseSchedule

Coupling = Literal["shared", "markov"]
ContrastiveWeight = Literal["paper", "noise"]


class NoisedPair(NamedTuple):
    """Images at two neighbouring levels; all (B, C, H, W)."""

    x: Tensor  # the clean images
    x_t: Tensor  # the images at level t
    y: Tensor  # m_t x_{t-1}
    noise: Tensor  # ε of x_{t-1} = α_{t-1} x + σ̄_{t-1} ε


def noised(x: Tensor, level: Level, noise: Tensor) -> Tensor:
    """``y = m_t x_{t-1}`` for clean images x and their noise ε, both (B, C, H, W)."""
    return level.expand(level.scale, x) * level.diffused(x, noise)


def noised_pair(x: Tensor, level: Level, coupling: Coupling, random: RandomSource) -> NoisedPair:
    """Draw (x_t, y) for clean images x.

    ``"shared"`` is ``x_t = α_t x + σ̄_t ε`` with the ε of x_{t-1}, the paper's variance reduction.
    ``"markov"`` is the forward process ``x_t = √(1-σ_t²) x_{t-1} + σ_t ε'``.
    """
    noise = random.normal(x.shape[1:])
    previous = level.diffused(x, noise)
    if coupling == "shared":
        x_t = level.diffused_in(x, noise)
    else:
        x_t = level.noised(previous, random.normal(x.shape[1:]))
    return NoisedPair(x, x_t, level.expand(level.scale, x) * previous, noise)


class Loss(NamedTuple):
    """A loss (), and its values per image (B,) before weighting and without gradients."""

    value: Tensor
    per_image: Tensor


class ScoreMatching(NamedTuple):
    """A `Loss`, and the energies (B,) of y with gradients, for use in another loss."""

    value: Tensor
    per_image: Tensor
    energy: Tensor


def score_matching_loss(energy: Energy, pair: NoisedPair, level: Level) -> ScoreMatching:
    """``mean ‖ m_t σ̄_{t-1} ∇_y E(y) - ε ‖² / dim`` (denoising score matching, Vincent 2011).

    The value per image is the sum over pixels. It equals dim for an energy that has learnt nothing.
    """
    y = pair.y.detach().requires_grad_(True)
    with torch.enable_grad():
        values = energy(y, level)
        (grad,) = torch.autograd.grad(values.sum(), y, create_graph=True)
    predicted = level.expand(level.scale * level.sigma_bar, y) * grad
    per_image = (predicted - pair.noise).square().flatten(1).sum(1)
    return ScoreMatching(per_image.mean() / pair.noise[0].numel(), per_image.detach(), values)


def regression_loss(proposal: InitializerProposal, pair: NoisedPair, level: Level) -> Loss:
    """``mean ‖ g(x_t) - m_t E[x_{t-1} | x_t, x] ‖² / σ_t² / dim``, for the initializer."""
    target = posterior_mean(pair.x, pair.x_t, level)
    error = (proposal.mean(pair.x_t, level) - target).square().flatten(1).sum(1)
    per_image = error / level.noise_variance
    return Loss(per_image.mean() / target[0].numel(), per_image.detach())


class Refined(NamedTuple):
    """The first and the last points of chains, (B, ...) each, without gradients."""

    start: Tensor  # y⁰
    end: Tensor  # y⁻


def contrastive_weight(level: Level, schedule: NoiseSchedule, kind: ContrastiveWeight) -> Tensor:
    """Weight (B,) of each image's energy difference in nats.

    ``"paper"`` is ``s_t² σ_1/σ_t``, because the paper weights ``f = -s_t² E`` by ``σ_1/σ_t``.
    ``"noise"`` is ``m_t σ̄_{t-1}``, which weights the levels of an `InnerProductEnergy` equally.
    """
    if kind == "paper":
        sigma_1 = float(schedule.level(1).noise_variance.sqrt())
        return level.step_variance * sigma_1 / level.noise_variance.sqrt()
    return level.scale * level.sigma_bar


def contrastive_loss(positive: Tensor, negative: Tensor, weight: Tensor) -> Loss:
    """``mean w [E(y⁺) - E(y⁻)]`` of energies (B,) in nats. Its gradient is that of recovery likelihood.

    The recovery term has no parameters, so the loss omits it. The value per image is the unweighted
    difference in nats.
    """
    gap = positive - negative
    return Loss((weight * gap).mean(), gap.detach())


def imitation_loss(mean: Tensor, refined: Refined) -> Loss:
    """``mean ‖ y⁻ - y⁰ ‖² / dim`` with ``y⁰ = g(x_t) + τ_t ε``: the initializer learns from the chain.

    The value per image is the sum over pixels.

    Args:
        mean: ``g(x_t)`` with gradients; the noise of y⁰ is a constant.
        refined: y⁰ and y⁻.
    """
    start = mean + (refined.start - mean).detach()
    per_image = (refined.end - start).square().flatten(1).sum(1)
    return Loss(per_image.mean() / mean[0].numel(), per_image.detach())
