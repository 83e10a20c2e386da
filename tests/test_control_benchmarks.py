"""The benchmarks of guidance, inpainting and kernels: their maths on closed cases, and tiny runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click
import guidance
import inpainting
import kernels
import numpy as np
import pytest
import torch
from classifier import Recipe
from click.testing import CliRunner
from kept import kept
from numpy.typing import NDArray
from PIL import Image
from report import mean_error, with_error
from subject import SamplePools

from cdrl_infer.errors import InputError
from cdrl_infer.model import Attribute, CDRLModel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.folder import save_model
from cdrl_train.evaluation.efficientnet import EfficientNetLite0
from cdrl_train.evaluation.sampling import SEED_STRIDE

RECIPE = Recipe(widths=(4,), epochs=1, batch_size=8)
SIDE, CLASSES = 8, 3


@pytest.fixture
def judged_folder(model: CDRLModel, tmp_path: Path) -> Path:
    """The tiny model, of the labels that the tiny data have."""
    attribute = Attribute("class", tuple(map(str, range(CLASSES))))
    save_model(dataclasses.replace(model, labels=(attribute,)), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def data(tmp_path: Path) -> str:
    """24 training and 12 test images, brighter with the class."""
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {}
    for split, count in (("train", 24), ("test", 12)):
        labels = np.arange(count) % CLASSES
        noise = rng.integers(0, 60, (count, SIDE, SIDE))
        arrays[f"{split}_images"] = (noise + 90 * labels[:, None, None]).astype(np.uint8)
        arrays[f"{split}_labels"] = labels
    np.savez(tmp_path / "tiny.npz", **arrays)
    return str(tmp_path / "tiny.npz")


@pytest.fixture
def _stub_extractor(monkeypatch: pytest.MonkeyPatch) -> None:
    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)[..., None, None]

    stub = EfficientNetLite0(network, "stub", torch.device("cpu"))
    monkeypatch.setattr(EfficientNetLite0, "load", lambda weights, device: stub)


def test_standard_errors() -> None:
    assert mean_error(np.array([1.0, 3.0, 5.0, 7.0])) == pytest.approx((4, (20 / 3) ** 0.5 / 2))
    assert with_error(np.array([1.0, 3.0])) == "2.0 ± 1.0"
    assert with_error(np.array([1.0])) == "1.0"


def test_what_is_kept_goes_on_and_is_checked(tmp_path: Path) -> None:
    asked = []

    def draw(start: int, stop: int) -> NDArray[np.uint8]:
        asked.append((start, stop))
        if stop > 4:
            raise KeyboardInterrupt
        return np.full((stop - start, 1, 2, 2), 9, np.uint8)

    file, row = tmp_path / "rows.npy", np.dtype((np.uint8, (1, 2, 2)))
    with pytest.raises(KeyboardInterrupt):
        kept(file, 6, draw, row, 2)
    rows = kept(file, 3, draw, row, 2)
    assert rows.shape == (3, 1, 2, 2) and (rows == 9).all()
    assert asked == [(0, 2), (2, 4), (4, 6), (0, 2)]
    np.save(file, np.stack([rows[0], rows[0] + 1]))  # one image of the two still is what is drawn
    assert len(kept(file, 2, draw, row, 2)) == 2
    np.save(file, rows + 1)
    with pytest.raises(InputError, match="delete the file"):
        kept(file, 3, draw, row, 2)


def test_half_masks_take_turns_and_boxes_lie_anywhere() -> None:
    halves = inpainting.half_masks(5, 4, 6)
    assert halves.shape == (5, 1, 4, 6) and (halves.sum((1, 2, 3)) == 12).all()
    assert not (halves[0] & halves[1]).any() and not (halves[2] & halves[3]).any()
    assert halves[0, 0, :, 0].all() and halves[2, 0, 0].all() and (halves[4] == halves[0]).all()
    boxes = inpainting.box_masks(200, 4, 6)
    assert (boxes.any(3).sum((1, 2)) == 2).all() and (boxes.any(2).sum((1, 2)) == 3).all()
    assert (boxes.sum((1, 2, 3)) == 6).all()
    corners = {(int(b[0].any(1).argmax()), int(b[0].any(0).argmax())) for b in boxes}
    assert corners == {(row, column) for row in range(3) for column in range(4)}
    assert (inpainting.box_masks(7, 4, 6) == boxes[:7]).all()


def test_errors_are_those_inside_the_mask() -> None:
    originals = np.full((2, 3, 4, 4), 200, np.uint8)
    masks = np.zeros((2, 1, 4, 4), bool)
    masks[0, 0, :2] = masks[1, 0, 1, 1] = True
    fills = np.repeat(originals[:, None], 2, axis=1)
    fills[0, 0, :, 0] = 196  # off by 4 in half of the mask: √8
    fills[0, 0, :, 3] = 0  # outside the mask
    fills[1, 1, 0, 1, 1] = 203  # off by 3 in one of three channels: √3
    expected = [[8**0.5, 0], [0, 3**0.5]]
    assert inpainting.masked_errors(fills, originals, masks) == pytest.approx(np.array(expected))


def test_majorities() -> None:
    named = np.array([[1, 1, 2, 0], [2, 2, 1, 1], [0, 1, 2, 3], [5, 1, 1, 1], [1, 0, 0, 3]])
    found = inpainting.majority_agreement(named, np.ones(5, int))
    assert found.tolist() == [1, 0.5, 0.25, 1, 0]


def test_inpainting_is_measured_interrupted_and_shown(
    judged_folder: Path, data: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "model": str(judged_folder),
        "data": data,
        "images": 6,
        "samples": 2,
        "steps_texts": ("0", "model"),
        "restarts": 1,
        "labels": "both",
        "batch_size": 4,
        "device": "cpu",
        "cache": tmp_path / "cache",
        "picture": tmp_path / "rows.png",
        "recipe": RECIPE,
    }
    text, results = inpainting.evaluate(**options)
    rows = {(row["mask"], row["fill"], row["labels"]): row for row in results["rows"]}
    assert len(rows) == 2 * (2 + 2 * 2)
    assert results["known_pixels_kept"] and results["samples_differ"]
    assert rows["half", "untouched", ""]["one"]["mean"] == 0
    for (_, fill, _), row in rows.items():
        if fill.startswith("K"):
            assert row["best"]["mean"] < row["one"]["mean"]
            assert 0 < row["mean"]["mean"] < row["one"]["mean"]
    assert rows["half", "K = 2", "none"] != rows["half", "K = 2", "given"]
    with np.load(data) as arrays:
        mean = arrays["train_images"].mean(0).round()
        errors = mean - arrays["test_images"][:6]
    halves = [errors[0, :, :4], errors[1, :, 4:], errors[2, :4], errors[3, 4:]]
    halves += [errors[4, :, :4], errors[5, :, 4:]]
    expected = np.mean([np.sqrt(np.square(half).mean()) for half in halves])
    assert rows["half", "mean fill", ""]["one"]["mean"] == pytest.approx(expected)
    with Image.open(tmp_path / "rows.png") as picture:
        upscaled, padding = SIDE * 8, 2
        assert picture.width == padding + (2 + 2 + 1) * (upscaled + padding)
        assert picture.height == padding + CLASSES * (upscaled + padding)
    file = next((tmp_path / "cache").glob("*-box-K2-R1-labels-given-*.npy"))
    np.save(file, np.load(file)[:2])
    assert inpainting.evaluate(**options) == (text, results)
    json.dumps(results, allow_nan=False)


def test_paired_changes_are_smaller_than_the_spread_of_the_images() -> None:
    zero = np.array([10.0, 50.0, 90.0])
    rows = [
        inpainting.Scores("K = 0", "none", zero, zero, zero, zero / 100, zero / 100),
        inpainting.Scores("K = 5", "none", zero - 5, zero, zero, zero / 100, zero / 100),
    ]
    *_, line = inpainting.score_table(rows, 8).splitlines()
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[2:4] == ["45.0 ± 23.1", "-5.0 ± 0.0"]


@pytest.mark.usefixtures("_stub_extractor")
def test_guidance_is_swept_with_the_same_seeds(
    judged_folder: Path, data: str, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    text, results = guidance.evaluate(
        model=str(judged_folder),
        data=data,
        extractor_weights=None,
        scales=(3.0, 1.0),
        n=6,
        langevin_steps="1",
        seeds=2,
        batch_size=4,
        device="cpu",
        cache=tmp_path / "cache",
        picture=tmp_path / "rows.png",
        figure=tmp_path / "curves.png",
        recipe=RECIPE,
    )
    assert [row["scale"] for row in results["rows"]] == [1, 3, None]
    assert all(len(row["recall"]) == len(row["frechet"]) == 2 for row in results["rows"])
    assert results["rows"][-1]["frechet_excess"] == [0, 0]
    assert "| real images " in text
    pipe = CDRLPipeline.from_pretrained(judged_folder)
    drawn = np.load(next((tmp_path / "cache").glob("samples-*-g3-K1-repeat1.npy")))
    alone = pipe(class_labels=[1], guidance_scale=3, seeds=[SEED_STRIDE + 4], langevin_steps=1)
    np.testing.assert_allclose(drawn[4, 0].astype(int), np.asarray(alone.images[0]), atol=1)
    for name in ("rows.png", "curves.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 100 and picture.convert("L").getextrema()[0] < 100
    json.dumps(results, allow_nan=False)


def test_steps_that_a_number_of_gradients_allows() -> None:
    found = [kernels.plan(s, 15, 2).steps for s in kernels.NAMES]
    assert found == [15, 14, 7] and kernels.plan("hmc", 15, 5).steps == 2
    with pytest.raises(
        InputError, match="--gradients 5 allows no step of hmc: expected at least 6"
    ):
        kernels.plan("hmc", 5, 5)
    assert kernels.parse_budgets("5,15,5") == [5, 15]
    for text in ("few", "0", ""):
        with pytest.raises(InputError, match="--gradients must be integers"):
            kernels.parse_budgets(text)


@pytest.mark.parametrize("name", kernels.NAMES)
def test_gradients_counted_are_those_allowed(name: str, pipe: CDRLPipeline, tmp_path: Path) -> None:
    pools = SamplePools(pipe, "digest", tmp_path, batch_size=2)
    drawn = kernels.Bench(pools).samples(kernels.plan(name, 5, 2), None, 3)
    levels = pipe.model.schedule.num_levels
    assert (drawn["gradients"] == 5 * levels + 1).all()  # and the last denoising
    assert drawn["image"].shape == (3, 1, SIDE, SIDE) and drawn["acceptance"].shape == (3, levels)
    assert np.isfinite(drawn["energy"]).all() and (drawn["seconds"] > 0).all()


@pytest.mark.usefixtures("_stub_extractor")
def test_kernels_are_compared_and_step_scales_kept(
    judged_folder: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel_plans.ADAPT_IMAGES", 2)
    options: dict[str, Any] = {
        "model": str(judged_folder),
        "data": data,
        "extractor_weights": None,
        "gradients": "3",
        "leapfrog_steps": 2,
        "n": 6,
        "batch_size": 4,
        "device": "cpu",
        "cache": tmp_path / "cache",
        "recipe": RECIPE,
    }
    text, results = kernels.evaluate(**options)
    rows = {row["kernel"]: row for row in results["rows"]}
    assert list(rows) == ["initializer alone", "langevin", "mala", "hmc, L = 2"]
    levels = 3
    assert [row["gradients"] for row in rows.values()] == [1, *[3 * levels + 1] * 3]
    assert rows["langevin"]["warm_up"] is None and rows["langevin"]["acceptance"] == [1] * levels
    assert rows["initializer alone"]["acceptance"] is None
    for name in ("mala", "hmc, L = 2"):
        assert len(rows[name]["warm_up"]["step_scale"]) == levels
        assert rows[name]["warm_up"]["gradients"] > 2 * levels * 60
    assert text.count("step scale ") == 2 + 1 and "| real images " in text
    json.dumps(results, allow_nan=False)

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("step scales are on the disk")

    monkeypatch.setattr(CDRLPipeline, "adapt_step_scale", never)
    assert kernels.evaluate(**options)[1] == results


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (inpainting.main, ["--out", "missing/out.json"]),
        (inpainting.main, ["--picture", "missing/out.png"]),
        (inpainting.main, ["--labels", "all"]),
        (guidance.main, ["--figure", "missing/out.png"]),
        (guidance.main, ["--guidance-scale", "nan"]),
        (kernels.main, ["--gradients", "1"]),
        (kernels.main, ["--out", "missing/out.json"]),
    ],
)
def test_mistakes_are_one_line(main: click.Command, arguments: list[str]) -> None:
    result = CliRunner().invoke(main, ["--data", "nowhere.npz", *arguments])
    assert result.exit_code == 2
    assert result.output.startswith(f"{main.name}: error: ") and result.output.count("\n") == 1
    assert "nowhere" not in result.output  # the data were not even looked for


def test_more_images_than_there_are(judged_folder: Path, data: str) -> None:
    arguments = ["--data", data, "--model", str(judged_folder), "--images", "13"]
    result = CliRunner().invoke(inpainting.main, arguments)
    assert result.exit_code == 2 and "must be at most 12, the test images, got 13" in result.output
