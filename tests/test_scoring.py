"""Scores: closed forms, direction, determinism, batches that are lazy and do not matter, bad input."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, make_model
from PIL import Image
from torch import Tensor

from cdrl_infer.energies.analytic import GaussianMixtureEnergy, PosteriorMeanProposal
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import InputError, NumericalError
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.scoring.features import NoisedImages, draw_noise
from cdrl_infer.scoring.scores import RIDGE, SCORES, FittedScore, Gaussian
from cdrl_train.calibrate import calibrate

SCHEDULE = NoiseSchedule(num_levels=3, logsnr_max=4.0)
LEVELS = range(1, 4)
FREE = [name for name, score in SCORES.items() if not isinstance(score, FittedScore)]
D = 6


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlated(dim: int = D) -> tuple[Tensor, Tensor]:
    """A mean and a covariance that no formula can get right by symmetry."""
    root = torch.randn(dim, dim, generator=generator(1), dtype=torch.float64) / dim**0.5
    mean = torch.linspace(-0.6, 0.9, dim, dtype=torch.float64)
    return mean, 0.2 * root @ root.T + 0.02 * torch.eye(dim, dtype=torch.float64)


def analytic(u: Tensor, seed: int = 0) -> NoisedImages:
    """Points in place of images: energy and proposal are those of a Gaussian, exactly."""
    mean, covariance = correlated(u.shape[1])
    energy = GaussianMixtureEnergy([1.0], mean[None], covariance[None])
    noise = draw_noise(SCHEDULE, u.shape[1:], seed)
    return NoisedImages(energy, PosteriorMeanProposal(energy), SCHEDULE, u, noise)


def sample(num: int, seed: int) -> Tensor:
    mean, covariance = correlated()
    draws = torch.randn(num, D, generator=generator(seed), dtype=torch.float64)
    return mean + draws @ torch.linalg.cholesky(covariance).T


@pytest.fixture(scope="module")
def fit() -> Gaussian:
    features = analytic(sample(400, 5)).all
    covariance = features.T.cov()
    return Gaussian(features.mean(0), (covariance + covariance.T) / 2)


# -- formulas -----------------------------------------------------------------------------------


@pytest.mark.parametrize("t", LEVELS)
def test_energies_and_errors_are_those_of_a_gaussian(t: int) -> None:
    """``y ~ N(m α μ, m²(α² Σ + σ̄² I))``, so E, its gradient and E[x_{t-1} | x_t] are known."""
    u = sample(5, 2)
    images = analytic(u)
    mean, covariance = (value.numpy() for value in correlated())
    level = SCHEDULE.level(t)
    m, a, s = float(level.scale), float(level.alpha), float(level.sigma_bar)
    a_t, s_t = float(level.alpha_in), float(level.sigma_bar_in)
    eps = torch.randn(3, D, generator=generator(0))[t - 1].double().numpy()
    x, eye = u.numpy(), np.eye(D)

    y = m * (a * x + s * eps)
    c = m**2 * (a**2 * covariance + s**2 * eye)
    d = y - m * a * mean
    g = d @ np.linalg.inv(c)
    energy = 0.5 * (d * g).sum(1) + 0.5 * np.linalg.slogdet(2 * math.pi * c)[1]
    np.testing.assert_allclose(images.energy(t), energy, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(images.score_norm(t), ((m * s * g) ** 2).sum(1), rtol=1e-6)
    error = ((m * s * g - eps) ** 2).sum(1)
    np.testing.assert_allclose(images.score_error(t), error, rtol=1e-6)
    known = images.energy(t)  # found with the gradient
    np.testing.assert_allclose(known, energy, rtol=1e-6, atol=1e-6)

    x_t = a_t * x + s_t * eps
    step = a_t / a  # x_t = step x_{t-1} + …, so Cov(x_{t-1}, x_t) = step Cov(x_{t-1})
    before = a**2 * covariance + s**2 * eye
    gain = step * before @ np.linalg.inv(a_t**2 * covariance + s_t**2 * eye)
    proposed = m * (a * mean + (x_t - a_t * mean) @ gain.T)
    # The posterior of x_{t-1} given x_t and x: two Gaussian messages, by their precisions.
    variance = 1 - step**2
    precision = 1 / s**2 + step**2 / variance
    expected = m * (a * x / s**2 + step * x_t / variance) / precision
    distance = ((proposed - expected) ** 2).sum(1) / variance
    np.testing.assert_allclose(images.initializer_error(t), distance, rtol=1e-4)


def test_features_are_in_the_order_that_statistics_are_stored_in() -> None:
    images = analytic(sample(4, 2))
    columns = images.all.T
    for t in LEVELS:
        assert torch.equal(columns[t - 1], images.energy(t))
        assert torch.equal(columns[3 + t - 1], images.score_error(t).log())
        assert torch.equal(columns[6 + t - 1], images.initializer_error(t).log())


def test_distance_is_mahalanobis_with_a_tiny_ridge() -> None:
    mean, covariance = correlated()
    covariance = covariance * torch.outer(*[torch.logspace(0, 3, D).double()] * 2)
    features = sample(7, 3)
    ridged = covariance + RIDGE * covariance.diagonal().diag()
    shift = (features - mean).numpy()
    expected = np.sqrt((shift @ np.linalg.inv(ridged.numpy()) * shift).sum(1))
    gaussian = Gaussian(mean, covariance)
    np.testing.assert_allclose(gaussian.distance(features), expected, rtol=1e-7)
    one = (features[:, 2:3] - mean[2]).abs()[:, 0] / ridged[2, 2].sqrt()
    np.testing.assert_allclose(gaussian.part(2, 3).distance(features[:, 2:3]), one, rtol=1e-12)


@pytest.mark.parametrize("covariance", [torch.ones(2, 2), torch.zeros(2, 2), -torch.eye(2)])
def test_features_that_do_not_vary_are_refused(covariance: Tensor) -> None:
    covariance = covariance.double()
    covariance[0, 1] = covariance[1, 0] = 2 * covariance[0, 1]
    with pytest.raises(InputError, match="not positive definite; calibrate with more images"):
        Gaussian(torch.zeros(2).double(), covariance)


def test_scores_are_their_formulas(fit: Gaussian) -> None:
    images = analytic(sample(9, 4))
    z = (images.all - fit.mean).numpy()
    covariance = fit.covariance.numpy() * (1 + RIDGE * np.eye(9))

    def distance(part: slice) -> np.ndarray:
        inverse = np.linalg.inv(covariance[part, part])
        return np.asarray(np.sqrt((z[:, part] @ inverse * z[:, part]).sum(1)))

    expected = {
        "combined": distance(slice(0, 9)),
        "multi-level": distance(slice(0, 3)),
        "initializer": distance(slice(6, 9)),
        "typicality": np.abs(z[:, 0]) / np.sqrt(fit.covariance[0, 0].item()),
        "energy": images.energy(1),
        "score-norm": images.score_norm(1).sqrt(),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(SCORES[name](images, fit=fit), values, rtol=1e-6, err_msg=name)
    assert {*expected, "complexity"} == set(SCORES)
    for name in ("energy", "score-norm"):
        at_2 = SCORES[name](images, level=2)
        of_2 = images.energy(2) if name == "energy" else images.score_norm(2).sqrt()
        assert torch.equal(at_2, of_2) and not torch.equal(at_2, SCORES[name](images))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_complexity_takes_the_size_of_a_png_from_the_energy(channels: int) -> None:
    pipe = CDRLPipeline(make_model(channels=channels))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, channels), dtype=np.uint8)
    pixels[1] = 7
    out = pipe.score(pixels, "complexity", progress=False)
    size = (pipe.score(pixels, "energy", progress=False).scores - out.scores) / (8 * math.log(2))
    for image, found in zip(pixels, size.tolist(), strict=True):
        file = io.BytesIO()
        stacked = image if channels == 3 else image.transpose(2, 0, 1).reshape(-1, 8)
        Image.fromarray(stacked).save(file, "PNG", optimize=True)
        assert found == pytest.approx(len(file.getvalue()))
    assert size[1] < size[0]


# -- direction ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SCORES if name != "complexity"])
def test_higher_is_more_anomalous(name: str, fit: Gaussian) -> None:
    """The further out along the axis of the smallest variance, the higher the score."""
    data = sample(300, 6)
    axis = torch.linalg.eigh(correlated()[1])[1][:, 0]
    shifts = [SCORES[name](analytic(data + k * axis), fit=fit).median() for k in (0, 1.5, 3, 6)]
    assert shifts == sorted(shifts) and shifts[0] < shifts[1]
    known = SCORES[name](analytic(sample(300, 7)), fit=fit)
    assert shifts[3] > known.quantile(0.99)


def test_a_simple_image_scores_higher_by_complexity(pipe: CDRLPipeline) -> None:
    """Beside its energy, that is: what a file of it saves is added."""
    simple, rich = torch.zeros(1, 8, 8), torch.rand(1, 8, 8, generator=generator(0))
    energy, corrected = (
        pipe.score([simple, rich], name).scores for name in ("energy", "complexity")
    )
    assert corrected[0] - corrected[1] > energy[0] - energy[1]


# -- what a score depends on --------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (11, 1, 8, 8), generator=generator(3)).byte()


@pytest.fixture(scope="module")
def calibrated(images: Tensor) -> CDRLPipeline:
    pipe = CDRLPipeline(make_model(CLASSES))
    many = torch.randint(0, 256, (80, 1, 8, 8), generator=generator(4)).byte()
    pipe.model.statistics = calibrate(pipe, many, data="noise", seed=7)
    return pipe


def test_noise_is_of_seed_and_level_alone() -> None:
    noise = draw_noise(SCHEDULE, (2, 3), 5)
    assert noise.shape == (3, 2, 3)
    assert torch.equal(noise, torch.randn(3, 2, 3, generator=generator(5)))


@pytest.mark.parametrize("name", SCORES)
def test_the_same_seed_gives_the_same_bits_and_others_others(
    name: str, calibrated: CDRLPipeline, images: Tensor
) -> None:
    before = torch.random.get_rng_state()
    first = calibrated.score(images, name)
    torch.manual_seed(1)
    torch.random.set_rng_state(before)
    again = calibrated.score(images, name, seed=7)
    assert first.seed == 7 and first.score == name
    assert torch.equal(first.scores, again.scores)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = calibrated.score(images, name, seed=8)
    assert not torch.equal(first.scores, other.scores) and other.p_values is None
    for values in (first.scores, first.p_values):
        assert values is not None and values.shape == (11,) and values.dtype == torch.float64


@pytest.mark.parametrize("name", SCORES)
def test_batches_do_not_matter(name: str, calibrated: CDRLPipeline, images: Tensor) -> None:
    """But for rounding: a relative 1e-4 of the score."""
    together = calibrated.score(images, name).scores
    for size in (1, 4):
        torch.testing.assert_close(
            calibrated.score(images, name, batch_size=size).scores, together, rtol=1e-4, atol=1e-4
        )
    order = torch.randperm(11, generator=generator(0))
    shuffled = calibrated.score(images[order], name).scores
    torch.testing.assert_close(shuffled, together[order], rtol=1e-4, atol=1e-4)
    assert together.unique().numel() == 11


def test_labels_are_left_open(calibrated: CDRLPipeline, images: Tensor) -> None:
    model = calibrated.model
    noise = draw_noise(model.schedule, (1, 8, 8), 7)
    level = model.schedule.level(1)
    y = level.alpha * (2 * images.float() / 255 - 1) + level.sigma_bar * noise[0]
    energies = [
        NeuralEnergy(model.ebm, torch.full((11, 1), label))(level.scale * y, level)
        .detach()
        .double()
        for label in (0, 1)
    ]
    found = calibrated.score(images, "energy").scores
    torch.testing.assert_close(found, energies[0], rtol=1e-5, atol=1e-4)
    assert (found - energies[1]).abs().min() > 1e-2


def test_an_unconditional_model_scores_too() -> None:
    pipe = CDRLPipeline(make_model())
    assert pipe.score(torch.rand(2, 1, 8, 8), "score-norm").scores.shape == (2,)


# -- input --------------------------------------------------------------------------------------


class Dataset:
    """As torch's: items by number, without a length or an iterator."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __getitem__(self, k: int) -> Any:
        return self.items[k]


def arrays(images: Tensor) -> list[np.ndarray]:
    return [image[0].numpy() for image in images]


@pytest.mark.parametrize(
    "given",
    [
        lambda images: images,
        lambda images: images.float() / 255,
        lambda images: images.permute(0, 2, 3, 1).numpy(),
        arrays,
        lambda images: tuple(map(Image.fromarray, arrays(images))),
        lambda images: (Image.fromarray(image) for image in arrays(images)),
        lambda images: [images[:3], list(images[3:5]), *arrays(images[5:])],
        lambda images: Dataset(arrays(images)),
        lambda images: map(torch.Tensor.float, images / 255),
    ],
    ids=["uint8", "float", "NHWC", "arrays", "pictures", "generator", "nested", "dataset", "map"],
)
def test_images_come_in_many_forms(
    given: Callable[[Tensor], Any], pipe: CDRLPipeline, images: Tensor
) -> None:
    expected = pipe.score(images, "energy", batch_size=4).scores
    found = pipe.score(given(images), "energy", batch_size=4)
    assert torch.equal(found.scores, expected) and found.p_values is None
    assert found.seed == 0 and found.anomalous is None and found.maps is None


def test_a_single_image_is_one(pipe: CDRLPipeline, images: Tensor) -> None:
    for one in (images[0], images[:1], arrays(images)[0], Image.fromarray(arrays(images)[0])):
        assert pipe.score(one, "energy").scores.shape == (1,)
    large = Image.fromarray(np.kron(arrays(images)[0], np.ones((2, 2), np.uint8)))
    assert pipe.score([large], "energy", resize=True).scores.shape == (1,)


@pytest.fixture
def scored(pipe: CDRLPipeline) -> Iterator[list[int]]:
    """How many images each call of the EBM was for."""
    counts: list[int] = []
    hook = pipe.model.ebm.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    yield counts
    hook.remove()


def test_a_generator_is_read_no_further_than_the_batch(
    pipe: CDRLPipeline, images: Tensor, scored: list[int]
) -> None:
    def reading() -> Iterator[Tensor]:
        for k, image in enumerate(images):
            assert sum(scored) == k // 4 * 4, "read ahead"
            yield image

    assert len(pipe.score(reading(), "energy", batch_size=4).scores) == 11
    assert scored == [4, 4, 3]


GOOD, NAN = torch.zeros(1, 8, 8), torch.full((1, 8, 8), math.nan)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "expected at least one image, got none"),
        ((), "expected at least one image, got none"),
        (torch.zeros(0, 1, 8, 8), "expected at least one image, got none"),
        ([GOOD, NAN], r"image 1: expected finite values in \[0, 1\]"),
        ([GOOD] * 20 + [GOOD + 1.5], r"image 20: expected finite values"),
        (torch.zeros(2, 3, 8, 8), "image 0: expected images of 1 channels, 8 x 8, got shape"),
        ([GOOD, torch.zeros(1, 8, 9)], "image 1: .* 8 x 8, got shape .*pictures can be resized"),
        ([Image.new("L", (8, 9))], r"image 0: expected a picture of 8 x 8 .*resize=True \(--resi"),
        (Image.new("RGB", (8, 8)), "expected a picture of mode L for 1 channels, got RGB"),
        ([GOOD, "image.png"], "image 1: expected a picture, an array or a tensor, got str"),
        ({"image": GOOD}, "got dict"),
        (3, "got int"),
        (None, "got NoneType"),
        ([[GOOD, None]], "image 1: .*got NoneType"),
        (torch.zeros(8, 8), "got shape"),
        (np.array(["a"]), "an array"),
    ],
)
def test_bad_images_are_refused_before_any_work(
    given: Any, message: str, pipe: CDRLPipeline, scored: list[int]
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pipe.score(given, "energy", batch_size=1)
    assert scored == [] and "\n" not in str(caught.value)


def test_bad_images_of_a_generator_are_named(pipe: CDRLPipeline) -> None:
    with pytest.raises(InputError, match="image 5: expected finite values"):
        pipe.score(iter([GOOD] * 5 + [NAN]), "energy", batch_size=2)
    with pytest.raises(InputError, match="expected at least one image, got none"):
        pipe.score(iter([]), "energy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"score": "enegry"},
            "score must be one of combined, .*got 'enegry'; did you mean 'energy'",
        ),
        ({"score": "energy", "level": 4}, "level must lie in 1 … 3, got 4"),
        ({"score": "energy", "level": 0}, "level must lie in 1 … 3, got 0"),
        ({"score": "energy", "level": 1.5}, "level must be an integer, got 1.5"),
        ({"score": "typicality", "level": 2}, "'typicality' is not of one level, got level=2"),
        ({"score": "energy", "seed": -1}, "a seed must be an integer in 0"),
        ({"score": "energy", "batch_size": 0}, "batch_size must be at least 1"),
        ({"threshold_fpr": 0.0}, r"must be at least 0.024 .* less than 1, got 0; calibrate"),
        ({"threshold_fpr": 1}, "less than 1, got 1"),
        ({"threshold_fpr": 0.02}, "got 0.02; calibrate with more images"),
        ({"threshold_fpr": "5%"}, "threshold_fpr must be a finite number, got '5%'"),
        ({"score": "energy", "level": 2, "threshold_fpr": 0.1}, "leave level and seed out"),
        ({"seed": 8, "threshold_fpr": 0.1}, "level 1 with seed 8, .*leave level and seed out"),
    ],
)
def test_bad_options_are_told_in_one_line(
    options: dict[str, Any], message: str, calibrated: CDRLPipeline, images: Tensor
) -> None:
    with pytest.raises(InputError, match=message):
        calibrated.score(images, **options)


def test_without_statistics(pipe: CDRLPipeline, images: Tensor) -> None:
    assert FREE == ["energy", "score-norm", "complexity"]
    for name in SCORES:
        if name in FREE:
            assert pipe.score(images, name).p_values is None
            options: dict[str, Any] = {"threshold_fpr": 0.1}
            with pytest.raises(InputError, match="'tiny' lacks; `cdrl-eval --calibrate"):
                pipe.score(images, name, **options)
        else:
            with pytest.raises(
                InputError, match=r"not calibrated; `cdrl-eval --cali.*choose energ"
            ):
                pipe.score(images, name)


def test_a_score_that_is_not_finite_is_an_error(images: Tensor) -> None:
    pipe = CDRLPipeline(make_model())
    white = torch.ones(1, 8, 8)

    def broken(_: object, given: tuple[Tensor, Any], energies: Tensor) -> Tensor:
        return torch.where(given[0].mean((1, 2, 3)) > 0.5, math.nan, energies)

    pipe.model.ebm.register_forward_hook(broken)
    given = [*images[:5], white, images[5], white]
    with pytest.raises(NumericalError, match="'energy' of images 5, 7 is not finite"):
        pipe.score(given, "energy", batch_size=4, progress=False)


# -- what comes with it -------------------------------------------------------------------------


def test_the_threshold_says_what_the_p_values_say(calibrated: CDRLPipeline) -> None:
    fresh = torch.randint(0, 256, (60, 1, 8, 8), generator=generator(9)).byte()
    for name in ("combined", "energy"):
        for fpr in (0.03, 0.1, 0.29, 0.5, 0.99):
            out = calibrated.score(fresh, name, threshold_fpr=fpr)
            assert out.p_values is not None and out.anomalous is not None
            assert torch.equal(out.anomalous, out.p_values <= fpr)
            assert torch.equal(out.anomalous, out.scores > out.threshold)
            assert out.anomalous.any() or fpr < 0.05


def test_another_level_has_no_p_values(calibrated: CDRLPipeline, images: Tensor) -> None:
    out = calibrated.score(images, "energy", level=2)
    assert out.p_values is None
    assert not torch.equal(out.scores, calibrated.score(images, "energy", level=1).scores)
    assert calibrated.score(images, "energy", level=1).p_values is not None


def test_maps_come_in_the_order_of_the_images(calibrated: CDRLPipeline, images: Tensor) -> None:
    out = calibrated.score(images, batch_size=4, return_map=True)
    assert out.maps is not None and out.maps.shape == (11, 8, 8) and out.maps.dtype == torch.float32
    assert bool((out.maps >= 0).all())
    alone = calibrated.score(images[9:10], return_map=True).maps
    assert alone is not None
    torch.testing.assert_close(out.maps[9:10], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_progress_bar_counts_images(
    pipe: CDRLPipeline, images: Tensor, capsys: pytest.CaptureFixture[str], lazy: bool
) -> None:
    pipe.score(iter(images) if lazy else images, "energy", progress=True)
    assert ("11image" if lazy else "11/11") in capsys.readouterr().err
    pipe.score(images, "energy", progress=False)
    assert capsys.readouterr().err == ""
