"""Runs that start with the networks of a trained model, and options that the data decide."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import make_model
from PIL import Image
from runs import SMALL, fit, images, initializer, tiny, trainer, write_data
from torch import Tensor

from cdrl_infer.errors import InputError
from cdrl_infer.model import Attribute, CDRLModel
from cdrl_infer.storage.folder import load_model
from cdrl_train.cli import main
from cdrl_train.data.fit import Fit
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import fit_of, load_for, stand_in
from cdrl_train.engine.state import build_networks
from cdrl_train.export import to_model
from cdrl_train.init_from import start_from, with_networks_of
from cdrl_train.presets import preset
from cdrl_train.settle import for_data, settled, sized

GARMENTS = Attribute("class", ("a", "b", "c"))
COLOURS = Attribute("colour", ("red", "blue"))


def trained(tmp_path: Path, *attributes: Attribute, **changes: Any) -> CDRLModel:
    """A model after a few steps on images with these attributes."""
    data = images()
    sizes = [len(attribute.values) for attribute in attributes]
    labels = torch.stack([torch.arange(20) % n for n in sizes], 1) if sizes else None
    run = trainer(tiny(**changes), tmp_path, data=ImageSet(data.images, labels, attributes))
    fit(run)
    model = to_model(run)
    with torch.no_grad():  # weights that start at zero would hide mistakes
        for network in model.networks.values():
            for parameter in network.parameters():
                parameter += 0.05 * torch.randn(parameter.shape)
    return model


def started(model: CDRLModel, *labels: Attribute, channels: int = 1) -> tuple[Any, list[str]]:
    """Fresh networks of a run that starts from the model, by role; and what was told."""
    config = with_networks_of(model, tiny())
    image = dataclasses.replace(model.image, channels=channels)
    told: list[str] = []
    pair = build_networks(config, image, tuple(len(a.values) for a in labels))
    networks = dict(zip(("ebm", "initializer"), pair, strict=True))
    start_from(model, networks, labels, told.append)
    return networks, told


def answers(model: CDRLModel, network: Any, labels: list[int] | None) -> Tensor:
    """The network's output for two images at the second level."""
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    level = model.schedule.level(torch.tensor([2, 2]))
    given = None if labels is None else torch.tensor([labels] * 2)
    result: Tensor = network.eval()(x, network.condition(level, given))
    return result


@pytest.mark.parametrize(
    ("theirs", "ours", "pairs"),
    [
        ((), (), [(None, None)]),
        ((), (GARMENTS,), [(None, [0]), (None, [2])]),
        ((GARMENTS,), (), [([0], None)]),
        ((GARMENTS, COLOURS), (COLOURS,), [([0, 1], [1]), ([0, 0], [0])]),
        (
            (GARMENTS,),
            (Attribute("class", ("c", "new")),),
            [([3], [1]), ([1], [2]), ([0], [0])],
        ),
    ],
)
@pytest.mark.parametrize("ebm", [None, SMALL])
def test_the_run_starts_where_the_model_ended(
    tmp_path: Path, theirs: Any, ours: Any, pairs: list[Any], ebm: dict[str, Any] | None
) -> None:
    """With labels that both know, and without any: the networks are the same functions."""
    model = trained(tmp_path, *theirs, **({"ebm": ebm} if ebm else {}))
    networks, told = started(model, *ours)
    assert len(told) == 2 and "are the model's" in told[0]
    for before, after in pairs:
        for role, network in networks.items():
            expected = answers(model, getattr(model, role), before)
            torch.testing.assert_close(
                answers(model, network, after), expected, rtol=1e-4, atol=1e-4
            )


def test_other_channels_are_told_and_the_rest_is_kept(tmp_path: Path) -> None:
    model = trained(tmp_path, GARMENTS)
    networks, told = started(model, GARMENTS, channels=3)
    assert "new, because shapes or names differ: backbone.stem.weight" in told[0]
    old, new = (n.backbone.down[0][0].conv1.weight for n in (model.ebm, networks["ebm"]))
    assert torch.equal(old, new)


def test_averages_and_spectral_norms_start_with_the_model_too(tmp_path: Path) -> None:
    normed = {"ebm": SMALL, "spectral_norm": True}
    first = trainer(tiny(**normed), tmp_path / "a")
    fit(first)
    model = to_model(first)
    config = with_networks_of(model, tiny())
    assert config.spectral_norm and config.ebm == {**SMALL, **config.ebm}
    run = trainer(config, tmp_path / "b", start=lambda networks: start_from(
        model, networks, images().attributes, lambda text: None))  # fmt: skip
    again = to_model(run)  # of the averages
    for role in ("ebm", "initializer"):
        before, after = (answers(model, getattr(m, role), [1]) for m in (model, again))
        torch.testing.assert_close(after, before, rtol=0.02, atol=0.02)


def test_networks_that_do_not_fit_at_all_are_refused(tmp_path: Path) -> None:
    model = trained(tmp_path, ebm=SMALL)
    ebm, _ = build_networks(tiny(), model.image, ())
    with pytest.raises(
        InputError, match="nothing of the model's ResidualEBM fits this run's Inner"
    ):
        start_from(model, {"ebm": ebm, "initializer": None}, (), print)


def test_a_model_without_an_initializer_is_trained_on_without_one(tmp_path: Path) -> None:
    model = dataclasses.replace(trained(tmp_path), initializer=None)
    config = with_networks_of(model, tiny(initializer=initializer()))
    assert config.initializer is None and [p.name for p in config.phases][-1] == "drl"


@pytest.mark.parametrize(("mirrored", "flip"), [(True, True), (False, False)])
def test_variance_and_flips_come_from_the_data(mirrored: bool, flip: bool) -> None:
    """A ramp from left to right is not mirrored, unless every other image is."""
    pixels = torch.arange(8, dtype=torch.uint8).mul(30).expand(50, 1, 8, 8).clone()
    pixels[::2] = pixels[::2].flip(-1) if mirrored else pixels[::2]
    config = tiny("ebm.data_variance=auto", "data.flip=null")
    found = settled(config, ImageSet(pixels), lambda text: None)
    expected = (pixels.float() / 127.5 - 1).square().mean()
    assert found.ebm["data_variance"] == pytest.approx(float(expected), abs=1e-3)
    assert found.data.flip is flip
    assert settled(found, ImageSet(pixels), pytest.fail) == found


@pytest.mark.parametrize(
    ("preset_source", "source", "name", "shown"),
    [
        ("torchvision:MNIST", "torchvision:MNIST:/secret", "mnist", "torchvision:MNIST"),
        ("torchvision:MNIST", "/secret/my photos/", "my-photos", "my photos"),
        ("torchvision:MNIST", "/secret/mine.npz", "mine", "mine.npz"),
    ],
)
def test_a_run_has_the_name_of_its_data(
    preset_source: str, source: str, name: str, shown: str
) -> None:
    config = for_data(
        dataclasses.replace(tiny(f"data.source={preset_source}"), name="mnist"), source
    )
    assert (config.name, config.data.source) == (name, shown)


def photographs(folder: Path, *sizes: tuple[int, int]) -> str:
    """Colour pictures of these widths and heights: red on the left, blue on the right."""
    folder.mkdir()
    for k, (width, height) in enumerate(sizes):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 200
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return str(folder)


@pytest.mark.parametrize(("how", "corner"), [("crop", [200, 0, 0]), ("pad", [0, 0, 0])])
def test_photographs_of_mixed_sizes_get_one_size_and_that_is_told(
    tmp_path: Path, how: str, corner: list[int]
) -> None:
    source = photographs(tmp_path / "photos", (80, 40), (120, 90), (33, 70))
    told: list[str] = []
    config = sized(tiny(f"data.resize={how}"), source, None, told.append)
    assert config.data.image_size == (32, 32)
    done = {"crop": "cropped", "pad": "padded"}[how]
    assert (
        f"pictures of 3 sizes from 70 x 33 to 90 x 120 are {done} and scaled to 32 x 32" in told[0]
    )
    data = load_for(source, config.data)
    assert tuple(data.images.shape) == (3, 3, 32, 32)
    assert data.images[0, :, 0, 0].tolist() == corner
    assert data.images[0, :, 16, 2].tolist() == [200, 0, 0]
    assert data.images[0, :, 16, -3].tolist() == [0, 0, 200]
    assert sized(config, source, None, pytest.fail) == config  # a resumed run


def test_a_size_that_fits_is_left_alone_and_arrays_are_scaled_on_request(tmp_path: Path) -> None:
    source = photographs(tmp_path / "icons", (16, 24), (16, 24))
    assert sized(tiny(), source, None, pytest.fail).data.image_size is None
    data = load_for(write_data(tmp_path), tiny("data.image_size=[4,6]").data)
    assert tuple(data.images.shape) == (16, 1, 4, 6)
    empty = stand_in("torchvision:MNIST", tiny("data.image_size=[16,16]").data)
    assert tuple(empty.images.shape) == (0, 1, 16, 16)


def test_a_folder_of_photographs_becomes_a_model_of_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "my photos", *[(70 + k, 90) for k in range(6)])
    small = ["--set", "warm_start.steps=1", "--set", "cooperative.steps=1", "--set", "log_every=1"]
    small += ["--set", "warm_start.batch_size=2", "--set", "cooperative.batch_size=2"]
    result = CliRunner().invoke(main, ["--data", "my photos", "--image-size", "96x72", *small])
    assert result.exit_code == 0, result.output
    assert "a step of 2 images of 96 x 72 takes about" in result.output
    card = (tmp_path / "runs/my-photos/model/README.md").read_text()
    assert "# my-photos" in card and "96 × 72, 3 channels" in card and "fashion" not in card.lower()
    assert fit_of(load_model(tmp_path / "runs/my-photos/model")) == Fit((96, 72), "crop")
    wrong = CliRunner().invoke(main, ["--data", "my photos", "--image-size", "big"])
    assert (wrong.exit_code, wrong.output.count("\n")) == (2, 1)


def test_a_preset_that_needs_an_initializer_refuses_a_model_without_one() -> None:
    model = dataclasses.replace(make_model(), initializer=None)
    assert with_networks_of(model, preset("fine-tune")).phases[0].name == "drl"
    with pytest.raises(InputError, match="manifold goes on from a model with an initializer"):
        with_networks_of(model, preset("manifold"))
