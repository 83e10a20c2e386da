"""Steps on the unit sphere with gradients of unit length, for the latents of an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from cdrl_infer.energies.base import Potential
from cdrl_infer.kernels.base import Kernel, StepInfo, per_chain
from cdrl_infer.kernels.langevin import LangevinState
from cdrl_infer.random import RandomSource


@dataclass(frozen=True)
class SphereDescent(Kernel[LangevinState]):
    """``z ← (z - a s ĝ + s ε) / ‖…‖``, where ĝ is the gradient's tangent part, scaled to length 1.

    Yoon et al. 2023 (MPDR). Points lie on the unit sphere. Where the tangent part vanishes, ĝ is 0, so
    the step only adds noise. A step goes as far on a flat energy as on a steep one: the chains do not
    sample ``exp(-E)``. So this kernel is not in `KERNELS`, whose kernels sample energies of images.

    Args:
        ratio: a, the length of the step downhill over the standard deviation of the noise.
    """

    ratio: float = 2.5

    def init(self, y: Tensor, potential: Potential) -> LangevinState:
        """Start chains at y (B, D), points of the unit sphere."""
        return LangevinState(y)

    def step(
        self, state: LangevinState, potential: Potential, step_size: Tensor, random: RandomSource
    ) -> tuple[LangevinState, StepInfo]:
        """One transition of every chain; ``step_size`` is s²."""
        z = state.y
        _, grad = potential.value_and_grad(z)
        grad = F.normalize(
            grad, dim=1
        )  # first: the product with z must neither overflow nor vanish
        tangent = grad - (grad * z).sum(1, keepdim=True) * z
        s = per_chain(step_size.sqrt(), z)
        z = z - self.ratio * s * F.normalize(tangent, dim=1) + s * random.normal(z.shape[1:])
        always = z.new_ones(len(z))
        return LangevinState(F.normalize(z, dim=1)), StepInfo(always, always.bool())
