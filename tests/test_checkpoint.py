"""Saving and loading; what can be wrong with a folder is in test_damaged_folders.py."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSES, make_model
from PIL import Image

from cdrl_infer.config import Configurable, from_config
from cdrl_infer.errors import CheckpointError, ConfigError
from cdrl_infer.model import Attribute, CDRLModel, ImageShape, SamplerDefaults, check_sizes
from cdrl_infer.networks.base import Backbone
from cdrl_infer.networks.heads import InnerProductEnergy
from cdrl_infer.networks.patch_unet import PatchUNet
from cdrl_infer.networks.registry import BACKBONES, ENERGIES, NETWORKS
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.storage.folder import OPTIONAL, load_model, model_files, save_model
from cdrl_train.networks import PARTS

PATCH = {"class": "PatchUNet", "widths": [8, 12], "embedding_dim": 16, "num_classes": [3, 2]}
BACKBONE: dict[str, dict[str, Any]] = {
    "PatchUNet": PATCH,
    "UNet": {"class": "UNet", "widths": [8], "num_blocks": 1, "groups": 4, "attention_levels": []},
    "MLP": {"class": "MLP", "width": 8, "num_blocks": 1, "in_channels": 3},
}
SMALL: dict[str, dict[str, Any]] = {
    "InnerProductEnergy": {"backbone": PATCH, "data_variance": 0.3},
    "SquaredDistanceEnergy": {"backbone": PATCH},
    "ResidualEBM": {"width": 8, "num_blocks": 1, "width_multipliers": [1, 2], "activation": "silu"},
    "MLPEnergy": {"width": 8, "num_pixels": 3, "num_classes": [3, 2], "data_variance": 0.3},
    "TiltedEnergy": {"base": {"class": "GaussianDistribution", "num_given": 1}, "width": 8},
    "ConvEnergy": {"width": 4, "hidden": 8, "image_size": [8, 8]},
    "ReconstructionEnergy": {"width": 4, "hidden": 8, "latent": 2, "image_size": [8, 8]},
    "SphereAutoencoder": {"width": 4, "hidden": 8, "latent": 2, "image_size": [8, 8]},
    "AutoencoderEnsemble": {"widths": [4], "hidden": 8, "latent": 2, "image_size": [8, 8]},
    "VAEEnergy": {"num_pixels": 12, "latents": 2, "width": 8, "components": 2},
    "ResidualInitializer": {"backbone": PATCH},
    "GaussianDistribution": {"covariance": "full"},
    "MixtureDistribution": {"components": 2, "num_given": 1},
}
HEADED = [
    *((role, name, SMALL[name]) for role, names in NETWORKS.items() for name in names),
    *(("ebm", "InnerProductEnergy", {"backbone": BACKBONE[name]}) for name in BACKBONES),
]


def assert_same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    assert type(a) is type(b)
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_round_trip(model: CDRLModel, tmp_path: Path) -> None:
    model.model_card = "# Tiny\n"
    model.schedule = NoiseSchedule(num_levels=3, step_rule="curvature", step_size=0.3)
    model.sampler = SamplerDefaults((3, 2, 1), step_scale=0.5, score_scale=2.0)
    save_model(model, tmp_path / "a" / "b")
    loaded = load_model(tmp_path / "a" / "b")
    assert_same(model.ebm, loaded.ebm)
    assert_same(model.initializer, loaded.initializer)
    for name in ("schedule", "image", "labels", "sampler", "training", "model_card"):
        assert getattr(loaded, name) == getattr(model, name), name
    assert not any(module.training for module in loaded.ebm.modules())
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]


@pytest.mark.parametrize(("role", "name", "options"), HEADED)
def test_every_registered_class_is_rebuilt_from_its_config(
    role: str, name: str, options: dict[str, Any]
) -> None:
    cls = NETWORKS[role].find(name)
    network = from_config(cls, options, "here")
    stored = json.loads(json.dumps(network.config))
    for key, value in options.items():
        assert stored[key].items() >= value.items() if key in PARTS else stored[key] == value
    rebuilt = from_config(cls, stored, "here")
    assert rebuilt.config == network.config
    rebuilt.load_state_dict(network.state_dict(), strict=True)
    # Loading fills a network made on the meta device: all it holds must be in its state dict.
    held = {n for n, _ in (*network.named_parameters(), *network.named_buffers())}
    assert held == set(network.state_dict())


class Doubled(Backbone):
    """A backbone of somebody's own."""

    def __init__(self, in_channels: int = 1, num_classes: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.in_channels, self.num_classes = in_channels, num_classes
        self.gain = torch.nn.Parameter(torch.tensor(2.0))

    def condition(self, logsnr: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return self.gain

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return condition * x


class Halved(InnerProductEnergy):
    """An energy of somebody's own."""


def test_classes_of_ones_own_are_stored_by_their_registered_names(
    model: CDRLModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for registry in (BACKBONES, ENERGIES):
        monkeypatch.setattr(registry, "_found", dict(registry._found))
    model.ebm = Halved(Doubled(num_classes=(3,)))
    with pytest.raises(ConfigError, match=r"Halved is not a registered energy network, .*register"):
        save_model(model, tmp_path / "m")
    ENERGIES.register("halved", Halved)
    with pytest.raises(ConfigError, match=r"Doubled is not a registered backbone, .*register"):
        save_model(model, tmp_path / "m")
    BACKBONES.register("doubled", Doubled)
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m").ebm
    assert isinstance(loaded, Halved) and isinstance(loaded.backbone, Doubled)
    assert loaded.config["backbone"]["class"] == "doubled"
    BACKBONES._found.pop("doubled")
    with pytest.raises(
        ConfigError, match=r"unknown backbone 'doubled'.*register your own backbone"
    ):
        load_model(tmp_path / "m")


def test_a_buffer_that_is_not_stored_is_refused(
    model: CDRLModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Buffered(Doubled):
        def __init__(self, in_channels: int = 1, num_classes: tuple[int, ...] = ()) -> None:
            super().__init__(in_channels, num_classes)
            self.register_buffer("rates", torch.ones(3), persistent=False)

    monkeypatch.setattr(BACKBONES, "_found", {**BACKBONES._found, "buffered": Buffered})
    model.ebm = InnerProductEnergy(Buffered(num_classes=(3,)))
    save_model(model, tmp_path / "m")
    with pytest.raises(
        ConfigError, match=r"buffers that no file stores: backbone.rates; make them"
    ):
        load_model(tmp_path / "m")


def test_config_counts_defaults_and_positions_and_skips_parents() -> None:
    class Parent(Configurable):
        def __init__(self, a: int = 1) -> None:
            self.a = a

    class Child(Parent):
        def __init__(self, b: int, c: float = 0.5) -> None:
            super().__init__(a=b)

    assert Child(3).config == {"b": 3, "c": 0.5}
    assert Parent(2).config == {"a": 2}


def test_a_constructor_says_its_types() -> None:
    class Bare(Configurable):
        def __init__(self, a, b: list[int]) -> None:  # type: ignore[no-untyped-def]
            self.b = b

    class Sized(Configurable):
        def __init__(self, b: list[int], c: complex = 0j) -> None:
            self.b = b

    with pytest.raises(ConfigError, match="Bare: expected type annotations for a; add them"):
        from_config(Bare, {"a": 1, "b": [1]}, "here")
    assert from_config(Sized, {"b": [1, 2]}, "here").b == [1, 2]
    with pytest.raises(ConfigError, match=r"'c' must be .*complex.*, which no file can hold"):
        from_config(Sized, {"b": [], "c": 1}, "here")


def test_float16_files_are_half_as_large_and_load_as_float32(
    model: CDRLModel, tmp_path: Path
) -> None:
    save_model(model, tmp_path / "32")
    save_model(model, tmp_path / "16", dtype=torch.float16)
    sizes = [(tmp_path / d / "ebm/model.safetensors").stat().st_size for d in ("16", "32")]
    assert sizes[0] < 0.75 * sizes[1]
    for name, tensor in load_model(tmp_path / "16").ebm.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.ebm.state_dict()[name].half().float())


def test_loading_leaves_the_global_random_state_alone(folder: Path) -> None:
    before = torch.random.get_rng_state()
    load_model(folder)
    assert torch.equal(before, torch.random.get_rng_state())


def test_saving_replaces_a_model(model: CDRLModel, tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    save_model(make_model(CLASSES, seed=1), target)
    save_model(model, target)
    assert_same(load_model(target).ebm, model.ebm)
    assert os.listdir(tmp_path) == ["model"]


def test_saving_keeps_foreign_folders_and_files(model: CDRLModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"library": "diffusers"}')
    with pytest.raises(CheckpointError, match="found a file"):
        save_model(model, tmp_path / "file")
    with pytest.raises(CheckpointError, match="not a CDRL model's"):
        save_model(model, tmp_path / "other")
    assert (tmp_path / "other" / "config.json").read_text() == '{"library": "diffusers"}'


def test_a_failed_save_leaves_what_was_there(
    model: CDRLModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(model, tmp_path / "old")
    before = {p: p.read_bytes() for p in (tmp_path / "old").rglob("*") if p.is_file()}
    write, written = Path.write_bytes, []

    def full_disk(self: Path, data: bytes) -> int:
        written.append(self)
        if len(written) == 3:
            write(self, data[:10])
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    for name in ("old", "new"):
        written.clear()
        with pytest.raises(CheckpointError, match=r"cannot write .* No space left"):
            save_model(make_model(CLASSES, seed=1), tmp_path / name)
        assert len(written) == 3
    assert os.listdir(tmp_path) == ["old"]
    assert {p: p.read_bytes() for p in (tmp_path / "old").rglob("*") if p.is_file()} == before


def test_a_move_that_failed_is_finished_at_the_next_load(
    model: CDRLModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(make_model(CLASSES, seed=1), tmp_path / "old")
    replace, calls = os.replace, []

    def second_fails(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save_model(model, tmp_path / "old")
    assert_same(load_model(tmp_path / "old").ebm, model.ebm)


def test_what_cannot_be_stored_is_refused_before_writing(model: CDRLModel, tmp_path: Path) -> None:
    model.training = {"loss": float("nan")}
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        save_model(model, tmp_path / "a")
    model.training = {}
    with torch.no_grad():
        model.ebm.backbone.stem.bias[0] = 1e6
    with pytest.raises(CheckpointError, match=r"as torch.float16: .* holds NaN or infinity"):
        save_model(model, tmp_path / "a", dtype=torch.float16)
    assert os.listdir(tmp_path) == []


def test_sizes_can_be_checked_before_there_is_a_model(model: CDRLModel) -> None:
    classes = (Attribute("class", CLASSES),)
    check_sizes("ebm", model.ebm, ImageShape(1, 8, 8), classes)
    with pytest.raises(ConfigError, match="ebm: image height and width must be multiples of 2"):
        check_sizes("ebm", model.ebm, ImageShape(1, 7, 8), classes)


def test_parts_must_fit(model: CDRLModel) -> None:
    with pytest.raises(ConfigError, match=r"ebm: num_classes is \[\], but 'labels' has \[3\]"):
        CDRLModel(
            InnerProductEnergy(PatchUNet(widths=(8,))),
            model.initializer,
            model.schedule,
            ImageShape(1, 8, 8),
            (Attribute("class", CLASSES),),
        )


def test_save_pretrained_then_from_pretrained_draws_the_same_images(
    model: CDRLModel, tmp_path: Path
) -> None:
    call: dict[str, Any] = {"seeds": range(3), "class_labels": ["Shirt", "Bag", None]}
    pipe = CDRLPipeline(model)
    pipe.save_pretrained(tmp_path / "saved")
    again = CDRLPipeline.from_pretrained(tmp_path / "saved")
    images = [p(output_type="np", progress=False, **call).images for p in (pipe, again)]
    assert images[0].tobytes() == images[1].tobytes()


def test_each_thing_is_said_once(folder: Path) -> None:
    """And every file is one of `model_files`."""
    index = json.loads((folder / "model_index.json").read_text())
    assert index == {
        "_class_name": "CDRLPipeline",
        "ebm": ["cdrl", "InnerProductEnergy"],
        "initializer": ["cdrl", "ResidualInitializer"],
    }
    assert "class" not in json.loads((folder / "ebm/config.json").read_text())
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files == set(model_files()) - set(OPTIONAL)
    assert "ebm/model.safetensors" not in model_files(
        "fp16"
    ) and "ebm/model.fp16.safetensors" in model_files("fp16")


@pytest.mark.parametrize(("variant", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_variants_lie_beside_the_weights(
    model: CDRLModel, tmp_path: Path, variant: str, dtype: torch.dtype
) -> None:
    save_model(model, tmp_path / "m")
    save_model(model, tmp_path / "m", variant=variant)
    assert_same(load_model(tmp_path / "m").ebm, model.ebm)
    rounded = load_model(tmp_path / "m", variant=variant).ebm.state_dict()
    for name, tensor in model.ebm.state_dict().items():
        assert torch.equal(rounded[name], tensor.to(dtype).float())
    sizes = [
        (tmp_path / "m/ebm" / name).stat().st_size
        for name in (f"model.{variant}.safetensors", "model.safetensors")
    ]
    assert sizes[0] < 0.75 * sizes[1]
    save_model(model, tmp_path / "m")  # the same again: the variant stays
    load_model(tmp_path / "m", variant=variant)


def test_weights_of_another_model_are_neither_lost_nor_mixed(
    model: CDRLModel, tmp_path: Path
) -> None:
    save_model(model, tmp_path / "m", variant="fp16")
    for other in (make_model(CLASSES, seed=1), make_model(("a",), ("b", "c"))):
        with pytest.raises(CheckpointError, match=r"ebm/model.fp16.safetensors has the weights of"):
            save_model(other, tmp_path / "m")
    save_model(make_model(CLASSES, seed=1), tmp_path / "m", variant="fp16")  # replaced
    with pytest.raises(CheckpointError, match=r"no such file; there are model.fp16.safetensors"):
        load_model(tmp_path / "m")


def test_unknown_variants_and_types(model: CDRLModel, folder: Path, tmp_path: Path) -> None:
    for variant in ("fp15", "../../x", ""):
        with pytest.raises(ConfigError, match=r"unknown variant .* expected fp16, bf16 or none"):
            load_model(folder, variant=variant)
        with pytest.raises(ConfigError, match="unknown variant"):
            save_model(model, tmp_path / "m", variant=variant)
        with pytest.raises(ConfigError, match="unknown variant"):
            model_files(variant)
    with pytest.raises(
        ConfigError, match=r"fp16.safetensors are stored in torch.float16, got .*32"
    ):
        save_model(model, tmp_path / "m", variant="fp16", dtype=torch.float32)
    with pytest.raises(
        ConfigError, match=r"model.safetensors are stored in torch.float32, .*float64"
    ):
        save_model(model, tmp_path / "m", dtype=torch.float64)
    assert os.listdir(tmp_path) == []


def test_the_picture_of_the_card(model: CDRLModel, tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("L", (4, 4)).save(picture, "PNG")
    model.samples = picture.getvalue()
    save_model(model, tmp_path / "m")
    assert load_model(tmp_path / "m").samples == model.samples
    (tmp_path / "m/samples.png").write_bytes(b"GIF89a")
    with pytest.raises(CheckpointError, match=r"samples.png: expected a PNG"):
        load_model(tmp_path / "m")
