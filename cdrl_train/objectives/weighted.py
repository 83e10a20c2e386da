"""Importance weights of an energy's draws: what objectives with a proposal that has a density share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from cdrl_infer.likelihood.bar import log_mean_exp
from cdrl_infer.random import RandomSource, Repeated
from cdrl_train.objectives.base import Models

if TYPE_CHECKING:
    from cdrl_train.data.stream import Batch

Fit = Literal["likelihood", "kl", "fixed"]


@dataclass(frozen=True)
class Weighted:
    """Data, draws of the proposal, and their energies E, which know their normaliser.

    For an energy with given values x', both densities are those of the other values given x'.

    Args:
        positive: (B,) E of the data y⁺, nats.
        ratio_data: (B,) ``-E - log q`` of the data.
        log_weights: (B, k) ``-E - log q`` of the k draws of each image.
        fit: () the loss of the proposal; None if it does not learn.
    """

    positive: Tensor
    ratio_data: Tensor
    log_weights: Tensor
    fit: Tensor | None

    @property
    def log_ratio(self) -> Tensor:
        """``log Ẑ - b``, () nats: the log-mean of all weights; 0 for an energy that is normalised."""
        return log_mean_exp(self.log_weights.flatten())


def weigh(models: Models, batch: Batch, draws: int, fit: Fit, random: RandomSource) -> Weighted:
    """Draw from the proposal and weigh the draws; for a run of one level.

    Args:
        models: the networks.
        batch: the images, which get the noise of the level.
        draws, fit, random: see `weigh_points`.
    """
    level = models.schedule.level(1, batch.x.device)
    positive = level.scale * level.diffused(batch.x, random.normal(batch.x.shape[1:]))
    return weigh_points(models, positive, batch.labels, draws, fit, random)


def weigh_points(
    models: Models,
    positive: Tensor,
    labels: Tensor | None,
    draws: int,
    fit: Fit,
    random: RandomSource,
) -> Weighted:
    """Draw from the proposal and weigh the draws beside points y⁺.

    Args:
        models: the networks.
        positive: (B, ...) y⁺.
        labels: (B, A), or None.
        draws: k, the draws for each image.
        fit: what the proposal learns: "likelihood" of the data, "kl" ``KL(p ‖ q)`` from the energy by
            the weights of the draws, or nothing.
        random: the noise.
    """
    level, shape = models.schedule.level(1, positive.device), positive.shape[1:]
    energy, proposal = models.energy(labels).at(level), models.proposal(labels)
    given = models.ebm.num_given
    if given:
        proposal = proposal.given(positive.repeat_interleave(draws, 0))
    x_t = random.normal(shape)
    many = x_t.repeat_interleave(draws, 0)
    drawn = proposal.sample(many, level, Repeated(random, draws))
    with torch.set_grad_enabled(fit != "fixed"):
        log_q = proposal.log_prob(drawn, many, level)
        log_q_data = proposal.log_prob(positive.detach(), x_t, level)
    values = energy(positive)
    log_p_data, log_p = -values, -energy(drawn)
    if given:
        log_p_data = log_p_data - models.ebm.base.log_given(positive)
        log_p = log_p - models.ebm.base.log_given(drawn)
    log_weights = (log_p - log_q.detach()).reshape(-1, draws)
    loss: Tensor | None = None
    if fit == "likelihood":
        loss = -log_q_data.mean()
    elif fit == "kl":
        rows = log_weights.detach() if given else log_weights.detach().reshape(1, -1)
        loss = -(rows.softmax(1).flatten() * log_q).sum() / len(rows)
    if given and loss is not None:
        loss = loss - proposal.network.log_given(positive).mean()
    return Weighted(values, log_p_data - log_q_data.detach(), log_weights, loss)
