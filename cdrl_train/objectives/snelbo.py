"""The evidence lower bound of a VAE whose prior learns its own normaliser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from cdrl_infer.errors import ConfigError
from cdrl_infer.networks.registry import ENERGIES
from cdrl_infer.networks.vae import VAEEnergy, bernoulli, gaussian
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level, NoiseSchedule
from cdrl_train.objectives.base import Losses, Models
from cdrl_train.objectives.snl import SelfNormalised
from cdrl_train.objectives.weighted import weigh_points

if TYPE_CHECKING:
    from cdrl_train.data.stream import Batch


class SelfNormalisedELBO(SelfNormalised):
    """``log q(z|x) - log p(x|z) - log p(z)``, ``log p(z) = f(z) + log N(z; 0, I) - b - e^-b Ẑ + 1``.

    One z is drawn from the encoder for each image, and Ẑ is the mean of ``e^f N(z; 0, I)/r`` over draws
    of the mixture r, which learns the encoder's draws along (SNELBO, Senetaire et al., arXiv 2503.07021,
    where r is N(0, I)). For every b the mean loss is at least minus the evidence lower bound, and equal
    at ``b = log Z``. b moves as in `SelfNormalised`. With a Gaussian prior it is the loss of the plain
    VAE.

    Args:
        draws: draws of r for each image; all draws of a batch estimate one Ẑ.
        binarise: how images become black and white, "dynamic": each pixel is white with a probability of
            its brightness, anew at each step; "threshold": white above half. Bounds of the two cannot
            be compared.
        learn_prior: whether f learns too. Without it the prior is N(0, I), and r alone learns beside the
            VAE: the encoder moves far in the first steps, and f should not follow it there.
        update, rate, max_error, max_share, max_pareto_k: see `SelfNormalised`.

    Raises:
        ConfigError: a value is out of range.
    """

    needs_density = False
    needs_normaliser = False
    titles: ClassVar[dict[str, str]] = {
        "elbo": "Evidence lower bound, nats per image",
        "reconstruction": "log p(x|z), nats per image",
        "divergence": "log q(z|x) - log p(z), nats per image",
        **{
            name: title for name, title in SelfNormalised.titles.items() if name != "log_likelihood"
        },
    }
    advice = "lower ebm_lr, or raise draws"

    def __init__(
        self,
        draws: int = 8,
        binarise: Literal["dynamic", "threshold"] = "dynamic",
        learn_prior: bool = True,
        update: Literal["newton", "gradient"] = "newton",
        rate: float = 0.05,
        max_error: float = 20.0,
        max_share: float | None = 0.5,
        max_pareto_k: float | None = 1.0,
    ) -> None:
        limits = (max_error, max_share, max_pareto_k)
        super().__init__(draws, "snl", update, rate, "likelihood", *limits)
        self.binarise = binarise
        self.learn_prior = learn_prior

    def check(
        self, ebm: dict[str, Any], initializer: dict[str, Any] | None, schedule: NoiseSchedule
    ) -> None:
        """Check that the energy is a VAE, which draws by itself, on one level."""
        found = ebm.get("class")
        if not issubclass(ENERGIES.find(found, "ebm"), VAEEnergy):
            raise ConfigError(f"needs an energy with latents, got {found!r:.60}; use a 'VAEEnergy'")
        if initializer is not None:
            raise ConfigError(
                f"trains an energy that draws by itself, got the initializer "
                f"{initializer.get('class')!r:.60}; set initializer=null"
            )
        if schedule.num_levels != 1:
            raise ConfigError(
                f"needs schedule.num_levels=1, since a VAE has no noise levels, got "
                f"{schedule.num_levels}"
            )

    def losses(self, models: Models, batch: Batch, level: Level, random: RandomSource) -> Losses:
        """The loss of the VAE and of its prior; b moves."""
        vae: VAEEnergy = models.ebm
        x = binarised(batch.x, self.binarise, random)
        mean, log_scale = vae.encode(x)
        noise = random.normal((vae.latents,))
        z = mean + log_scale.exp() * noise
        log_q = gaussian(noise) - log_scale.sum(1)
        reconstruction = bernoulli(x, vae.decode(z))
        observed: dict[str, Tensor] = {}
        log_prior = gaussian(z)
        penalty = fit = torch.zeros_like(z[0, 0])
        if vae.prior is not None and self.learn_prior:
            latent = Models(vae.prior, None, vae.proposal, models.schedule)
            found = weigh_points(latent, z[:, None, None], None, self.draws, "likelihood", random)
            energy, penalty, observed = self.bounded(vae.prior, found)
            log_prior, fit = -energy, fit if found.fit is None else found.fit
        elif vae.proposal is not None:
            fit = -vae.proposal.log_prob(z.detach()).mean()
        elbo = reconstruction + log_prior - log_q - penalty
        observed |= {
            "elbo": elbo.detach(),
            "reconstruction": reconstruction.detach(),
            "divergence": (log_q - log_prior).detach(),
        }
        return Losses({"ebm": -elbo.mean() + fit}, observed)

    def summary(self) -> str:
        """The text ``evidence lower bound`` with the draws and the kind of black and white."""
        kind = {"dynamic": "dynamically binarised", "threshold": "thresholded"}[self.binarise]
        return f"evidence lower bound of {kind} images, {self.draws} draws per image"


def binarised(images: Tensor, how: str, random: RandomSource) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] -> pixels (B, D), 0 or 1.

    Args:
        images: grey values.
        how: "dynamic" or "threshold", see `SelfNormalisedELBO`.
        random: one number for each pixel, if it is dynamic.
    """
    x = (images.flatten(1) + 1) / 2
    if how == "threshold":
        return (x > 0.5).to(x.dtype)
    uniform: Tensor = torch.special.ndtr(random.normal(x.shape[1:]))
    return (uniform < x).to(x.dtype)
