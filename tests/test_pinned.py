"""Inpainting against a Gaussian: the painted pixels have the right law, and classic errors are caught.

The reference is the law of the algorithm itself, in closed form: its unadjusted steps, their number
and its levels are all in it.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from laws import CAUGHT, LIMIT, batch_random, moment_deviation, streams
from torch import Tensor

from cdrl_infer.energies.analytic import ExponentialGaussianEnergy, GaussianMixtureEnergy
from cdrl_infer.energies.pinned import PinnedEnergy, PinnedPixels, PinnedPotential
from cdrl_infer.energies.recovery import RecoveryEnergy
from cdrl_infer.kernels.base import Kernel
from cdrl_infer.kernels.hmc import HMC, MALA
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.proposals import IdentityProposal
from cdrl_infer.sampler import CooperativeSampler, LevelEnd
from cdrl_infer.schedule import Level, NoiseSchedule

# Three correlated pixels, the first of which is known.
COVARIANCE = torch.tensor([[0.8, 0.5, -0.4], [0.5, 0.9, 0.1], [-0.4, 0.1, 0.6]]).double()
GAUSSIAN = GaussianMixtureEnergy([1.0], [[0.2, -0.3, 0.5]], COVARIANCE[None])
IMAGE = torch.tensor([1.4, 55.0, -77.0]).double()  # what is under the mask must not matter
MASK = torch.tensor([False, True, True])
SCHEDULE = NoiseSchedule(logsnr_max=5.0, step_rule="curvature", step_size=0.8)


class Law(NamedTuple):
    """Mean and covariance of a normal vector."""

    mean: Tensor
    covariance: Tensor

    def push(self, matrix: Tensor, shift: Tensor, noise: Tensor) -> Law:
        """That of ``matrix z + shift + N(0, noise)``."""
        return Law(matrix @ self.mean + shift, matrix @ self.covariance @ matrix.mT + noise)


def known_path(schedule: NoiseSchedule) -> Law:
    """Of the known pixel's values k_0 … k_T: ``Cov(k_i, k_j) = σ̄_i² α_j/α_i`` for i ≤ j."""
    levels = [schedule.level(t) for t in range(1, schedule.num_levels + 1)]
    alpha = torch.stack([levels[0].alpha, *(level.alpha_in for level in levels)]).double()
    sigma = torch.stack([levels[0].sigma_bar, *(level.sigma_bar_in for level in levels)]).double()
    low = torch.minimum(*torch.meshgrid(*[torch.arange(len(alpha))] * 2, indexing="ij"))
    high = torch.maximum(*torch.meshgrid(*[torch.arange(len(alpha))] * 2, indexing="ij"))
    return Law(alpha * IMAGE[0], sigma[low] ** 2 * alpha[high] / alpha[low])


def painted_law(schedule: NoiseSchedule, steps: int, restarts: int = 0) -> tuple[Law, Law]:
    """Of the two pixels under the mask: of x_0, and after the last denoising."""
    path = known_path(schedule)
    count = len(path.mean)  # then come the two pixels under the mask
    law = Law(
        torch.cat([path.mean, torch.zeros(2).double()]),
        torch.block_diag(path.covariance, torch.eye(2).double()),
    )
    inside = slice(count, count + 2)
    for t in range(schedule.num_levels, 0, -1):
        level = schedule.level(t)
        m, a, s, s2 = (
            v.double() for v in (level.scale, level.alpha, level.sigma_bar, level.step_variance)
        )
        tie = (level.recovery / level.noise_variance).double()
        P = torch.linalg.inv(m**2 * (a**2 * COVARIANCE + s**2 * torch.eye(3)))
        mean = m * a * GAUSSIAN.mean
        # y_h ← y_h - ½s² (P_hh (y_h - μ_h) + P_hk (m k_{t-1} - μ_k) + tie (y_h - x_t)) + s ε
        keep = torch.eye(2).double() - 0.5 * s2 * (P[1:, 1:] + tie * torch.eye(2))
        A, b, N = torch.zeros(2, count + 2).double(), torch.zeros(2).double(), torch.zeros(2, 2)
        A[:, inside] = torch.eye(2).double()  # DRL's start, y = x_t
        for _ in range(steps):
            A, b, N = keep @ A, keep @ b, keep @ N.double() @ keep.mT + s2 * torch.eye(2)
            A[:, t - 1] -= 0.5 * s2 * m * P[1:, 0]
            A[:, inside] += 0.5 * s2 * tie * torch.eye(2)
            b += 0.5 * s2 * (P[1:] @ mean)
        whole = torch.eye(count + 2).double()
        whole[inside] = A / m
        noise = torch.zeros(count + 2, count + 2).double()
        noise[inside, inside] = N / m**2
        shift = torch.cat([torch.zeros(count).double(), b / m])
        law = law.push(whole, shift, noise)
        added = level.noise_variance.double() * torch.eye(count + 2).double()
        added[:count] = 0
        again = torch.eye(count + 2).double()
        again[inside] *= (1 - level.noise_variance.double()).sqrt()
        for _ in range(restarts):
            law = law.push(again, torch.zeros(count + 2).double(), added)
            law = law.push(whole, shift, noise)
    x_0 = Law(law.mean[inside], law.covariance[inside, inside])
    score = -m * P[1:]  # of x = y/m, at (k_0, x_h)
    matrix = torch.zeros(2, count + 2).double()
    matrix[:, inside] = (torch.eye(2) + s**2 * score[:, 1:] * m) / a
    matrix[:, 0] = s**2 * score[:, 0] * m / a
    return x_0, law.push(matrix, -(s**2) * (score @ mean) / a, torch.zeros(2, 2))


def conditional() -> Law:
    """Of the masked pixels given the known pixel, for the data itself."""
    gain = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    return Law(
        GAUSSIAN.mean[1:] + gain * (IMAGE[0] - GAUSSIAN.mean[0]),
        COVARIANCE[1:, 1:] - gain[:, None] * COVARIANCE[0, 1:],
    )


class NotHeld(PinnedEnergy):
    """The classic error: the energy sees the known pixels where the chain has left them."""

    def at(self, level: Level) -> PinnedPotential:
        potential = super().at(level)
        potential.held = lambda y: y  # type: ignore[method-assign]
        return potential


class Swapped(PinnedPixels):
    """The classic error: what is known and what is to be painted are confused."""

    def hold(self, x: Tensor, i: int) -> Tensor:
        return torch.where(self.mask, self.path[i], x)


class WrongLevel(PinnedPixels):
    """The classic error: y = m_t x_{t-1} is given the known pixels of x_t."""

    def hold(self, x: Tensor, i: int) -> Tensor:
        return torch.where(self.mask, x, self.path[min(i + 1, len(self.path) - 1)])


def chain_deviation(
    pixels: type[PinnedPixels] = PinnedPixels,
    energy: type[PinnedEnergy] = PinnedEnergy,
    restarts: int = 0,
) -> float:
    """Of x_0 and of the denoised samples under the mask, over one image's 20,000 fillings."""
    n, steps = 20_000, 15
    random = batch_random(n)
    pinned = pixels.draw(IMAGE.expand(n, 3), MASK.expand(n, 3), SCHEDULE, random)
    ends: list[LevelEnd] = []
    with patch("cdrl_infer.sampler.PinnedEnergy", energy):
        out = CooperativeSampler(SCHEDULE, steps, Langevin(), restarts=restarts).sample(
            GAUSSIAN, IdentityProposal(), random, (3,), ends.append, pinned
        )
    x_0, denoised = painted_law(SCHEDULE, steps, restarts)
    return max(
        moment_deviation(ends[-1].refined[:, 1:], *x_0),
        moment_deviation(out.samples[:, 1:], *denoised),
    )


@pytest.mark.parametrize("restarts", [0, 2])
def test_the_mask_has_the_algorithms_law(restarts: int) -> None:
    assert chain_deviation(restarts=restarts) < LIMIT


@pytest.mark.parametrize(
    "level",
    [
        # x_t is not noised again, the level is redone from where it began; or noised by another level
        lambda self, x, noise: x,
        lambda self, x, noise: x + self.noise_variance.sqrt() * noise,
    ],
    ids=["not noised", "not scaled"],
)
def test_errors_in_restarts_are_caught(level: Any) -> None:
    n, random = 20_000, batch_random(20_000)
    pinned = PinnedPixels.draw(IMAGE.expand(n, 3), MASK.expand(n, 3), SCHEDULE, random)
    with patch.object(Level, "noised", level):
        out = CooperativeSampler(SCHEDULE, 15, Langevin(), restarts=2).sample(
            GAUSSIAN, IdentityProposal(), random, (3,), pinned=pinned
        )
    assert moment_deviation(out.samples[:, 1:], *painted_law(SCHEDULE, 15, 2)[1]) > CAUGHT


@pytest.mark.parametrize(
    "error", [{"energy": NotHeld}, {"pixels": Swapped}, {"pixels": WrongLevel}], ids=str
)
def test_classic_errors_are_caught(error: dict[str, Any]) -> None:
    assert chain_deviation(**error) > CAUGHT


def test_the_mask_follows_the_known_pixel() -> None:
    """The law tends towards the data's conditional one, from that without the known pixel.

    It stays short of it: each x_t under the mask was drawn before the less noisy known pixels were seen.
    Restarts close the gap.
    """
    fine = NoiseSchedule(logsnr_max=5.0, step_rule="curvature", step_size=0.1)
    exact = conditional()
    shifts, spreads = [], []
    for restarts in (0, 1, 3, 10):
        found = painted_law(fine, 1_000, restarts)[1]
        shifts.append((found.mean - GAUSSIAN.mean[1:]) / (exact.mean - GAUSSIAN.mean[1:]))
        spreads.append(found.covariance.diag() / exact.covariance.diag())
    first = torch.stack(shifts)[:, 0]
    assert 0.7 < first[0] < 0.8
    assert first[1] > 0.87
    assert first[2] > 0.94
    assert first[3] > 0.98
    assert (spreads[0] > 1.03).all()
    assert (spreads[3] < 1.03).all()


@pytest.mark.parametrize(
    ("kernel", "step_scale"), [(MALA(), 3.0), (HMC(leapfrog_steps=5), 1.0)], ids=["mala", "hmc"]
)
def test_exact_kernels_are_exact_under_the_mask(kernel: Kernel[Any], step_scale: float) -> None:
    """Given x_t and the known pixel: a Gaussian, whatever the kernel does in the known pixel."""
    n, level = 20_000, SCHEDULE.level(3)
    random = batch_random(n)
    path = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)).double()
    x_t = path[3].expand(n, 3)
    pinned = PinnedPixels(MASK.expand(n, 3), path[:, None].expand(7, n, 3))
    energy = PinnedEnergy(RecoveryEnergy(GAUSSIAN, x_t), pinned)
    end = kernel.run(x_t, energy.at(level), step_scale * level.step_variance, random, 60)
    m, a, s = (v.double() for v in (level.scale, level.alpha, level.sigma_bar))
    P = torch.linalg.inv(m**2 * (a**2 * COVARIANCE + s**2 * torch.eye(3)))
    mean, tie = m * a * GAUSSIAN.mean, 1 / level.noise_variance.double()
    precision = P[1:, 1:] + tie * torch.eye(2)
    pull = P[1:, 1:] @ mean[1:] - P[1:, 0] * (m * path[2, 0] - mean[0]) + tie * path[3, 1:]
    law = Law(torch.linalg.solve(precision, pull), torch.linalg.inv(precision))
    assert moment_deviation(end.y[:, 1:], *law) < LIMIT
    assert 0.3 < float(end.acceptance.mean()) < 0.99


class TestPinnedPixels:
    def test_the_path_is_the_forward_process(self) -> None:
        n = 20_000
        random = batch_random(n)
        path = PinnedPixels.draw(
            IMAGE[:1].expand(n, 1), MASK[:1].expand(n, 1), SCHEDULE, random
        ).path[..., 0]
        assert moment_deviation(path.mT, *known_path(SCHEDULE)) < LIMIT

    def test_each_image_has_its_own_noise(self) -> None:
        image, mask = torch.rand(3, 2, 4, 4), torch.rand(3, 1, 4, 4) < 0.5
        both = PinnedPixels.draw(image, mask, SCHEDULE, streams(1, 2, 3))
        assert both.path.shape == (7, 3, 2, 4, 4)
        alone = PinnedPixels.draw(image[2:], mask[2:], SCHEDULE, streams(3))
        assert torch.equal(both.path[:, 2:], alone.path)

    def test_holding_puts_the_known_pixels_in_place_in_all_channels(self) -> None:
        path, x = torch.randn(7, 2, 3, 4, 4), torch.randn(2, 3, 4, 4)
        mask = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
        mask[0, 0, 1, 2] = mask[1, 0, 3] = True
        held = PinnedPixels(mask, path).hold(x, 5)
        everywhere = mask.expand_as(x)
        assert torch.equal(held[everywhere], x[everywhere])
        assert torch.equal(held[~everywhere], path[5][~everywhere])


class TestPinnedEnergy:
    skewed = ExponentialGaussianEnergy([-1.0, 0.2, 0.5], [0.4, 0.2, 0.3], [1.0, 2.5, 2.0])
    path = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(1)).double()
    mask = torch.tensor([[0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 1]]).bool()
    y = torch.randn(4, 3, generator=torch.Generator().manual_seed(2)).double()

    @pytest.mark.parametrize("t", [1, 3, 6])
    def test_is_the_prior_with_the_known_pixels_of_that_level(self, t: int) -> None:
        level = SCHEDULE.level(t)
        known = level.scale * self.path[t - 1]  # y = m x_{t-1}
        pinned = PinnedEnergy(self.skewed, PinnedPixels(self.mask, self.path)).at(level)
        value, grad = pinned.value_and_grad(self.y)
        prior, prior_grad = self.skewed.at(level).value_and_grad(self.y.where(self.mask, known))
        torch.testing.assert_close(value, prior)
        torch.testing.assert_close(grad[self.mask], prior_grad[self.mask])
        assert not grad[~self.mask].any()

    def test_known_pixels_do_not_matter(self) -> None:
        pinned = PinnedEnergy(self.skewed, PinnedPixels(self.mask, self.path))
        potential, moved = pinned.at(SCHEDULE.level(2)), self.y + 5 * ~self.mask
        for found, expected in zip(
            potential.value_and_grad(moved), potential.value_and_grad(self.y), strict=True
        ):
            assert torch.equal(found, expected)
