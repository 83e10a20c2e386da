"""Classes that are held out: training and selection never read them, and evaluation finds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from runs import TINY
from sklearn.metrics import average_precision_score, roc_auc_score

from cdrl_infer.errors import InputError
from cdrl_infer.model import Attribute
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.folder import load_model
from cdrl_train.cli import main as cdrl_train
from cdrl_train.cli_eval import main as cdrl_eval
from cdrl_train.config import TrainConfig
from cdrl_train.data.image_set import ImageSet
from cdrl_train.presets import preset

NAMES = ("Shirt", "Bag", "7")


def labelled() -> ImageSet:
    """Six images; their pixels say which they are. A class and a colour each."""
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 8, 8)
    labels = torch.tensor([[0, 0], [1, 1], [2, 0], [0, 1], [1, 0], [2, 1]])
    return ImageSet(
        images, labels, (Attribute("class", NAMES), Attribute("colour", ("red", "blue")))
    )


def which(data: ImageSet) -> list[int]:
    return data.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("classes", "kept", "values"),
    [
        (["Bag"], [0, 2, 3, 5], ("Shirt", "7")),
        ([1], [0, 2, 3, 5], ("Shirt", "7")),
        ([7], [0, 1, 3, 4], ("Shirt", "Bag")),  # a name, though it is a number
        ([2, "Shirt"], [1, 4], ("Bag",)),
        (["red"], [1, 3, 5], ("blue",)),  # of the second attribute
    ],
)
def test_classes_are_named_or_numbered(
    classes: list[str | int], kept: list[int], values: tuple[str, ...]
) -> None:
    data = labelled()
    left, gone = data.split_off(classes)
    assert which(left) == kept and sorted(which(left) + which(gone)) == [*range(6)]
    column = 1 if values == ("blue",) else 0
    assert left.attributes[column].values == values and left.labels is not None
    assert data.labels is not None
    for row, k in enumerate(kept):  # the same value, under its new number
        name = data.attributes[column].values[int(data.labels[k, column])]
        assert values[int(left.labels[row, column])] == name
    assert left.with_attributes([]).held_out == left.held_out != ()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["Bags"], "no class 'Bags', expected one of Shirt, Bag, 7; did you mean 'Bag'?"),
        ([3], "no class 3, expected one of"),
        ([-1], "no class -1"),
        ([0, 1, 2], "data.hold_out names all classes of 'class'"),
    ],
)
def test_what_cannot_be_held_out_is_one_line(classes: list[str | int], message: str) -> None:
    with pytest.raises(InputError) as caught:
        labelled().split_off(classes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_data_without_labels_hold_nothing_out() -> None:
    with pytest.raises(InputError, match="they have no labels"):
        ImageSet(labelled().images).split_off([9])


def test_one_class_or_several_are_options() -> None:
    one = preset("mpdr-mnist").override(["data.hold_out=9"])
    assert one.data.hold_out == (9,) and one.data.classes_out == (9,)
    assert TrainConfig.from_dict(one.to_dict()) == one
    assert preset("mnist").override(['data.hold_out=["4",9]']).data.classes_out == ("4", 9)


# Training


def digits(folder: Path, *, held: int = 0, test: int | None = 1) -> str:
    """Three classes of 8 x 8. ``held`` changes the images of class 2, ``test`` the test images."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8)
    images[labels == 2] = np.random.default_rng(held).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    arrays: dict[str, Any] = {"train_images": images, "train_labels": labels}
    if test is not None:
        pixels = np.random.default_rng(test).integers(0, 256, (90, 8, 8), dtype=np.uint8)
        arrays |= {"test_images": pixels, "test_labels": np.arange(90) % 3}
    folder.mkdir(exist_ok=True)
    np.savez(folder / "digits.npz", **arrays)
    return str(folder / "digits.npz")


def run(command: Any, *arguments: object) -> Result:
    return CliRunner().invoke(command, [*map(str, arguments)])


SMALL_MPDR = (
    *("ebm.image_size=[8,8]", "initializer.image_size=[8,8]", "ebm.width=8", "initializer.width=8"),
    *("autoencoder.steps=2", "autoencoder.batch_size=4", "mpdr.steps=2", "mpdr.batch_size=4"),
)
RUNS = {
    "mnist": (*TINY, "--set", "data.attributes=[]"),
    "mpdr-mnist": tuple(word for text in SMALL_MPDR for word in ("--set", text)),
}


def trained(folder: Path, data: str, preset: str = "mnist", options: Sequence[str] = TINY) -> Path:
    result = run(
        cdrl_train,
        *("--preset", preset, "--data", data, "--out", folder / "run", "--track", "none"),
        *(*options, "--set", "data.hold_out=2"),
    )
    assert result.exit_code == 0, result.output
    return folder / "run" / "model"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held")
    return trained(folder, digits(folder), "mnist", RUNS["mnist"])


@pytest.mark.parametrize("preset", RUNS)
def test_training_reads_neither_the_held_out_class_nor_the_test_set(
    preset: str, tmp_path: Path
) -> None:
    """Other images there give the same weights to the bit, and the test set may be missing."""
    expected = load_model(trained(tmp_path, digits(tmp_path), preset, RUNS[preset]))
    for k, changes in enumerate(({"held": 5}, {"test": 6}, {"held": 7, "test": None})):
        folder = tmp_path / str(k)
        data = digits(folder, **changes)  # type: ignore[arg-type]
        other = load_model(trained(folder, data, preset, RUNS[preset]))
        for role, network in expected.networks.items():
            for name, tensor in network.state_dict().items():
                assert torch.equal(tensor, other.networks[role].state_dict()[name]), (k, name)


def test_the_model_says_what_it_never_saw(model: Path, tmp_path: Path) -> None:
    loaded = load_model(model)
    assert loaded.training["held_out_classes"] == ["2"] and loaded.labels == ()
    assert "held out" in (model / "README.md").read_text(encoding="utf-8")
    conditional = load_model(trained(tmp_path, digits(tmp_path)))
    assert conditional.labels[0].values == ("0", "1")  # nobody can ask for the other


@pytest.mark.parametrize(
    ("preset", "assignment", "message"),
    [
        ("mnist", "data.hold_out=nine", "no class 'nine'"),
        ("mnist", "data.hold_out=[0,1,2]", "all classes"),
        (
            "mpdr-mnist",
            "seed=0",
            "image_size is 28 x 28, but images are 8 x 8; set ebm.image_size=[8,8]",
        ),
    ],
)
def test_what_does_not_fit_stops_before_any_work(
    preset: str, assignment: str, message: str, tmp_path: Path
) -> None:
    asked = ("--preset", preset, "--data", digits(tmp_path), "--out", tmp_path / "run")
    result = run(cdrl_train, *asked, "--track", "none", "--set", assignment)
    assert result.exit_code == 2 and message in result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


# Evaluation


def test_evaluation_tells_the_class_from_the_others(model: Path, tmp_path: Path) -> None:
    data, out = digits(tmp_path), tmp_path / "found.json"
    options = ("--metrics", "ood", "--score", "energy", "--out", out)
    result = run(cdrl_eval, "--model", model, "--data", data, *options)
    assert result.exit_code == 0, result.output
    found = {r["name"]: r["value"] for r in json.loads(out.read_text())["results"]}
    with np.load(data) as arrays:
        images, odd = arrays["test_images"], arrays["test_labels"] == 2
    scores = CDRLPipeline.from_pretrained(model).score(images, "energy").scores.numpy()
    assert found["AUROC against held-out 2"] == pytest.approx(roc_auc_score(odd, scores), abs=1e-3)
    assert found["AUPR against held-out 2"] == pytest.approx(
        average_precision_score(odd, scores), abs=1e-3
    )
    assert "inside: 60 images" in result.stdout and "held-out 2: 30 images" in result.stdout


def test_a_calibration_leaves_the_class_out(model: Path, tmp_path: Path) -> None:
    result = run(cdrl_eval, "--model", model, "--data", digits(tmp_path), "--calibrate")
    assert result.exit_code == 0, result.output
    statistics = load_model(model).statistics
    assert statistics is not None and statistics.count == 60  # of 90 test images


def test_data_without_the_class_have_no_anomalies(model: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "plain.npz", test_images=pixels)
    result = run(cdrl_eval, "--model", model, "--data", tmp_path / "plain.npz", "--metrics", "ood")
    assert result.exit_code == 2 and "no images of the held-out classes 2" in result.stderr
