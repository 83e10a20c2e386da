"""The noise levels of CDRL, and all constants of a level.

Source: Zhu, Xie, Wu, Gao, "Learning Energy-Based Models by Cooperative Diffusion Recovery
Likelihood", ICLR 2024 (arXiv 2309.05153), section 3 and appendix. The log-SNR curve is from Salimans &
Ho 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from cdrl_infer.device import default_switches
from cdrl_infer.errors import ConfigError

StepRule = Literal["paper", "curvature"]


@dataclass(frozen=True, eq=False)
class Level:
    """The constants of one transition ``t -> t-1``, as float32 tensors of shape () or (B,).

    The transition starts from the noisier image ``x_t``. The EBM models ``y = m_t x_{t-1}``.
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
    recovery: Tensor  # rec_t = 1, and 0 at t = T
    step_variance: Tensor  # s_t², the variance of the noise in one Langevin step
    proposal_variance: Tensor  # τ_t² = β̃_t m_t²

    @property
    def gain(self) -> Tensor:
        """``√r_t / m_t``: what the forward transition multiplies ``y = m_t x_{t-1}`` by, () or (B,)."""
        return (1 - self.noise_variance).sqrt() / self.scale

    def diffused(self, x: Tensor, noise: Tensor) -> Tensor:
        """Add the noise of level t-1 to clean images x: ``x_{t-1} = α_{t-1} x + σ̄_{t-1} ε``, (B, ...)."""
        return self.expand(self.alpha, x) * x + self.expand(self.sigma_bar, x) * noise

    def diffused_in(self, x: Tensor, noise: Tensor) -> Tensor:
        """Add the noise of level t to clean images x: ``x_t = α_t x + σ̄_t ε``, (B, ...)."""
        return self.expand(self.alpha_in, x) * x + self.expand(self.sigma_bar_in, x) * noise

    def noised(self, x: Tensor, noise: Tensor) -> Tensor:
        """The forward transition ``x_t = √(1-σ_t²) x_{t-1} + σ_t ε``, (B, ...)."""
        kept = self.expand((1 - self.noise_variance).sqrt(), x)
        return kept * x + self.expand(self.noise_variance.sqrt(), x) * noise

    def expand(self, value: Tensor, like: Tensor) -> Tensor:
        """``value`` of shape () or (B,) reshaped to broadcast against ``like`` (B, ...)."""
        return value.reshape(value.shape + (1,) * (like.ndim - 1)) if value.ndim else value


@dataclass(frozen=True)
class NoiseSchedule:
    """Variance-preserving noise levels ``x_i = α_i x + σ̄_i ε`` for i = 0 … T.

    ``λ_i = -2 log tan(a·i/T + b)``, ``α_i² = sigmoid(λ_i)``, ``σ̄_i² = sigmoid(-λ_i)``. They are computed
    in float64 and stored as float32.

    Args:
        num_levels: T, the number of transitions (and of EBMs).
        logsnr_max: λ_0, the log signal-to-noise ratio of the cleanest level.
        logsnr_min: λ_T, the log signal-to-noise ratio of the noisiest level.
        step_rule: the Langevin step variance of a level. ``"paper"`` is
            ``s_t² = step_size · (σ̄_{t-1}/σ̄_0) · σ_t²``. ``"curvature"`` is ``s_t² = step_size / L_t``,
            where ``L_t = 1/(m_t² σ̄_{t-1}²) + rec_t/σ_t²`` is the largest curvature of
            ``-log p(y | x_t)``. With it, one step size suits all levels: the unadjusted chain is stable
            below 4, and its variance is too large by a factor of at most ``1 / (1 - step_size/4)``.
        step_size: ``4e-4`` in the paper (named b² there); a fraction of ``1/L_t`` for "curvature".

    Raises:
        ConfigError: a value is out of range.
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
        object.__setattr__(self, "_tables", {torch.device("cpu"): self._compute()})

    @default_switches()
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
        last = i[1:] == T
        scale = torch.where(last, 1.0, ratio.sqrt())  # m_t
        recovery = 1 - last.double()  # rec_t
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
        """The constants of transition ``t``, an int for a whole batch or (B,) integers, in 1 … T.

        If ``t`` is on an accelerator, its values are not checked, since that would wait for the device.

        Raises:
            ValueError: ``t`` lies outside 1 … T.
        """
        if isinstance(t, Tensor) and t.device.type != "cpu":
            values = {name: column[t - 1] for name, column in self._table(t.device).items()}
            return Level(t=t, **values)
        index = torch.as_tensor(t, dtype=torch.int64, device="cpu")
        if index.numel() and not bool(((index >= 1) & (index <= self.num_levels)).all()):
            raise ValueError(f"t must lie in 1 … {self.num_levels}, got {t}")
        table = self._table(torch.device("cpu"))
        values = {name: column[index - 1].to(device) for name, column in table.items()}
        return Level(t=index.to(device), **values)

    def _table(self, device: torch.device) -> dict[str, Tensor]:
        """The constants of all transitions on a device; sending them there waits, so it is done once."""
        tables: dict[torch.device, dict[str, Tensor]] = getattr(self, "_tables")  # noqa: B009
        if device in tables:
            return tables[device]
        columns = tables[torch.device("cpu")].items()
        sent = {name: column.to(device) for name, column in columns}
        if device.type != "meta":  # there, work is counted and nothing is kept
            tables[device] = sent
        return sent

    def config(self) -> dict[str, int | float | str]:
        """The arguments of the constructor, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
