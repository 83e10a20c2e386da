"""Where an image is odd: the gradient of the energy, pixel by pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cdrl_infer.errors import NumericalError
from cdrl_infer.model import CDRLModel
from cdrl_infer.scoring.features import NoisedImages, draw_noise

PAIRS = 2  # pairs of opposite noises at each level
BLUR = 1.5  # standard deviation of the blur in pixels


def heat_map(model: CDRLModel, images: Tensor, seed: int) -> Tensor:
    """``Σ_t Σ_channels (mean_k m_t σ̄_{t-1} ∇_y E(y_tk))²`` of each pixel, over t > T/2, blurred a little.

    With ``y_tk = m_t (α_{t-1} u + σ̄_{t-1} ε_tk)``, the mean is ``σ̄_{t-1}/α_{t-1}`` times the gradient
    in u of the energy averaged over the noise. It says how strongly the model wants to change each pixel,
    in units of the noise. Each ε has a partner -ε (antithetic variates). So everything linear in ε
    cancels, above all the noise itself, which is most of the gradient. So two pairs are enough. The map
    uses only the noisier half of the levels, where the model restores structures as large as an object.
    At the other levels it restores little but texture. docs/scoring.md has the measurements.

    The same seed gives the same map, up to rounding that depends on the other images of the batch.

    Args:
        model: has the energy and the schedule.
        images: (B, C, H, W) in [0, 1].
        seed: the seed of the noise.

    Returns:
        (B, H, W) float32 on the CPU, at least 0; 0 where the model would change nothing.

    Raises:
        NumericalError: a map is not finite.
    """
    schedule, shape = model.schedule, images.shape[1:]
    noises = draw_noise(schedule, (PAIRS, *shape), seed)
    noised = [
        NoisedImages.of(model, images, sign * noises[:, k])
        for k in range(PAIRS)
        for sign in (1, -1)
    ]
    total = torch.zeros(len(images), *shape[1:], dtype=torch.float64)
    for t in range(schedule.num_levels // 2 + 1, schedule.num_levels + 1):
        pull = torch.stack([each.denoised(t)[1] for each in noised]).mean(0)
        total += pull.square().sum(1)
    blurred = blur(total, BLUR).float()
    if not bool(blurred.isfinite().all()):
        raise NumericalError("a heat map is not finite; check the model")
    return blurred


def blur(maps: Tensor, deviation: float) -> Tensor:
    """Average maps (B, H, W) over neighbours with a Gaussian that ends at 3 standard deviations.

    At the edges it averages over the neighbours that exist, so a constant map does not change.
    """
    reach = int(3 * deviation + 0.5)
    offsets = torch.arange(-reach, reach + 1, dtype=maps.dtype)
    weights = torch.exp(-0.5 * (offsets / deviation) ** 2)

    def summed(values: Tensor) -> Tensor:
        down = F.conv2d(values[:, None], weights.reshape(1, 1, -1, 1), padding=(reach, 0))
        return F.conv2d(down, weights.reshape(1, 1, 1, -1), padding=(0, reach))[:, 0]

    return summed(maps) / summed(torch.ones_like(maps[:1]))
