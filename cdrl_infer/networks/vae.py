"""A variational autoencoder as an energy, with a Gaussian or a self-normalised energy as its prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdrl_infer.errors import ConfigError
from cdrl_infer.networks.base import GenerativeNetwork
from cdrl_infer.networks.distributions import GaussianDistribution, MixtureDistribution, choose
from cdrl_infer.networks.tilted import TiltedCondition, TiltedEnergy
from cdrl_infer.random import RandomSource, Repeated
from cdrl_infer.schedule import Level

MAX_LOG_SCALE = 3.0  # of the encoder, whose values grow without bound for images unlike the data


class VAECondition(NamedTuple):
    """Constants of a level: those of the prior, None for a Gaussian, and 1/m, () or (B,)."""

    prior: TiltedCondition | None
    inverse_scale: Tensor


class VAEEnergy(GenerativeNetwork):
    """``log p(x) ≥ E_q[log p(x|z) + log p(z) - log q(z|x)]`` of black and white images x, in nats.

    Kingma & Welling 2014. The encoder is ``q(z|x) = N(μ(x), diag σ²(x))``, the decoder ``p(x|z)`` a
    Bernoulli distribution of each pixel. The prior is ``N(0, I)``, or a `TiltedEnergy`
    ``log p(z) = f(z) + log N(z; 0, I) - b`` whose f starts at 0 (SNELBO, Senetaire et al., arXiv
    2503.07021). Beside it there is a mixture ``r(z)``, which training fits to the encoder's draws.
    Normaliser and samples are by importance sampling from r.

    The energy of an image is ``-log p(x|μ) + KL(q(z|x) ‖ N(0, I)) - f(μ) + b``: minus the bound above,
    with μ in place of draws of z where the mean over q has no closed form. So it has no noise, and it is
    lower than minus the bound. Values between black (-1) and white (1) count as probabilities of white.

    Args:
        in_channels: image channels.
        num_pixels: height times width of an image.
        latents: number of values of z.
        width: number of values in the hidden layers of encoder and decoder.
        num_layers: hidden layers of each, at least 1.
        prior: "energy", or "gaussian" for the plain VAE.
        prior_width, prior_blocks: the sizes of f, see `TiltedEnergy`.
        components: Gaussians in r, beside a tenth of N(0, I).
        candidates: to draw a z from an energy, this number of draws of r is weighed by p/r, and one of
            them chosen.
        num_classes: must be (); the model is unconditional.

    Attributes:
        prior, proposal: p and r of the latents, as images (1, 1, L); None for a Gaussian prior.

    Raises:
        ConfigError: a size is not positive, or there are classes.
    """

    output_unit: Literal["nats"] = "nats"
    default_score = "energy"

    def __init__(
        self,
        in_channels: int = 1,
        num_pixels: int = 784,
        latents: int = 16,
        width: int = 200,
        num_layers: int = 2,
        prior: Literal["gaussian", "energy"] = "energy",
        prior_width: int = 64,
        prior_blocks: int = 1,
        components: int = 16,
        candidates: int = 64,
        num_classes: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        sizes = {"latents": latents, "width": width, "num_layers": num_layers}
        sizes |= {"num_pixels": num_pixels, "candidates": candidates}
        if min(in_channels, *sizes.values()) < 1:
            raise ConfigError(f"expected positive sizes, got {sizes}")
        if num_classes:
            raise ConfigError(
                f"a VAEEnergy is unconditional, got num_classes={tuple(num_classes)}; set "
                "data.attributes=[]"
            )
        self.in_channels, self.num_classes, self.num_pixels = in_channels, (), num_pixels
        self.latents, self.candidates = latents, candidates
        values, hidden = in_channels * num_pixels, [width] * num_layers
        self.encoder = _layers(values, *hidden, 2 * latents)
        self.decoder = _layers(latents, *hidden, values)
        self.prior = self.proposal = None
        if prior == "energy":
            base = GaussianDistribution(num_pixels=latents)
            self.prior = TiltedEnergy(base, prior_width, prior_blocks, waves=0)
            self.proposal = MixtureDistribution(
                num_pixels=latents, components=components, scale=1.0
            )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, D) in [0, 1] -> μ and log σ, (B, L) each."""
        mean, log_scale = self.encoder(2 * x - 1).chunk(2, 1)
        return mean, log_scale.clamp(max=MAX_LOG_SCALE)

    def decode(self, z: Tensor) -> Tensor:
        """(B, L) -> the log-odds of white, (B, D)."""
        logits: Tensor = self.decoder(z)
        return logits

    def condition(self, level: Level, labels: Tensor | None = None) -> VAECondition:
        """The constants of a level."""
        prior = None
        if self.prior is not None:
            one = torch.ones_like(level.scale)  # latents have no noise levels
            prior = self.prior.condition(level)._replace(inverse_scale=one)
        return VAECondition(prior, 1 / level.scale)

    def tilt(self, z: Tensor, condition: VAECondition) -> Tensor:
        """``f(z) - b`` of latents (B, L), (B,) nats; 0 for a Gaussian prior."""
        if self.prior is None or condition.prior is None:
            return torch.zeros_like(z[:, 0])
        log_prior: Tensor = self.prior(z, condition.prior)
        return log_prior - self.prior.base.log_prob(z)

    def forward(self, y: Tensor, condition: VAECondition) -> Tensor:
        """(B, C, H, W) -> (B,) minus the energy, nats."""
        x = (y.flatten(1) * condition.inverse_scale.reshape(-1, 1) + 1) / 2
        mean, log_scale = self.encode(x)
        divergence = 0.5 * (mean.square() + (2 * log_scale).exp() - 1) - log_scale
        likelihood = bernoulli(x, self.decode(mean))
        return likelihood - divergence.sum(1) + self.tilt(mean, condition)

    def draw_latents(self, random: RandomSource, level: Level) -> Tensor:
        """A z of the prior for each image of ``random``, (B, L).

        An energy's z is one of several draws of r, chosen by the weights p/r
        (sampling-importance-resampling).
        """
        if self.prior is None or self.proposal is None:
            return random.normal((self.latents,))
        drawn = self.proposal.draw((self.latents,), Repeated(random, self.candidates))
        log_prior = self.prior(drawn, self.condition(level).prior)
        log_weights = log_prior - self.proposal.log_prob(drawn)
        chosen = choose(log_weights.reshape(-1, self.candidates), random.uniform())
        rows = torch.arange(len(chosen), device=chosen.device)
        return drawn.reshape(-1, self.candidates, self.latents)[rows, chosen]

    def draw(self, shape: Sequence[int], random: RandomSource, level: Level) -> Tensor:
        """The decoder's probabilities of white for a z of the prior, as values in [-1, 1]."""
        return self._image(self.draw_latents(random, level), shape)

    def typical(self, x: Tensor) -> Tensor:
        """What z = 0 is decoded to, for each image (B, C, H, W)."""
        return self._image(x.new_zeros(len(x), self.latents), x.shape[1:])

    def _image(self, z: Tensor, shape: Sequence[int]) -> Tensor:
        return (2 * self.decode(z).sigmoid() - 1).reshape(-1, *shape)


def bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """``Σ x log p + (1 - x) log(1 - p)``, ``p = sigmoid(logits)``: (B, D) each -> (B,) nats."""
    return (x * logits - F.softplus(logits)).sum(1)


def gaussian(noise: Tensor) -> Tensor:
    """``log N(noise; 0, I)``, (B, L) -> (B,) nats."""
    return -0.5 * (noise.square() + math.log(2 * math.pi)).sum(1)


def _layers(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes with SiLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return nn.Sequential(*layers[:-1])
