"""Inpainting: known pixels stay, the hole has the right law; and what the pipeline says to bad input.

The reference for a Gaussian is the algorithm's own law, in closed form: its unadjusted steps, its finite
number of them and its levels are all in it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import make_model
from PIL import Image
from torch import Tensor

from cdrl_infer.energies.analytic import ExponentialGaussianEnergy, GaussianMixtureEnergy
from cdrl_infer.energies.pinned import PinnedEnergy, PinnedPixels, PinnedPotential
from cdrl_infer.energies.recovery import RecoveryEnergy
from cdrl_infer.errors import InputError
from cdrl_infer.kernels.base import Kernel
from cdrl_infer.kernels.hmc import HMC, MALA
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.proposals import IdentityProposal
from cdrl_infer.random import BatchRandom, PerImageRandom
from cdrl_infer.sampler import CooperativeSampler, LevelEnd
from cdrl_infer.schedule import Level, NoiseSchedule

LIMIT, CAUGHT = 5.0, 10.0  # standard errors, as in test_distribution.py

# Three correlated pixels, the first of which is known.
COVARIANCE = torch.tensor([[0.8, 0.5, -0.4], [0.5, 0.9, 0.1], [-0.4, 0.1, 0.6]]).double()
GAUSSIAN = GaussianMixtureEnergy([1.0], [[0.2, -0.3, 0.5]], COVARIANCE[None])
IMAGE = torch.tensor([1.4, 55.0, -77.0]).double()  # what is in the hole must not matter
HOLE = torch.tensor([False, True, True])
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


def hole_law(schedule: NoiseSchedule, steps: int, restarts: int = 0) -> tuple[Law, Law]:
    """Of the two pixels in the hole: of x_0, and after the last denoising."""
    path = known_path(schedule)
    count = len(path.mean)  # then come the two pixels of the hole
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
    """Of the hole given the known pixel, for the data itself."""
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
        return torch.where(self.hole, self.path[i], x)


class WrongLevel(PinnedPixels):
    """The classic error: y = m_t x_{t-1} is given the known pixels of x_t."""

    def hold(self, x: Tensor, i: int) -> Tensor:
        return torch.where(self.hole, x, self.path[min(i + 1, len(self.path) - 1)])


def deviation(draws: Tensor, law: Law) -> float:
    """Of mean and covariance of (N, 2) draws, in standard errors."""
    error = draws.double() - law.mean
    products = error[:, :, None] * error[:, None, :]
    worst = 0.0
    for values, expected in ((error, torch.zeros(2)), (products, law.covariance)):
        excess = (values.mean(0) - expected).abs() / (values.std(0) / math.sqrt(len(draws)))
        worst = max(worst, float(excess.max()))
    return worst


def chain_deviation(
    pixels: type[PinnedPixels] = PinnedPixels,
    energy: type[PinnedEnergy] = PinnedEnergy,
    restarts: int = 0,
) -> float:
    """Of x_0 and of the denoised samples in the hole, over one image's 20,000 fillings."""
    n, steps = 20_000, 15
    random = BatchRandom(n, torch.Generator().manual_seed(0))
    pinned = pixels.draw(IMAGE.expand(n, 3), HOLE.expand(n, 3), SCHEDULE, random)
    ends: list[LevelEnd] = []
    with patch("cdrl_infer.sampler.PinnedEnergy", energy):
        out = CooperativeSampler(SCHEDULE, steps, Langevin(), restarts=restarts).sample(
            GAUSSIAN, IdentityProposal(), random, (3,), ends.append, pinned
        )
    x_0, denoised = hole_law(SCHEDULE, steps, restarts)
    return max(deviation(ends[-1].refined[:, 1:], x_0), deviation(out.samples[:, 1:], denoised))


@pytest.mark.parametrize("restarts", [0, 2])
def test_the_hole_has_the_algorithms_law(restarts: int) -> None:
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
    n, random = 20_000, BatchRandom(20_000, torch.Generator().manual_seed(0))
    pinned = PinnedPixels.draw(IMAGE.expand(n, 3), HOLE.expand(n, 3), SCHEDULE, random)
    with patch.object(Level, "noised", level):
        out = CooperativeSampler(SCHEDULE, 15, Langevin(), restarts=2).sample(
            GAUSSIAN, IdentityProposal(), random, (3,), pinned=pinned
        )
    assert deviation(out.samples[:, 1:], hole_law(SCHEDULE, 15, 2)[1]) > CAUGHT


@pytest.mark.parametrize(
    "error", [{"energy": NotHeld}, {"pixels": Swapped}, {"pixels": WrongLevel}], ids=str
)
def test_classic_errors_are_caught(error: dict[str, Any]) -> None:
    assert chain_deviation(**error) > CAUGHT


def test_the_hole_follows_the_known_pixel() -> None:
    """The law tends towards the data's conditional one, from that without the known pixel.

    It stays short of it: each x_t in the hole was drawn before the less noisy known pixels were seen.
    Restarts close the gap.
    """
    fine = NoiseSchedule(logsnr_max=5.0, step_rule="curvature", step_size=0.1)
    exact = conditional()
    shifts, spreads = [], []
    for restarts in (0, 1, 3, 10):
        found = hole_law(fine, 1_000, restarts)[1]
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
def test_exact_kernels_are_exact_in_the_hole(kernel: Kernel[Any], step_scale: float) -> None:
    """Given x_t and the known pixel: a Gaussian, whatever the kernel does in the known pixel."""
    n, level = 20_000, SCHEDULE.level(3)
    random = BatchRandom(n, torch.Generator().manual_seed(0))
    path = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)).double()
    x_t = path[3].expand(n, 3)
    pinned = PinnedPixels(HOLE.expand(n, 3), path[:, None].expand(7, n, 3))
    energy = PinnedEnergy(RecoveryEnergy(GAUSSIAN, x_t), pinned)
    end = kernel.run(x_t, energy.at(level), step_scale * level.step_variance, random, 60)
    m, a, s = (v.double() for v in (level.scale, level.alpha, level.sigma_bar))
    P = torch.linalg.inv(m**2 * (a**2 * COVARIANCE + s**2 * torch.eye(3)))
    mean, tie = m * a * GAUSSIAN.mean, 1 / level.noise_variance.double()
    precision = P[1:, 1:] + tie * torch.eye(2)
    pull = P[1:, 1:] @ mean[1:] - P[1:, 0] * (m * path[2, 0] - mean[0]) + tie * path[3, 1:]
    law = Law(torch.linalg.solve(precision, pull), torch.linalg.inv(precision))
    assert deviation(end.y[:, 1:], law) < LIMIT
    assert 0.3 < float(end.acceptance.mean()) < 0.99


class TestPinnedPixels:
    def test_the_path_is_the_forward_process(self) -> None:
        n = 20_000
        random = BatchRandom(n, torch.Generator().manual_seed(0))
        path = PinnedPixels.draw(
            IMAGE[:1].expand(n, 1), HOLE[:1].expand(n, 1), SCHEDULE, random
        ).path[..., 0]
        law = known_path(SCHEDULE)
        error = path.mT.double() - law.mean
        products = error[:, :, None] * error[:, None, :]
        for values, expected in ((error, torch.zeros(7)), (products, law.covariance)):
            excess = (values.mean(0) - expected).abs() / (values.std(0) / math.sqrt(n))
            assert excess.max() < LIMIT

    def test_each_image_has_its_own_noise(self) -> None:
        image, hole = torch.rand(3, 2, 4, 4), torch.rand(3, 1, 4, 4) < 0.5
        both = PinnedPixels.draw(image, hole, SCHEDULE, PerImageRandom.from_seeds([1, 2, 3], "cpu"))
        assert both.path.shape == (7, 3, 2, 4, 4)
        alone = PinnedPixels.draw(
            image[2:], hole[2:], SCHEDULE, PerImageRandom.from_seeds([3], "cpu")
        )
        assert torch.equal(both.path[:, 2:], alone.path)

    def test_holding_puts_the_known_pixels_in_place_in_all_channels(self) -> None:
        path, x = torch.randn(7, 2, 3, 4, 4), torch.randn(2, 3, 4, 4)
        hole = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
        hole[0, 0, 1, 2] = hole[1, 0, 3] = True
        held = PinnedPixels(hole, path).hold(x, 5)
        everywhere = hole.expand_as(x)
        assert torch.equal(held[everywhere], x[everywhere])
        assert torch.equal(held[~everywhere], path[5][~everywhere])


class TestPinnedEnergy:
    skewed = ExponentialGaussianEnergy([-1.0, 0.2, 0.5], [0.4, 0.2, 0.3], [1.0, 2.5, 2.0])
    path = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(1)).double()
    hole = torch.tensor([[0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 1]]).bool()
    y = torch.randn(4, 3, generator=torch.Generator().manual_seed(2)).double()

    @pytest.mark.parametrize("t", [1, 3, 6])
    def test_is_the_prior_with_the_known_pixels_of_that_level(self, t: int) -> None:
        level = SCHEDULE.level(t)
        known = level.scale * self.path[t - 1]  # y = m x_{t-1}
        pinned = PinnedEnergy(self.skewed, PinnedPixels(self.hole, self.path)).at(level)
        value, grad = pinned.value_and_grad(self.y)
        prior, prior_grad = self.skewed.at(level).value_and_grad(self.y.where(self.hole, known))
        torch.testing.assert_close(value, prior)
        torch.testing.assert_close(grad[self.hole], prior_grad[self.hole])
        assert not grad[~self.hole].any()

    def test_known_pixels_do_not_matter(self) -> None:
        pinned = PinnedEnergy(self.skewed, PinnedPixels(self.hole, self.path))
        potential, moved = pinned.at(SCHEDULE.level(2)), self.y + 5 * ~self.hole
        for found, expected in zip(
            potential.value_and_grad(moved), potential.value_and_grad(self.y), strict=True
        ):
            assert torch.equal(found, expected)


# --- in the pipeline ------------------------------------------------------------------------------

GREY = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
MASK = np.zeros((8, 8), dtype=np.uint8)
MASK[2:6, 3:8] = 1
PAINTED = torch.from_numpy(MASK).bool()


def tensor(output: Any) -> Tensor:
    assert isinstance(output.images, Tensor)
    return output.images


@pytest.fixture(scope="module")
def colour_pipe() -> CDRLPipeline:
    return CDRLPipeline(make_model(("cat", "dog"), ("day", "night"), channels=3))


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_known_pixels_are_the_images_exactly(pipe: CDRLPipeline, kind: Any) -> None:
    out = pipe.inpaint(Image.fromarray(GREY), MASK, num_images=3, output_type=kind)
    known = ~PAINTED.numpy()
    for k in range(3):
        if kind == "pil":
            picture = out.images[k]
            assert isinstance(picture, Image.Image) and picture.mode == "L"
            assert np.array_equal(np.asarray(picture)[known], GREY[known])
        else:
            values = np.asarray(out.images[k]).reshape(8, 8)
            assert np.array_equal(values[known], GREY[known].astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_known_pixels_in_colour(colour_pipe: CDRLPipeline, kind: Any) -> None:
    colours = np.random.default_rng(1).random((8, 8, 3), dtype=np.float32)
    out = colour_pipe.inpaint(colours, PAINTED, seeds=[5, 6], output_type=kind)
    known = ~PAINTED.numpy()
    for image in out.images:
        if kind == "pil":
            expected = np.round(255 * colours[known]).astype(np.uint8)
            assert np.array_equal(np.asarray(image)[known], expected)
        else:
            values = np.asarray(image)
            values = np.moveaxis(values, 0, -1) if kind == "pt" else values
            assert np.array_equal(values[known], colours[known])


def test_the_ways_to_give_an_image_and_a_mask_agree(pipe: CDRLPipeline) -> None:
    unit = torch.from_numpy(GREY).float() / 255
    wanted = tensor(pipe.inpaint(GREY, MASK, seeds=[1], output_type="pt"))
    images = [
        Image.fromarray(GREY),
        GREY[..., None],
        GREY[None, ..., None],
        unit[None],
        unit.numpy(),
    ]
    images += [unit[None, None].double(), [GREY], torch.from_numpy(GREY)[None]]
    masks = [
        Image.fromarray(255 * MASK),
        Image.fromarray(255 * MASK).convert("1"),
        PAINTED,
        255 * MASK,
    ]
    masks += [PAINTED[None], PAINTED[None, None], PAINTED.numpy(), MASK.astype(float), [MASK]]
    for image in images:
        assert torch.equal(tensor(pipe.inpaint(image, MASK, seeds=[1], output_type="pt")), wanted)
    for mask in masks:
        assert torch.equal(tensor(pipe.inpaint(GREY, mask, seeds=[1], output_type="pt")), wanted)


def test_the_hole_is_painted_and_each_seed_paints_another_thing(pipe: CDRLPipeline) -> None:
    images = tensor(pipe.inpaint(GREY, MASK, seeds=range(6), output_type="pt"))[:, 0]
    for i in range(6):
        assert (images[i][PAINTED] - torch.from_numpy(GREY)[PAINTED] / 255).abs().max() > 1e-2
        for j in range(i):
            assert (images[i][PAINTED] - images[j][PAINTED]).abs().max() > 1e-2
    again = tensor(pipe.inpaint(GREY, MASK, seeds=range(6), output_type="pt"))[:, 0]
    assert torch.equal(images, again)


def test_what_was_in_the_hole_does_not_matter(pipe: CDRLPipeline) -> None:
    other = np.where(MASK, 255 - GREY, GREY)
    first, second = (
        tensor(pipe.inpaint(image, MASK, seeds=[3], output_type="pt")) for image in (GREY, other)
    )
    assert torch.equal(first, second)


def test_what_is_around_the_hole_does(pipe: CDRLPipeline) -> None:
    other = np.where(MASK, GREY, 255 - GREY)
    first, second = (
        tensor(pipe.inpaint(image, MASK, seeds=[3], output_type="pt"))[0, 0][PAINTED]
        for image in (GREY, other)
    )
    assert (first - second).abs().max() > 1e-2


@pytest.mark.parametrize("batch_size", [1, 2])
def test_images_and_masks_one_for_each_sample(pipe: CDRLPipeline, batch_size: int) -> None:
    images = [GREY, 255 - GREY, GREY.T.copy()]
    masks = [MASK, MASK.T.copy(), 1 - MASK]
    labels = ["Bag", None, "Shirt"]
    whole = tensor(
        pipe.inpaint(images, masks, class_labels=labels, seeds=[7, 8, 9], output_type="pt")
    )
    parts = tensor(
        pipe.inpaint(
            *(images, masks),
            class_labels=labels,
            seeds=[7, 8, 9],
            output_type="pt",
            batch_size=batch_size,
        )
    )
    assert (whole - parts).abs().max() <= 1 / 255
    for k in range(3):
        known = torch.from_numpy(masks[k]) == 0
        expected = torch.from_numpy(images[k]).float() / 255
        assert torch.equal(whole[k, 0][known], expected[known])
        alone = pipe.inpaint(
            images[k], masks[k], class_labels=[labels[k]], seeds=[7 + k], output_type="pt"
        )
        assert (whole[k] - tensor(alone)[0]).abs().max() <= 1 / 255
    several_masks = pipe.inpaint(GREY, np.stack(masks), seeds=7, output_type="pt")
    assert len(tensor(several_masks)) == 3
    assert (
        tensor(several_masks)[0] - tensor(pipe.inpaint(GREY, MASK, seeds=7, output_type="pt"))[0]
    ).abs().max() <= 1 / 255


def test_known_pixels_are_held_at_every_level(pipe: CDRLPipeline) -> None:
    """The callback sees the noised image there, proposal and refinement alike; noise fades."""
    ends: list[LevelEnd] = []
    pipe.inpaint(GREY, MASK, seeds=[1], callback_on_level_end=lambda end, _: ends.append(end))
    image = torch.from_numpy(GREY).float() / 127.5 - 1
    distances = []
    for end in ends:
        assert torch.equal(end.proposal[0, 0][~PAINTED], end.refined[0, 0][~PAINTED])
        alpha = pipe.model.schedule.level(end.t).alpha
        distances.append(float((end.refined[0, 0] - alpha * image)[~PAINTED].std()))
        sigma = float(pipe.model.schedule.level(end.t).sigma_bar)
        assert distances[-1] == pytest.approx(sigma, rel=0.5)
    assert distances == sorted(distances, reverse=True)


def test_labels_guidance_and_expressions(colour_pipe: CDRLPipeline) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)

    def painted(**options: Any) -> Tensor:
        out = colour_pipe.inpaint(picture, MASK, seeds=[2], output_type="pt", **options)
        return tensor(out)

    plain = painted(class_labels=[("dog", None)])
    guided = painted(class_labels=[("dog", None)], guidance_scale=3)
    composed = painted(expression="dog", guidance_scale=3)
    assert (guided - composed).abs().max() < 1e-3
    assert (guided - plain).abs().max() > 1e-2
    concept = colour_pipe.concept("dog") | colour_pipe.concept("night")
    assert (painted(expression=concept) - painted()).abs().max() > 1e-2
    out = colour_pipe.inpaint(picture, MASK, expression=concept)
    assert (out.info.expression, out.labels) == ("dog | night", None)


@pytest.mark.parametrize("sampler", ["mala", "hmc"])
def test_exact_samplers_paint_too(pipe: CDRLPipeline, sampler: Any) -> None:
    out = pipe.inpaint(GREY, MASK, num_images=2, kernel=sampler, output_type="pt")
    expected = torch.from_numpy(GREY).float() / 255
    assert torch.equal(tensor(out)[1, 0][~PAINTED], expected[~PAINTED])
    assert out.info.acceptance.shape == (2, 3) and bool((out.info.acceptance > 0).any())


def test_pictures_are_resized_where_asked(pipe: CDRLPipeline) -> None:
    large = Image.fromarray(GREY).resize((20, 12), Image.Resampling.BILINEAR)
    mask = Image.fromarray(255 * MASK).resize((16, 16), Image.Resampling.NEAREST)
    out = pipe.inpaint(large, mask, resize=True, seeds=[1], output_type="pt")
    fitted = np.array(large.resize((8, 8), Image.Resampling.LANCZOS))
    expected = torch.from_numpy(fitted).float() / 255
    assert torch.equal(tensor(out)[0, 0][~PAINTED], expected[~PAINTED])
    for image, hole in ((large, MASK), (GREY, mask)):
        with pytest.raises(InputError, match=r"8 x 8 pixels .* got \d+ x \d+; resize=True"):
            pipe.inpaint(image, hole)
    with pytest.raises(InputError, match="expected images of 1 channels, 8 x 8, got shape"):
        pipe.inpaint(np.zeros((12, 20)), MASK, resize=True)  # arrays are never resized


NAN = np.full((8, 8), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": np.ones((7, 8))}, r"expected a mask of 8 x 8 like the image, got shape \(7, 8\)"),
        ({"mask": np.ones((8, 8, 3))}, r"a mask of 8 x 8 like the image, got shape \(8, 8, 3\)"),
        ({"mask": np.ones((2, 3, 8, 8))}, r"got shape \(2, 3, 8, 8\)"),
        ({"mask": np.zeros((8, 8))}, "a mask is empty: expected some pixels to paint"),
        ({"mask": Image.new("L", (8, 8), 127)}, "a mask is empty"),
        ({"mask": [MASK, 0 * MASK]}, "a mask is empty"),
        ({"mask": 7 * MASK}, "expected a mask of bool, of 0 and 1, or of 0 and 255, got other"),
        ({"mask": 0.5 * MASK}, "of 0 and 255, got other values"),
        ({"mask": NAN}, "of 0 and 255, got other values"),
        ({"mask": []}, "at least one mask, got an empty list"),
        ({"mask": None}, "expected a mask as picture, array or tensor, got NoneType"),
        ({"mask": MASK.astype(object)}, "expected an array of numbers, got an array of object"),
        ({"image": NAN}, r"expected finite values in \[0, 1\], got values outside"),
        ({"image": GREY / 128}, r"expected finite values in \[0, 1\], got values outside"),
        ({"image": -(GREY / 256)}, r"expected finite values in \[0, 1\], got values outside"),
        (
            {"image": GREY.astype(np.int32)},
            r"expected uint8 or floats in \[0, 1\], got torch.int32",
        ),
        ({"image": GREY.astype(object)}, "expected an array of numbers, got an array of object"),
        ({"image": GREY.astype(str)}, "expected an array of numbers, got an array of <U"),
        ({"image": GREY[:7]}, r"expected images of 1 channels, 8 x 8, got shape \(1, 7, 8\)"),
        ({"image": np.zeros((8, 8, 3))}, r"got shape \(3, 8, 8\); pictures can be resized"),
        ({"image": np.zeros((0, 8, 8, 1))}, "expected images of 1 channels"),
        ({"image": np.zeros(64)}, r"got shape \(64,\)"),
        ({"image": Image.new("RGB", (8, 8))}, "mode L for 1 channels, got RGB; convert it first"),
        ({"image": Image.new("RGBA", (8, 8))}, "mode L for 1 channels, got RGBA; convert it first"),
        ({"image": Image.new("I;16", (8, 8))}, "mode L for 1 channels, got I;16"),
        (
            {"image": Image.new("L", (9, 8))},
            "expected a picture of 8 x 8 .* got 9 x 8; resize=True",
        ),
        ({"image": []}, "at least one image, got an empty list"),
        ({"image": "image.png"}, "expected a picture, an array or a tensor, got str"),
        (
            {"image": [GREY, GREY, GREY], "mask": [MASK, MASK]},
            "expected 3 masks, one per image, got 2",
        ),
        ({"image": [GREY, GREY], "num_images": 3}, "expected 3 images, one per image, got 2"),
        ({"image": [GREY, GREY], "seeds": [1]}, "expected 2 seeds, one per image, got 1"),
        ({"expression": "bag", "class_labels": "Bag"}, "or an expression, got both; leave one out"),
        ({"expression": "bag", "guidance_scale": 0}, "of an expression must be positive, got 0"),
        ({"expression": "bagg"}, "unknown concept 'bagg'"),
        ({"class_labels": "Bagg"}, "unknown attribute 0 'Bagg'"),
        ({"guidance_scale": 2}, "guidance_scale 2 needs class_labels"),
    ],
)
def test_bad_input_is_told_before_any_work(
    pipe: CDRLPipeline, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(CooperativeSampler, "sample", lambda *a, **k: pytest.fail("sampled"))
    with pytest.raises(InputError, match=message) as caught:
        pipe.inpaint(**{"image": GREY, "mask": MASK} | change)
    assert "\n" not in str(caught.value)


def test_pictures_that_lose_nothing_become_colour(colour_pipe: CDRLPipeline) -> None:
    grey = Image.fromarray(GREY)
    for picture in (grey, grey.convert("P"), grey.convert("RGB")):
        out = colour_pipe.inpaint(picture, MASK, seeds=[1])
        assert np.array_equal(np.asarray(out.images[0])[MASK == 0][:, 1], GREY[MASK == 0])
    with pytest.raises(InputError, match="expected a picture of mode RGB for 3 channels, got RGBA"):
        colour_pipe.inpaint(grey.convert("RGBA"), MASK)
