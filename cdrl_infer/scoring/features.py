"""The features that scores use: energies, denoising errors and proposal errors.

Noise is added to each image at every level. The noise of a level is the same for all images, so the
features of an image depend only on the image and the seed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cdrl_infer.energies.base import Energy
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.energies.recorded import recorded
from cdrl_infer.images import to_uint8
from cdrl_infer.model import CDRLModel
from cdrl_infer.proposals import (
    AutoencoderProposal,
    MeanProposal,
    posterior_mean,
    proposal_of,
)
from cdrl_infer.random import BatchRandom
from cdrl_infer.schedule import NoiseSchedule

SMALLEST = 1e-12  # smaller errors are raised to this before a logarithm is taken
_lazy: Any = cached_property


class Features:
    """The features of B images u for the transitions t = 1 … T; all float64, on the CPU.

    The noised images are ``y_t = m_t (α_{t-1} u + σ̄_{t-1} ε_t)`` and ``x_t = α_t u + σ̄_t ε_t``.

    Attributes:
        log_score_errors: (B, T) log D_t with ``D_t = ‖ m σ̄ ∇_y E(y_t) - ε_t ‖²``, the loss of denoising
            score matching.
        energies: (B, T) ``E_t = E(y_t)``, nats.
        score_norms: (B, T) ``‖ m σ̄ ∇_y E(y_t) ‖²``; near the number of pixels for images of the data.
        log_initializer_errors: (B, T) log I_t, ``I_t = ‖ g(x_t) - m_t E[x_{t-1} | x_t, u] ‖² / σ_t²``; of
            an autoencoder the error of reconstruction, ``I_t = ‖ u - f_d(f_e(u)) ‖²``.
        compressed_size: (B,) nats, the sizes of the images as PNG files with 8 bits per channel.
    """

    log_score_errors: Tensor
    energies: Tensor
    score_norms: Tensor
    log_initializer_errors: Tensor
    compressed_size: Tensor

    @property
    def num_levels(self) -> int:
        """T, the number of transitions."""
        return self.energies.shape[1]

    def energy(self, t: int) -> Tensor:
        """``E_t``, (B,) nats."""
        return self.energies[:, t - 1]

    def score_norm(self, t: int) -> Tensor:
        """``‖ m σ̄ ∇_y E(y_t) ‖²``, (B,)."""
        return self.score_norms[:, t - 1]

    def log_score_error(self, t: int) -> Tensor:
        """log D_t, (B,)."""
        return self.log_score_errors[:, t - 1]

    def log_initializer_error(self, t: int) -> Tensor:
        """log I_t, (B,)."""
        return self.log_initializer_errors[:, t - 1]

    def at(self, transitions: Sequence[int]) -> Tensor:
        """(B, 3L): the E_t, then the log D_t, then the log I_t of L transitions t."""
        # The errors first: `NoisedImages` then knows the energies.
        errors = [*map(self.log_score_error, transitions)]
        proposals = map(self.log_initializer_error, transitions)
        return torch.stack([*map(self.energy, transitions), *errors, *proposals], 1)

    @property
    def all(self) -> Tensor:
        """(B, 3T): E_1 … E_T, log D_1 … log D_T, log I_1 … log I_T."""
        return self.at(range(1, self.num_levels + 1))


@dataclass(frozen=True, eq=False)
class FeatureTable(Features):
    """Stored features; see `Features` for the fields."""

    log_score_errors: Tensor  # first: `NoisedImages` then knows the energies and the norms
    energies: Tensor
    score_norms: Tensor
    log_initializer_errors: Tensor
    compressed_size: Tensor

    @classmethod
    def of(cls, features: Features) -> FeatureTable:
        """Compute all features of a batch."""
        return cls(*(getattr(features, field.name) for field in fields(cls)))

    @classmethod
    def join(cls, tables: Sequence[FeatureTable]) -> FeatureTable:
        """One table with the images of several tables."""
        return cls(*map(torch.cat, zip(*(t.columns().values() for t in tables), strict=True)))

    def __len__(self) -> int:
        return len(self.compressed_size)

    def columns(self) -> dict[str, Tensor]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def finite(self) -> bool:
        """Whether all values are finite."""
        return all(bool(values.isfinite().all()) for values in self.columns().values())


def draw_noise(schedule: NoiseSchedule, shape: Sequence[int], seed: int) -> Tensor:
    """ε_1 … ε_T of a seed, (T, *shape) standard normals: the same bits on every device."""
    return BatchRandom(schedule.num_levels, torch.Generator("cpu").manual_seed(seed)).normal(shape)


class NoisedImages(Features):
    """The features of a batch of images. The first use of a feature computes it.

    Args:
        energy: the energy of the model, or any other energy.
        proposal: the features compare its mean with the mean of the forward process.
        schedule: the levels.
        u: (B, ...) the images, in [-1, 1].
        noise: (T, ...) ε_t, see `draw_noise`.
    """

    log_score_errors: Tensor = _lazy(lambda self: self._each(self.log_score_error))
    energies: Tensor = _lazy(lambda self: self._each(self.energy))
    score_norms: Tensor = _lazy(lambda self: self._each(self.score_norm))
    log_initializer_errors: Tensor = _lazy(lambda self: self._each(self.log_initializer_error))
    compressed_size: Tensor = _lazy(lambda self: _png_nats(to_uint8(self.u)))

    def __init__(
        self,
        energy: Energy,
        proposal: MeanProposal,
        schedule: NoiseSchedule,
        u: Tensor,
        noise: Tensor,
    ) -> None:
        self.model_energy = energy
        self.proposal = proposal
        self.schedule = schedule
        self.u = u
        self.noise = noise.to(u)
        self._measured: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def of(cls, model: CDRLModel, images: Tensor, noise: Tensor) -> NoisedImages:
        """The features that a model computes on its device, without labels.

        Args:
            model: has the networks; a model without an initializer proposes x_t.
            images: (B, C, H, W) in [0, 1].
            noise: (T, C, H, W), see `draw_noise`.
        """
        u = 2 * images.to(model.device) - 1
        labels = None
        if model.labels:
            labels = torch.zeros(len(u), len(model.labels), dtype=torch.int64, device=u.device)
        proposal = proposal_of(model, labels)
        return cls(NeuralEnergy(model.ebm, labels), proposal, model.schedule, u, noise)

    @property
    def num_levels(self) -> int:
        """T, the number of transitions."""
        return self.schedule.num_levels

    @torch.no_grad()
    @recorded()
    def denoised(self, t: int) -> tuple[Tensor, Tensor]:
        """The energy (B,) in nats and ``m σ̄ ∇_y E`` (B, ...), the model's estimate of the noise."""
        level = self.schedule.level(t, self.u.device)
        value, grad = self.model_energy.at(level).value_and_grad(self._point(t))
        return _exact(value), _exact(level.scale * level.sigma_bar * grad)

    def energy(self, t: int) -> Tensor:
        """``E_t``, (B,) nats. It computes no gradient."""
        if t in self._measured:
            return self._measured[t][0]
        level = self.schedule.level(t, self.u.device)
        with torch.no_grad():
            return _exact(self.model_energy(self._point(t), level))

    def score_norm(self, t: int) -> Tensor:
        """``‖ m σ̄ ∇_y E(y_t) ‖²``, (B,)."""
        return self._measure(t)[1]

    def log_score_error(self, t: int) -> Tensor:
        """log D_t, (B,)."""
        return _log(self._measure(t)[2])

    @torch.no_grad()
    def log_initializer_error(self, t: int) -> Tensor:
        """log I_t, (B,)."""
        if isinstance(self.proposal, AutoencoderProposal):
            return _log(_exact(self.proposal.errors(self.u)))
        level = self.schedule.level(t, self.u.device)
        x_t = level.diffused_in(self.u, self.noise[t - 1])
        error = self.proposal.mean(x_t, level) - posterior_mean(self.u, x_t, level)
        return _log(_squares(_exact(error)) / float(level.noise_variance))

    def _each(self, of: Callable[[int], Tensor]) -> Tensor:
        return torch.stack([of(t) for t in range(1, self.num_levels + 1)], 1)

    def _point(self, t: int) -> Tensor:
        level = self.schedule.level(t, self.u.device)
        return level.scale * level.diffused(self.u, self.noise[t - 1])

    def _measure(self, t: int) -> tuple[Tensor, Tensor, Tensor]:
        if t not in self._measured:
            energy, found = self.denoised(t)
            error = found - _exact(self.noise[t - 1])
            self._measured[t] = energy, _squares(found), _squares(error)
        return self._measured[t]


def _exact(values: Tensor) -> Tensor:
    """float64, converted on the CPU: not every accelerator has it."""
    return values.detach().cpu().double()


def _log(errors: Tensor) -> Tensor:
    """The log of squared errors, which may be 0."""
    return errors.clamp_min(SMALLEST).log()


def _squares(values: Tensor) -> Tensor:
    return values.square().flatten(1).sum(1)


def _png_nats(images: Tensor) -> Tensor:
    """(B, C, H, W) uint8 -> (B,) nats. 1 channel is grey, 3 are RGB; others form one grey stack."""
    sizes = []
    for image in images.cpu():
        pixels = image.permute(1, 2, 0) if len(image) == 3 else image.flatten(0, 1)
        file = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(file, "PNG", optimize=True)
        sizes.append(len(file.getvalue()))
    return torch.tensor(sizes).double() * 8 * math.log(2)
