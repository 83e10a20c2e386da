"""The noise levels of CDRL: every number that belongs to a level, in one place.

Source: Zhu, Xie, Wu, Gao, "Learning Energy-Based Models by Cooperative Diffusion Recovery
Likelihood", ICLR 2024 (arXiv 2309.05153), section 3 and appendix; the log-SNR curve is that of
Salimans & Ho 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from cdrl_infer.errors import ConfigError

StepRule = Literal["paper", "curvature"]


@dataclass(frozen=True, eq=False)
class Level:
    """The constants of one transition ``t -> t-1``; each a float32 tensor of shape () or (B,).

    ``x_t`` is the noisier image that goes in, ``y = m_t x_{t-1}`` is what the EBM models.
    """

    t: Tensor  # transition index, 1 … T (int64)
    logsnr_in: Tensor  # λ_t
    alpha_in: Tensor  # α_t
    sigma_bar_in: Tensor  # σ̄_t
    logsnr: Tensor  # λ_{t-1}
    alpha: Tensor  # α_{t-1}
    sigma_bar: Tensor  # σ̄_{t-1}
    noise_variance: Tensor  # σ_t² = 1 - α_t²/α_{t-1}²
    scale: Tensor  # m_t = √(α_t²/α_{t-1}²), and 1 at t = T
    recovery: Tensor  # rec_t: 1, and 0 at t = T
    step_variance: Tensor  # s_t², the variance of the noise in one Langevin step
    proposal_variance: Tensor  # τ_t² = β̃_t m_t²

    def diffused(self, x: Tensor, noise: Tensor) -> Tensor:
        """From clean images: ``x_{t-1} = α_{t-1} x + σ̄_{t-1} ε``, (B, ...) each."""
        return self.expand(self.alpha, x) * x + self.expand(self.sigma_bar, x) * noise

    def diffused_in(self, x: Tensor, noise: Tensor) -> Tensor:
        """From clean images: ``x_t = α_t x + σ̄_t ε``, (B, ...) each."""
        return self.expand(self.alpha_in, x) * x + self.expand(self.sigma_bar_in, x) * noise

    def noised(self, x: Tensor, noise: Tensor) -> Tensor:
        """The forward transition: ``x_t = √(1-σ_t²) x_{t-1} + σ_t ε``, (B, ...) each."""
        kept = self.expand((1 - self.noise_variance).sqrt(), x)
        return kept * x + self.expand(self.noise_variance.sqrt(), x) * noise

    def expand(self, value: Tensor, like: Tensor) -> Tensor:
        """``value`` of shape () or (B,) reshaped to broadcast against ``like`` (B, ...)."""
        return value.reshape(value.shape + (1,) * (like.ndim - 1)) if value.ndim else value


@dataclass(frozen=True)
class NoiseSchedule:
    """Six (by default) variance-preserving noise levels, ``x_i = α_i x + σ̄_i ε``.

    ``λ_i = -2 log tan(a·i/T + b)``, ``α_i² = sigmoid(λ_i)``, ``σ̄_i² = sigmoid(-λ_i)``; computed in
    float64, kept as float32.

    Args:
        num_levels: T, the number of transitions (and of EBMs).
        logsnr_max: λ_0, the log signal-to-noise ratio of the cleanest level.
        logsnr_min: λ_T, that of the noisiest.
        step_rule: how the Langevin step variance follows the level. ``"paper"``:
            ``s_t² = step_size · (σ̄_{t-1}/σ̄_0) · σ_t²``. ``"curvature"``:
            ``s_t² = step_size / L_t`` with ``L_t = 1/(m_t² σ̄_{t-1}²) + rec_t/σ_t²``, the largest
            curvature of ``-log p(y | x_t)``, so that one step size suits all levels (the unadjusted
            chain is stable below 4; its variance is too large by a factor of at most
            ``1 / (1 - step_size/4)``).
        step_size: ``4e-4`` in the paper (there called b²); a fraction of ``1/L_t`` for "curvature".

    Raises:
        ConfigError: a value outside its range.
    """

    num_levels: int = 6
    logsnr_max: float = 9.8
    logsnr_min: float = -5.1
    step_rule: StepRule = "paper"
    step_size: float = 4e-4

    def __post_init__(self) -> None:
        if type(self.num_levels) is not int or not 1 <= self.num_levels <= 10_000:
            raise ConfigError(f"num_levels must be an integer in 1 … 10000, got {self.num_levels}")
        if not -40.0 < self.logsnr_min < self.logsnr_max < 40.0:
            raise ConfigError(
                "expected -40 < logsnr_min < logsnr_max < 40, "
                f"got logsnr_min={self.logsnr_min}, logsnr_max={self.logsnr_max}"
            )
        if self.step_rule not in ("paper", "curvature"):
            raise ConfigError(f"step_rule must be 'paper' or 'curvature', got {self.step_rule!r}")
        limit = 4.0 if self.step_rule == "curvature" else 1.0
        if not 0.0 < self.step_size < limit:
            raise ConfigError(
                f"step_size must lie in (0, {limit:g}) for step_rule={self.step_rule!r}, "
                f"got {self.step_size}"
            )
        object.__setattr__(self, "_table", self._compute())

    def _compute(self) -> dict[str, Tensor]:
        T = self.num_levels
        b = math.atan(math.exp(-self.logsnr_max / 2))
        a = math.atan(math.exp(-self.logsnr_min / 2)) - b
        i = torch.arange(T + 1, dtype=torch.float64)
        logsnr = -2 * torch.log(torch.tan(a * i / T + b))
        alpha2, sigma_bar2 = torch.sigmoid(logsnr), torch.sigmoid(-logsnr)
        alpha, sigma_bar = alpha2.sqrt(), sigma_bar2.sqrt()

        ratio = alpha2[1:] / alpha2[:-1]  # r_t
        noise_variance = 1 - ratio  # σ_t²
        last = torch.arange(1, T + 1) == T
        scale = torch.where(last, 1.0, ratio.sqrt())  # m_t
        recovery = torch.where(last, 0.0, 1.0).double()  # rec_t
        if self.step_rule == "paper":
            step_variance = self.step_size * sigma_bar[:-1] / sigma_bar[0] * noise_variance
        else:
            curvature = 1 / (scale**2 * sigma_bar2[:-1]) + recovery / noise_variance
            step_variance = self.step_size / curvature
        posterior = (1 - alpha2[:-1]) / (1 - alpha2[1:]) * noise_variance  # β̃_t
        table = {
            "logsnr_in": logsnr[1:],
            "alpha_in": alpha[1:],
            "sigma_bar_in": sigma_bar[1:],
            "logsnr": logsnr[:-1],
            "alpha": alpha[:-1],
            "sigma_bar": sigma_bar[:-1],
            "noise_variance": noise_variance,
            "scale": scale,
            "recovery": recovery,
            "step_variance": step_variance,
            "proposal_variance": posterior * scale**2,  # τ_t²
        }
        return {name: value.float() for name, value in table.items()}

    def level(self, t: int | Tensor, device: torch.device | str | None = None) -> Level:
        """The constants of transition ``t``: one int for a whole batch, or (B,) integers in 1 … T.

        Raises:
            ValueError: ``t`` outside 1 … T.
        """
        index = torch.as_tensor(t, dtype=torch.int64, device="cpu")
        if index.numel() and not bool(((index >= 1) & (index <= self.num_levels)).all()):
            raise ValueError(f"t must lie in 1 … {self.num_levels}, got {t}")
        table: dict[str, Tensor] = getattr(self, "_table")  # noqa: B009
        values = {name: column[index - 1].to(device) for name, column in table.items()}
        return Level(t=index.to(device), **values)

    def config(self) -> dict[str, int | float | str]:
        """The constructor's arguments."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
