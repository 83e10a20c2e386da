"""`Scorer`: seeds, batches, forms of input, p-values, scores of a user's, and bad input."""

from __future__ import annotations

import dataclasses
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

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import InputError, NumericalError
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.scoring import SCORES
from cdrl_infer.scoring.calibration import calibrate
from cdrl_infer.scoring.features import Features, draw_noise
from cdrl_infer.scoring.scorer import ScoreOutput, Scorer
from cdrl_infer.scoring.scores import Fit, FittedScore, Score

LEVELS = range(1, 4)
FREE = [name for name, score in SCORES.items() if not isinstance(score, FittedScore)]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
    pipe.model.statistics = calibrate(pipe.model, many, data="noise", seed=7)
    return pipe


def test_noise_depends_on_seed_and_level_alone() -> None:
    noise = draw_noise(NoiseSchedule(num_levels=3), (2, 3), 5)
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
        (torch.zeros(2, 5, 8, 8), "image 0: expected images of 1 channels, 8 x 8, got shape"),
        ([GOOD, torch.zeros(1, 8, 9)], "image 1: .* 8 x 8, got shape .*pictures can be resized"),
        ([Image.new("L", (8, 9))], r"image 0: expected a picture of 8 x 8 .*resize=True \(--resi"),
        (Image.new("RGB", (8, 8), "red"), "image 0: expected a grey picture, got colours"),
        ([GOOD, "image.png"], "image 1: image.png cannot be read as an image: No such"),
        ({"image": GOOD}, "got dict"),
        (3, "got int"),
        (None, "got NoneType"),
        ([[GOOD, None]], "image 1: .*got NoneType"),
        (torch.zeros(7, 8), "got shape"),
        (np.array([["a"] * 8] * 8), "an array"),
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
        ({"score": "typicality", "level": 2}, "'typicality' takes no level, got level=2"),
        ({"score": "energy", "seed": -1}, "a seed must be an integer in 0"),
        ({"score": "energy", "batch_size": 0}, "batch_size must be at least 1"),
        ({"threshold_fpr": 0.0}, r"must be at least 0.024 .* less than 1, got 0; calibrate"),
        ({"threshold_fpr": 1}, "less than 1, got 1"),
        ({"threshold_fpr": 0.02}, "got 0.02; calibrate with more images"),
        ({"threshold_fpr": "5%"}, "threshold_fpr must be a finite number, got '5%'"),
        (
            {"seed": 8, "threshold_fpr": 0.1},
            "with seed 8, and 'custom' has none; leave the seed out",
        ),
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
            with pytest.raises(InputError, match="'tiny' has none; run `cdrl-eval --calibrate"):
                pipe.score(images, name, **options)
        else:
            with pytest.raises(
                InputError, match=r"not calibrated; run `cdrl-eval --cali.*choose energ"
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


@pytest.mark.parametrize("name", ["energy", "score-norm"])
def test_p_values_at_every_transition(name: str, calibrated: CDRLPipeline, images: Tensor) -> None:
    statistics = calibrated.model.statistics
    assert statistics is not None
    for t in LEVELS:
        out = calibrated.score(images, name, level=t, threshold_fpr=0.2)
        higher = (statistics.scores(name, t)[:, None] >= out.scores).sum(0)
        torch.testing.assert_close(out.p_values, (1 + higher) / 41.0, check_dtype=False)
        assert torch.equal(out.anomalous, out.p_values <= 0.2)
    assert not torch.equal(statistics.scores(name, 2), statistics.scores(name, 1))


class Roughness(Score):
    """A score of a user's: denoising errors against their usual mean, at any transition."""

    levelled = True

    def __call__(self, features: Features, level: int = 1, fit: Fit | None = None) -> Tensor:
        usual = 0 if fit is None else fit.features.log_score_errors[:, level - 1].mean()
        return features.log_score_errors[:, level - 1] - usual


def test_a_new_score_is_read_by_a_calibration_that_does_not_know_it(
    calibrated: CDRLPipeline, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SCORES, "_found", dict(SCORES._found))
    statistics = calibrated.model.statistics
    SCORES.register("roughness", Roughness())
    assert statistics is not None
    out = calibrated.score(images, "roughness", level=3, threshold_fpr=0.1)
    held_out = statistics.held_out.log_score_errors[:, 2]
    held_out = held_out - statistics.fitted.log_score_errors[:, 2].mean()
    assert torch.equal(statistics.scores("roughness", 3), held_out.sort().values)
    assert out.p_values is not None and out.threshold in held_out.tolist()
    monkeypatch.setattr(Roughness, "__call__", lambda *_: torch.full((40,), math.nan))
    with pytest.raises(NumericalError, match="'roughness' of the calibration's images is not fin"):
        statistics.scores("roughness")


def test_batches_come_one_by_one(calibrated: CDRLPipeline, images: Tensor) -> None:
    whole = calibrated.score(images, batch_size=4, threshold_fpr=0.1)
    parts = list(Scorer(calibrated.model).stream(images, batch_size=4, threshold_fpr=0.1))
    assert [len(part.scores) for part in parts] == [4, 4, 3]
    assert torch.equal(torch.cat([part.scores for part in parts]), whole.scores)
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        Scorer(calibrated.model).stream(images, batch_size=0)  # before anything is asked of it


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


def test_scores_show_themselves_in_a_notebook() -> None:
    plain = ScoreOutput(torch.tensor([1.5, 20.25]), "energy", 0)
    html = plain._repr_html_()
    assert "<th>energy</th>" in html and "<td>20.25</td>" in html and "p-value" not in html
    judged = dataclasses.replace(
        plain, p_values=torch.tensor([0.5, 0.001]), anomalous=torch.tensor([False, True])
    )
    html = judged._repr_html_()
    assert "<td>0.001</td><td>yes</td>" in html and "<td>0.500</td><td>no</td>" in html
