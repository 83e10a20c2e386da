"""What scores are made of: energies, denoising errors and proposal errors of noised images.

Each image is noised at every level, with one noise per level that is the same for all images, so that
what is measured of an image depends on the image and the seed alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from cdrl_infer.energies.base import Energy
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.images import to_uint8
from cdrl_infer.proposals import make_proposal, posterior_mean
from cdrl_infer.schedule import NoiseSchedule

SMALLEST = 1e-12  # of what a logarithm is taken


class ScoredModel(Protocol):
    """What of a `cdrl_infer.storage.folder.CDRLModel` scores need."""

    ebm: Any
    initializer: Any

    @property
    def schedule(self) -> NoiseSchedule:
        """The levels."""
        ...

    @property
    def image(self) -> Any:
        """The shape of one image, as ``image.shape``: (C, H, W)."""
        ...

    @property
    def labels(self) -> Sequence[Any]:
        """One entry per attribute."""
        ...


class MeanProposal(Protocol):
    """A proposal with a mean, such as `InitializerProposal`."""

    def mean(self, x_t: Tensor, level: Any) -> Tensor:
        """(B, ...) -> (B, ...)."""
        ...


class Denoised(NamedTuple):
    """What the energy says of a batch at one level."""

    energy: Tensor  # (B,) nats
    predicted: Tensor  # m σ̄ ∇_y E (B, ...): the noise that the energy finds in y
    noise: Tensor  # ε (1, ...): the noise that is in y


def draw_noise(schedule: NoiseSchedule, shape: Sequence[int], seed: int) -> Tensor:
    """ε_1 … ε_T of a seed, (T, *shape) standard normals: the same bits on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(schedule.num_levels, *shape, generator=generator)


class NoisedImages:
    """A batch of images at every level: ``y_t = m_t (α_{t-1} u + σ̄_{t-1} ε_t)``.

    Whatever is asked of it is computed then, once, in float32; what is returned is float64 and on the
    CPU.

    Args:
        energy: of the networks, or any other.
        proposal: its mean is compared with the forward process's.
        schedule: the levels.
        u: (B, ...) the images, in [-1, 1].
        noise: (T, ...) ε_t, see `draw_noise`.
    """

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
        self._errors: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def of(cls, model: ScoredModel, images: Tensor, noise: Tensor) -> NoisedImages:
        """Of a model without labels given, on its device.

        Args:
            model: a `cdrl_infer.storage.folder.CDRLModel`.
            images: (B, C, H, W) in [0, 1].
            noise: (T, C, H, W), see `draw_noise`.
        """
        u = 2 * images.to(next(model.ebm.parameters()).device) - 1
        labels = None
        if model.labels:
            labels = torch.zeros(len(u), len(model.labels), dtype=torch.int64, device=u.device)
        energy = NeuralEnergy(model.ebm, labels)
        proposal = make_proposal(model.initializer, labels)
        return cls(energy, proposal, model.schedule, u, noise)

    @property
    def num_levels(self) -> int:
        """T."""
        return self.schedule.num_levels

    def denoised(self, t: int) -> Denoised:
        """Energy and predicted noise at level t = 1 … T; computed anew at each call."""
        level, noise = self.schedule.level(t, self.u.device), self.noise[t - 1 : t]
        value, grad = self.model_energy.at(level).value_and_grad(self._point(t))
        predicted = level.scale * level.sigma_bar * grad
        return Denoised(_exact(value), _exact(predicted), _exact(noise))

    def energy(self, t: int) -> Tensor:
        """``E_t = E(y_t)``, (B,) nats."""
        if t in self._errors:
            return self._errors[t][0]
        level = self.schedule.level(t, self.u.device)
        with torch.no_grad():
            return _exact(self.model_energy(self._point(t), level))

    def score_norm(self, t: int) -> Tensor:
        """``‖ m σ̄ ∇_y E(y_t) ‖²``, (B,); about the number of pixels for an image of the data."""
        return self._measured(t)[1]

    def score_error(self, t: int) -> Tensor:
        """``D_t = ‖ m σ̄ ∇_y E(y_t) - ε_t ‖²``, (B,): denoising score matching's loss of each image."""
        return self._measured(t)[2]

    @torch.no_grad()
    def initializer_error(self, t: int) -> Tensor:
        """``I_t = ‖ g(x_t) - m_t E[x_{t-1} | x_t, u] ‖² / σ_t²`` with ``x_t = α_t u + σ̄_t ε_t``, (B,)."""
        level = self.schedule.level(t, self.u.device)
        x_t = level.diffused_in(self.u, self.noise[t - 1])
        error = self.proposal.mean(x_t, level) - posterior_mean(self.u, x_t, level)
        return _squares(_exact(error)) / float(level.noise_variance)

    @cached_property
    def energies(self) -> Tensor:
        """(B, T): E_1 … E_T."""
        return self._each_level(self.energy)

    @cached_property
    def log_score_errors(self) -> Tensor:
        """(B, T): log D_1 … log D_T."""
        return self._each_level(self.score_error).clamp_min(SMALLEST).log()

    @cached_property
    def log_initializer_errors(self) -> Tensor:
        """(B, T): log I_1 … log I_T."""
        return self._each_level(self.initializer_error).clamp_min(SMALLEST).log()

    @property
    def all(self) -> Tensor:
        """(B, 3T): what reference statistics are of, E_t, log D_t and log I_t."""
        errors = self.log_score_errors  # first: it finds the energies too
        return torch.cat([self.energies, errors, self.log_initializer_errors], 1)

    def compressed_size(self) -> Tensor:
        """(B,) nats that the images take as PNG files, 8 bits per channel."""
        sizes = torch.tensor([_png_bytes(image) for image in to_uint8(self.u)])
        return sizes.double() * 8 * math.log(2)

    def _each_level(self, of: Callable[[int], Tensor]) -> Tensor:
        return torch.stack([of(t) for t in range(1, self.num_levels + 1)], 1)

    def _point(self, t: int) -> Tensor:
        level = self.schedule.level(t, self.u.device)
        return level.scale * level.diffused(self.u, self.noise[t - 1])

    def _measured(self, t: int) -> tuple[Tensor, Tensor, Tensor]:
        if t not in self._errors:
            found = self.denoised(t)
            error = found.predicted - found.noise
            self._errors[t] = found.energy, _squares(found.predicted), _squares(error)
        return self._errors[t]


def _exact(values: Tensor) -> Tensor:
    """On the CPU first: not every accelerator has float64."""
    return values.detach().cpu().double()


def _squares(values: Tensor) -> Tensor:
    return values.square().flatten(1).sum(1)


def _png_bytes(image: Tensor) -> int:
    """(C, H, W) uint8 -> the length of its file; other than 1 and 3 channels lie below each other."""
    pixels = image.permute(1, 2, 0) if len(image) == 3 else image.flatten(0, 1)
    file = io.BytesIO()
    Image.fromarray(pixels.cpu().numpy()).save(file, "PNG", optimize=True)
    return len(file.getvalue())
