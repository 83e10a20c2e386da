"""Self-normalised likelihood: an energy and its normaliser learn together, without chains."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from cdrl_infer.errors import ConfigError
from cdrl_infer.likelihood.bar import effective_sample_size, log_mean_exp, pareto_k
from cdrl_infer.networks.tilted import TiltedEnergy
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level
from cdrl_train.objectives.base import Limit, Losses, Models, Objective
from cdrl_train.objectives.weighted import Fit, Weighted, weigh

if TYPE_CHECKING:
    from cdrl_train.data.stream import Batch

EVERY = 50  # steps from one Pareto k̂ to the next: it takes as long as a small network
AVERAGED = 0.25  # weight of a new Pareto k̂ in the moving average; one alone errs by 0.1 to 0.2
FEWEST = 16  # draws whose largest share says something


class SelfNormalised(Objective):
    """``E_data[E] + b + e^-b Ẑ - 1``, ``Ẑ = mean_q e^-E/q`` (SNL, Senetaire et al., arXiv 2503.07021).

    For every b it is at least ``E_data[E] + log Z``, and equal at ``b = log Z``. Ẑ and its gradient are
    unbiased, so no chains are needed. The energy has b in it, see `TiltedEnergy`; with given values x'
    there are a ``b(x')`` and an Ẑ for each image. b starts at log Ẑ.

    Args:
        draws: draws of the proposal for each image of the batch. Without given values, all draws of a
            batch estimate one Ẑ.
        bound: "snl", or "importance" for ``E_data[E] + log Ẑ`` (maximum likelihood by importance
            sampling, which is biased at few draws).
        update: how b moves after a step, "newton" ``b ← b + rate · log(Ẑ e^-b)`` or "gradient"
            ``b ← b + rate · (Ẑ e^-b - 1)``. The network of b(x') learns with the energy.
        rate: of b.
        fit: what the proposal learns along: "likelihood" of the data, "kl" ``KL(p ‖ q)`` from the energy
            through the weights, or "fixed".
        max_error: a step counts as diverged if ``|b - log Ẑ|`` reaches this number of nats.
        max_share: a step counts as diverged if one of at least 16 draws has this share of all importance
            weights; None: no limit.
        max_pareto_k: a step counts as diverged if the moving average of Pareto k̂ of the weights reaches
            this; None: no limit. Above 0.7 the weights are not to be trusted, and at 1 they have no mean.
            It needs arviz-stats.

    Raises:
        ConfigError: a value is out of range.
    """

    needs_density = True
    needs_normaliser = True
    recordable = False  # it computes Pareto k̂ every few steps
    one_process = True  # all draws of a batch estimate one Ẑ, and b moves by it
    begun: Tensor
    advice = "lower ebm_lr, raise draws, or choose a wider proposal"
    seen: Tensor
    tail: Tensor
    method = (
        "An SNL model",
        "[Self-normalised likelihood](https://arxiv.org/abs/2503.07021) "
        "(Senetaire, Jeha, Mattei, Frellsen, 2025)",
    )
    titles: ClassVar[dict[str, str]] = {
        "normaliser_error": "b - log Ẑ, nats",
        "normaliser_error_size": "|b - log Ẑ|, nats",
        "effective_share": "ESS/N of the importance weights (1: all count the same)",
        "largest_share": "Largest share of one draw in the importance weights",
        "pareto_k": "Pareto k̂ of the importance weights, moving average (above 0.7: not to be trusted)",
        "log_likelihood": "Log-likelihood of the data under the energy and its b, nats",
    }

    def __init__(
        self,
        draws: int = 4,
        bound: Literal["snl", "importance"] = "snl",
        update: Literal["newton", "gradient"] = "newton",
        rate: float = 0.05,
        fit: Fit = "likelihood",
        max_error: float = 20.0,
        max_share: float | None = 0.5,
        max_pareto_k: float | None = 1.0,
    ) -> None:
        super().__init__()
        if draws < 1:
            raise ConfigError(f"draws must be at least 1, got {draws}")
        if not 0 < rate <= 1:
            raise ConfigError(f"rate must lie in (0, 1], got {rate}")
        for name, value in (("max_error", max_error), ("max_pareto_k", max_pareto_k)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive, got {value}")
        if max_share is not None and not 0 < max_share < 1:
            raise ConfigError(f"max_share must lie in (0, 1), got {max_share}; null is no limit")
        self.draws = draws
        self.bound = bound
        self.update = update
        self.rate = rate
        self.fit: Fit = fit
        self.max_error = max_error
        self.max_share = max_share
        self.max_pareto_k = max_pareto_k
        self.register_buffer("begun", torch.zeros(()))  # 1 after the first step
        self.register_buffer("seen", torch.zeros(()))  # steps
        self.register_buffer("tail", torch.zeros(()))  # moving average of Pareto k̂

    def losses(self, models: Models, batch: Batch, level: Level, random: RandomSource) -> Losses:
        """The loss of the energy, and that of the proposal; b moves."""
        found = weigh(models, batch, self.draws, self.fit, random)
        positive, penalty, observed = self.bounded(models.ebm, found)
        totals = {"ebm": positive.mean() + penalty}
        if found.fit is not None:
            totals["initializer"] = found.fit
        return Losses(totals, observed)

    def bounded(
        self, ebm: TiltedEnergy, found: Weighted
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The terms of the bound; b moves.

        Args:
            ebm: the energy, which has b.
            found: data and weights.

        Returns:
            E of the data (B,), ``e^-b Ẑ - 1`` or log Ẑ (), and what is logged, (B,) each.
        """
        ratio = found.log_ratio.detach()
        start = (1 - self.begun) * ratio  # at the first step, b becomes log Ẑ before it is used
        log_weights = found.log_weights - start
        if self.bound == "snl":
            penalty = log_mean_exp(log_weights.flatten()).exp() - 1
        elif ebm.num_given:
            penalty = log_mean_exp(log_weights).mean()
        else:
            penalty = log_mean_exp(log_weights.flatten())
        positive = found.positive + start
        with torch.no_grad():
            left = ratio - start
            step = left if self.update == "newton" else left.exp() - 1
            ebm.log_normaliser.add_(start + self.rate * step)
            self.begun.fill_(1.0)
        return positive, penalty, self._observed(found, positive, left)

    def _observed(self, found: Weighted, positive: Tensor, left: Tensor) -> dict[str, Tensor]:
        """What is logged, (B,) each."""
        whole, count = found.log_weights.detach().flatten(), len(positive)
        share = effective_sample_size(whole) / len(whole)
        values = {
            "normaliser_error": (-left).expand(count),
            "normaliser_error_size": left.abs().expand(count),
            "effective_share": share.expand(count),
            "log_likelihood": -positive.detach(),
        }
        if len(whole) >= FEWEST:
            values["largest_share"] = whole.softmax(0).amax().expand(count)
        if not whole.is_meta and int(self.seen) % EVERY == 0 and _has_arviz():
            k = pareto_k(whole.double().cpu())
            if math.isfinite(k):  # not with too few weights, or if all are the same
                self.tail += (k - self.tail) * (AVERAGED if self.seen else 1.0)
                values["pareto_k"] = self.tail.clone().expand(count)
        self.seen += 1
        return values

    def limits(self, num_values: int) -> Sequence[Limit]:
        """The limits ``max_error``, ``max_share`` and ``max_pareto_k``."""
        error = "lower ebm_lr, or raise draws or rate"
        rows = (
            ("normaliser_error_size", "max_error", "|b - log Ẑ| in nats", error),
            ("largest_share", "max_share", "the share of one draw in all weights", self.advice),
            ("pareto_k", "max_pareto_k", "Pareto k̂ of the importance weights", self.advice),
        )
        return [
            Limit(result, value, 1.0, option, text, advice)
            for result, option, text, advice in rows
            if (value := getattr(self, option)) is not None
        ]

    def summary(self) -> str:
        """The text ``self-normalised likelihood`` or ``importance sampling``, with the draws."""
        name = "self-normalised likelihood" if self.bound == "snl" else "importance sampling"
        return f"{name}, {self.draws} draws per image"


def _has_arviz() -> bool:
    return importlib.util.find_spec("arviz_stats") is not None
