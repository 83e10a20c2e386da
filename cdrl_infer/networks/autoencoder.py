"""Autoencoders whose latents lie on the unit sphere, and energies without noise levels.

Yoon, Jin, Noh, Park, "Energy-Based Models for Anomaly Detection: A Manifold Diffusion Recovery Approach"
(NeurIPS 2023, arXiv 2310.18677). The autoencoder describes a manifold near the data, and the energy
learns there. Images u lie in [-1, 1]; the paper's x lie in [0, 1], so ``u = 2x - 1``. Errors and energies
are in the paper's units.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdrl_infer.errors import ConfigError
from cdrl_infer.networks.base import Layer, Network
from cdrl_infer.schedule import Level

STRIDE = 4  # the first two convolutions of an encoder divide height and width by this
TEMPERATURE = 1.25e-6


def on_sphere(z: Tensor) -> Tensor:
    """``z / ‖z‖``, (B, D); 0 stays 0, and its gradient is finite."""
    return F.normalize(z, dim=1)


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU: for these sizes it is several times faster on a CPU than smooth activations."""
    return F.leaky_relu(x, 0.2)


class Encoder(nn.Module):
    """Three convolutions of stride 2 and a hidden layer: (B, C, H, W) -> (B, hidden)."""

    def __init__(self, in_channels: int, width: int, hidden: int, size: tuple[int, int]) -> None:
        super().__init__()
        widths = (in_channels, width, 2 * width, 4 * width)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths)
        )
        height, across = _coarsest(size)
        self.hidden = nn.Linear(widths[-1] * height * across, hidden)

    def layers(self) -> list[Layer]:
        """The layers, in order."""
        return [*cast(Iterator[nn.Conv2d], iter(self.convs)), self.hidden]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, hidden)."""
        for conv in self.convs:
            x = activate(conv(x))
        return activate(self.hidden(x.flatten(1)))


class Decoder(nn.Module):
    """The way back: (B, D) -> (B, C, H, W) in [-1, 1]."""

    def __init__(self, out_channels: int, width: int, latent: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.start = (4 * width, *_coarsest(size))
        self.enter = nn.Linear(latent, self.start[0] * self.start[1] * self.start[2])
        # From (H/4 + 1) // 2 pixels to H/4: one more where H/4 is even.
        more = (1 - size[0] // STRIDE % 2, 1 - size[1] // STRIDE % 2)
        self.up1 = nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, output_padding=more)
        self.up2 = nn.ConvTranspose2d(2 * width, width, 4, 2, 1)
        self.up3 = nn.ConvTranspose2d(width, out_channels, 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, D) -> (B, C, H, W)."""
        h = activate(self.enter(z)).reshape(-1, *self.start)
        h = activate(self.up2(activate(self.up1(h))))
        return torch.tanh(self.up3(h))


def _coarsest(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width after three convolutions of stride 2."""
    return (size[0] // STRIDE + 1) // 2, (size[1] // STRIDE + 1) // 2


class LevelFree(Network):
    """A network that depends on neither noise level nor labels."""

    size_multiple = STRIDE

    def _describe(
        self,
        in_channels: int,
        num_classes: tuple[int, ...],
        image_size: tuple[int, ...],
        sizes: Sequence[int],
    ) -> tuple[int, int]:
        """Check the arguments and set the attributes of `Network`; returns the image's size."""
        name = type(self).__name__
        if num_classes:
            raise ConfigError(
                f"{name} takes no labels, and the data have some; set data.attributes=[]"
            )
        if len(image_size) != 2 or any(side < STRIDE or side % STRIDE for side in image_size):
            raise ConfigError(
                f"{name}: image_size must be two multiples of {STRIDE}, the height and the width, got "
                f"{list(image_size)}"
            )
        if min(in_channels, *sizes) < 1:
            raise ConfigError(f"{name}: sizes must be positive, got {[in_channels, *sizes]}")
        self.in_channels, self.num_classes = in_channels, ()
        self.image_size = (image_size[0], image_size[1])
        return self.image_size

    def condition(self, level: Level, labels: Tensor | None = None) -> None:
        """Nothing: the network is the same at every level."""
        return


class SphereNetwork(LevelFree):
    """Autoencoders with latents on the unit sphere, as the proposal of a model.

    The proposal turns noise into an image: ``x_T -> f_d(P x_T / ‖P x_T‖)``, where the rows of P are
    orthonormal, so the latent is uniform on the sphere.
    """

    @property
    @abstractmethod
    def members(self) -> Sequence[SphereAutoencoder]:
        """The autoencoders, at least one."""

    def errors(self, u: Tensor) -> Tensor:
        """``‖u - f_d(f_e(u))‖²`` of images u (B, C, H, W) in [-1, 1]; the mean over the members, (B,)."""
        each = [(u - member.reconstruct(u)).square().flatten(1).sum(1) for member in self.members]
        return torch.stack(each).mean(0)

    def forward(self, x: Tensor, condition: None = None) -> Tensor:
        """Noise (B, C, H, W) -> images of the same shape. The noise also chooses the member."""
        members = self.members
        images = torch.stack([m.decode(on_sphere(x.flatten(1) @ m.projection.T)) for m in members])
        uniform = torch.special.ndtr(x.flatten(1)[:, 0])
        chosen = (uniform * len(members)).long().clamp(max=len(members) - 1)
        return images[chosen, torch.arange(len(x), device=x.device)]


class Autoencoder(LevelFree):
    """An encoder ``f_e`` onto the unit sphere and a decoder ``f_d``; see `SphereAutoencoder`."""

    def _build(
        self, in_channels: int, width: int, hidden: int, latent: int, size: tuple[int, int]
    ) -> None:
        self.encoder = Encoder(in_channels, width, hidden, size)
        self.leave = nn.Linear(hidden, latent)
        self.decoder = Decoder(in_channels, width, latent, size)

    def encode(self, u: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> points of the unit sphere (B, D)."""
        return on_sphere(self.leave(self.encoder(u)).to(u.dtype))

    def decode(self, z: Tensor) -> Tensor:
        """(B, D) -> (B, C, H, W) in [-1, 1]."""
        images: Tensor = self.decoder(z)
        return images.to(z.dtype)

    def reconstruct(self, u: Tensor) -> Tensor:
        """``f_d(f_e(u))``, (B, C, H, W)."""
        return self.decode(self.encode(u))

    def encoder_norm(self) -> Tensor:
        """The sum of the squares of all weights of the encoder, ()."""
        parts = [*self.encoder.parameters(), *self.leave.parameters()]
        return torch.stack([part.square().sum() for part in parts]).sum()


class SphereAutoencoder(Autoencoder, SphereNetwork):
    """An autoencoder with three convolutions of stride 2 each way, about half a million values.

    Args:
        in_channels: image channels.
        num_classes: must be (); the network takes no labels.
        width: channels after the first convolution; each further one doubles them.
        hidden: width of the layer before the latent.
        latent: D, the number of values of a latent.
        image_size: height and width of the images, multiples of 4.

    Raises:
        ConfigError: a size out of range, or labels.
    """

    projection: Tensor

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: tuple[int, ...] = (),
        width: int = 32,
        hidden: int = 128,
        latent: int = 32,
        image_size: tuple[int, ...] = (28, 28),
    ) -> None:
        super().__init__()
        size = self._describe(in_channels, num_classes, image_size, (width, hidden, latent))
        self._build(in_channels, width, hidden, latent, size)
        values = in_channels * size[0] * size[1]
        if latent > values:
            raise ConfigError(
                f"latent must be at most the {values} values of an image, got {latent}"
            )
        self.register_buffer("projection", nn.init.orthogonal_(torch.empty(latent, values)))

    @property
    def members(self) -> Sequence[SphereAutoencoder]:
        """The network itself."""
        return (self,)


class AutoencoderEnsemble(SphereNetwork):
    """Several `SphereAutoencoder`; training shares a batch out among them.

    Args:
        in_channels, num_classes: see `SphereAutoencoder`.
        widths: the width of each.
        hidden, latent, image_size: see `SphereAutoencoder`; the same for all.

    Raises:
        ConfigError: a size out of range, or labels.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: tuple[int, ...] = (),
        widths: tuple[int, ...] = (24, 32, 40),
        hidden: int = 128,
        latent: int = 32,
        image_size: tuple[int, ...] = (28, 28),
    ) -> None:
        super().__init__()
        self._describe(in_channels, num_classes, image_size, (*widths, len(widths)))
        self.parts = nn.ModuleList(
            SphereAutoencoder(in_channels, num_classes, width, hidden, latent, image_size)
            for width in widths
        )

    @property
    def members(self) -> Sequence[SphereAutoencoder]:
        """The autoencoders, in the order of their widths' list."""
        return cast(Sequence[SphereAutoencoder], self.parts)


class ConvEnergy(LevelFree):
    """``log p(y) = -E(y)/T`` in nats, ``E(y) = a ⟨w, h(y)⟩ + b``, for MPDR-S.

    h is an encoder of three convolutions of stride 2; a and b are learnt. Training with spectral norm
    divides the layers of h by their largest singular values, so that E cannot be steep.

    The temperature T makes the short chains of the paper Langevin chains: a gradient step of 10 with
    noise of 0.005 on x in [0, 1] samples ``exp(-E/T)`` with ``T = 0.005²/(2 · 10)``. T does not depend on
    the units of x.

    Args:
        in_channels, num_classes: see `SphereAutoencoder`.
        width, hidden, image_size: see `SphereAutoencoder`.
        temperature: T.

    Raises:
        ConfigError: a size out of range, labels, or a temperature that is not positive.
    """

    output_unit: Literal["nats"] = "nats"
    default_score = "energy"

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: tuple[int, ...] = (),
        width: int = 32,
        hidden: int = 128,
        image_size: tuple[int, ...] = (28, 28),
        temperature: float = TEMPERATURE,
    ) -> None:
        super().__init__()
        size = self._describe(in_channels, num_classes, image_size, (width, hidden))
        self.temperature = checked_temperature(temperature)
        self.encoder = Encoder(in_channels, width, hidden, size)
        self.head = nn.Parameter(torch.randn(hidden) / hidden**0.5)
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(()))

    def spectral_norm_layers(self) -> list[Layer]:
        """All layers but the head."""
        return self.encoder.layers()

    def forward(self, y: Tensor, condition: None = None) -> Tensor:
        """(B, C, H, W) -> (B,) log-density in nats."""
        h = self.encoder(y).to(y.dtype)
        energy: Tensor = self.scale * (h @ self.head) + self.bias
        return -energy / self.temperature


class ReconstructionEnergy(Autoencoder):
    """``log p(y) = -E(y)/T`` in nats, ``E(y) = a² mean (x - f_d(f_e(x)))²``, for MPDR-R.

    The mean is over the values of an image, in [0, 1] as in the paper: ``x = (y + 1)/2``. The scale a is
    learnt. Training begins at the weights of the model's autoencoder.

    Args:
        in_channels, num_classes: see `SphereAutoencoder`.
        width, hidden, latent, image_size: see `SphereAutoencoder`.
        temperature: T, see `ConvEnergy`.

    Raises:
        ConfigError: a size out of range, labels, or a temperature that is not positive.
    """

    output_unit: Literal["nats"] = "nats"
    default_score = "energy"

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: tuple[int, ...] = (),
        width: int = 32,
        hidden: int = 128,
        latent: int = 32,
        image_size: tuple[int, ...] = (28, 28),
        temperature: float = TEMPERATURE,
    ) -> None:
        super().__init__()
        size = self._describe(in_channels, num_classes, image_size, (width, hidden, latent))
        self.temperature = checked_temperature(temperature)
        self._build(in_channels, width, hidden, latent, size)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, y: Tensor, condition: None = None) -> Tensor:
        """(B, C, H, W) -> (B,) log-density in nats."""
        error = (y - self.reconstruct(y)).square().flatten(1).mean(1) / 4
        return -self.scale.square() * error / self.temperature


def checked_temperature(temperature: float) -> float:
    """Return T; raise `ConfigError` unless it is positive."""
    if not temperature > 0:
        raise ConfigError(f"temperature must be positive, got {temperature}")
    return temperature
