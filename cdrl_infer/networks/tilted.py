"""An energy that knows its own normaliser: a tilted density of few values."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from cdrl_infer.errors import ConfigError
from cdrl_infer.networks.base import Network
from cdrl_infer.networks.distributions import Distribution
from cdrl_infer.networks.mlp import ResidualMLP
from cdrl_infer.schedule import Level


class TiltedCondition(NamedTuple):
    """Constants of a level: the shifts of both networks, and 1/m, () or (B,)."""

    shifts: list[Tensor]
    given_shifts: list[Tensor]
    inverse_scale: Tensor


class TiltedEnergy(Network):
    """``log p(y) = f(x) + log q₀(x) - b`` in nats, ``x = y/m``: a density q₀, tilted by a network f.

    Training moves b to the log-normaliser of the rest, so that ``-E`` is the log-density itself
    (Senetaire et al., arXiv 2503.07021). If the base q₀ has given values x' (see
    `Distribution.num_given`), then ``b = b(x')`` has a network too, and
    ``log p = log p(rest | x') + log q₀(x')``.

    f starts at 0, so p starts at q₀ and b at 0.

    Args:
        base: q₀.
        width: number of values in the hidden layers of f.
        num_blocks: number of residual blocks of f, at least 1.
        waves: sines (and as many cosines) of each value that f sees beside the value; edges of data in
            [-1, 1] are learnt faster with 4. 0 for values of no fixed range, such as latent ones.
        learn_base: whether q₀ learns with f.

    Attributes:
        log_normaliser: the number in b. It has no gradient; the objective moves it.

    Raises:
        ConfigError: a size is not positive, or the base has classes.
    """

    output_unit: Literal["nats"] = "nats"

    def __init__(
        self,
        base: Distribution,
        width: int = 64,
        num_blocks: int = 2,
        waves: int = 4,
        learn_base: bool = False,
    ) -> None:
        super().__init__()
        if base.num_classes:
            raise ConfigError(
                "a TiltedEnergy has one normaliser for all labels, so it is unconditional, got "
                f"num_classes={base.num_classes}; set data.attributes=[]"
            )
        self.in_channels, self.num_classes = base.in_channels, ()
        self.num_pixels = base.num_pixels
        self.base = base.requires_grad_(learn_base)
        values = base.in_channels * (base.num_pixels or 1)
        self.mlp = ResidualMLP(values, 1, width, num_blocks, (), waves)
        self.log_normaliser = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.given_normaliser = None
        if base.num_given:
            self.given_normaliser = ResidualMLP(base.num_given, 1, width, num_blocks, (), waves)

    @property
    def num_given(self) -> int:
        """Number of values x' that are conditions; 0 for none."""
        return self.base.num_given

    def condition(self, level: Level, labels: Tensor | None = None) -> TiltedCondition:
        """The constants of a level."""
        given = self.given_normaliser
        return TiltedCondition(
            self.mlp.condition(level.logsnr, labels),
            [] if given is None else given.condition(level.logsnr, labels),
            1 / level.scale,
        )

    def forward(self, y: Tensor, condition: TiltedCondition) -> Tensor:
        """(B, C, H, W) -> (B,) log-density in nats, once b is the log-normaliser."""
        flat = y.flatten(1) * condition.inverse_scale.reshape(-1, 1)
        f: Tensor = self.mlp(flat, condition.shifts).to(flat.dtype)[:, 0]
        b = self.log_normaliser
        if self.given_normaliser is not None:
            given = flat[:, : self.num_given]
            b = b + self.given_normaliser(given, condition.given_shifts).to(flat.dtype)[:, 0]
        log_density: Tensor = f + self.base.log_prob(flat) - b
        return log_density
