"""Saving, loading, and every way a model folder can be wrong."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSES, make_model
from PIL import Image
from safetensors.torch import load_file, save_file

from cdrl_infer.config import Configurable, from_config
from cdrl_infer.errors import CDRLError, CheckpointError, ConfigError
from cdrl_infer.model import Attribute, CDRLModel, ImageShape, SamplerDefaults, check_sizes
from cdrl_infer.networks.energy_unet import EnergyUNet
from cdrl_infer.networks.registry import NETWORKS, network_class
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.storage.folder import OPTIONAL, find_model, load_model, model_files, save_model

SMALL: dict[str, dict[str, Any]] = {
    "EnergyUNet": {"widths": (8, 12), "embedding_dim": 16, "num_classes": (3, 2)},
    "ResidualEBM": {"width": 8, "num_blocks": 1, "width_multipliers": (1, 2), "activation": "silu"},
    "IdentityInitializer": {"in_channels": 3, "num_classes": (2,)},
    "MLPEnergy": {"width": 8, "num_pixels": 3, "num_classes": (3, 2), "data_variance": 0.3},
    "MLPInitializer": {"width": 8, "num_blocks": 1, "in_channels": 3},
    "PatchInitializer": {"widths": (8,), "embedding_dim": 16, "in_channels": 3},
    "UNetInitializer": {"widths": (8, 8), "num_blocks": 1, "groups": 4, "attention_levels": (1,)},
}


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The saved tiny model, free to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


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


@pytest.mark.parametrize(
    ("role", "name"), [(role, name) for role, names in NETWORKS.items() for name in names]
)
def test_every_registered_class_is_rebuilt_from_its_config(role: str, name: str) -> None:
    cls = network_class(role, name, "here")
    network = cls(**SMALL[name])
    assert network.config.items() >= SMALL[name].items()
    stored = json.loads(json.dumps(network.config))
    rebuilt = from_config(cls, stored, "here")
    assert rebuilt.config == network.config
    rebuilt.load_state_dict(network.state_dict(), strict=True)
    # Loading fills a network made on the meta device: all it holds must be in its state dict.
    held = {n for n, _ in (*network.named_parameters(), *network.named_buffers())}
    assert held == set(network.state_dict())


def test_config_counts_defaults_and_positions_and_skips_parents() -> None:
    class Parent(Configurable):
        def __init__(self, a: int = 1) -> None:
            self.a = a

    class Child(Parent):
        def __init__(self, b: int, c: float = 0.5) -> None:
            super().__init__(a=b)

    assert Child(3).config == {"b": 3, "c": 0.5}
    assert Parent(2).config == {"a": 2}


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


def test_sizes_are_compared_before_memory_is_taken(copied: Path) -> None:
    edit(copied / "ebm/config.json", lambda c: c.update(embedding_dim=300_000))
    with pytest.raises(CheckpointError, match=r"expected unet.* of shape .*300000.*found .*16"):
        load_model(copied)  # 360 GB, had it been allocated


ROOT, INDEX = "config.json", "model_index.json"
EBM, WEIGHTS = "ebm/config.json", "ebm/model.safetensors"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (ROOT, {"colour": 1}, "unknown key 'colour', expected format_version"),
        (ROOT, {"sampling": 1}, "did you mean 'sampler'"),
        (ROOT, {"format_version": 1}, r"format version 1 found, 2 expected; .*export the model ag"),
        (
            ROOT,
            {"format_version": 3},
            r"format version 3 found, 2 expected by cdrl .*update it: pip",
        ),
        (
            ROOT,
            {"format_version": 0},
            "format_version must be at least 1, found 0; the file was ch",
        ),
        (ROOT, {"format_version": "1"}, "format_version, found none"),
        (ROOT, {"library": "diffusers"}, 'expected "library": "cdrl"'),
        (ROOT, {"labels": "Bag"}, "'labels' must be a list"),
        (ROOT, {"labels": []}, r"num_classes is \[3\], but 'labels' names \[\]"),
        (ROOT, {"labels": [{"name": "class", "values": ["a", "b", "a"]}]}, "distinct names"),
        (ROOT, {"labels": [{"name": "class", "values": [1, 2, 3]}]}, "each item a text"),
        (ROOT, {"image": {"channels": 3, "height": 8, "width": 8}}, "in_channels is 1, but"),
        (ROOT, {"image": {"channels": 1, "height": 9, "width": 8}}, "multiples of 2, got 9 and 8"),
        (ROOT, {"image": {"channels": 1, "height": 0, "width": 8}}, "must be positive"),
        (ROOT, {"image": {"channels": 1, "height": 8}}, "the key 'width' is missing"),
        (ROOT, {"image": [1, 8, 8]}, "expected an object of named values"),
        (ROOT, {"schedule": {"num_level": 3}}, "unknown key 'num_level'.*mean 'num_levels'"),
        (ROOT, {"schedule": {"num_levels": 3.0}}, "'num_levels' must be an integer, found 3.0"),
        (ROOT, {"schedule": {"num_levels": True}}, "'num_levels' must be an integer, found True"),
        (ROOT, {"schedule": {"step_rule": "x"}}, "one of 'paper', 'curvature', found 'x'"),
        (ROOT, {"schedule": {"logsnr_max": -9}}, "expected -40 < logsnr_min < logsnr_max"),
        (ROOT, {"schedule": {"logsnr_max": None}}, "must be a finite number, found None"),
        (ROOT, {"sampler": {"langevin_steps": [1, 2]}}, "one integer or 3, one per level, got 2"),
        (ROOT, {"sampler": {"langevin_steps": -1}}, "must not be negative, got -1"),
        (ROOT, {"sampler": {"step_scale": 0}}, "expected step_scale > 0"),
        (INDEX, {"ebm": ["cdrl", "Energy"]}, "class 'Energy', expected EnergyUNet.*did you mean"),
        (INDEX, {"ebm": ["cdrl", "PatchInitializer"]}, "'PatchInitializer', expected EnergyUNet"),
        (INDEX, {"ebm": ["cdrl", ["EnergyUNet"]]}, "unknown class"),
        (INDEX, {"ebm": ["os", "system"]}, r"'ebm' must be \[\"cdrl\", a class\], found \['os'"),
        (INDEX, {"ebm": "EnergyUNet"}, "found 'EnergyUNet'"),
        (INDEX, {"vae": ["cdrl", "EnergyUNet"]}, "unknown key 'vae', expected _class_name, ebm"),
        (INDEX, {"_class_name": "StableDiffusionPipeline"}, "expected '_class_name' CDRLPipeline"),
        (EBM, {"class": "EnergyUNet"}, "unknown key 'class', expected in_channels"),
        (EBM, {"data_variance": 10**400}, "must be a finite number, found 1000"),
        (EBM, {"widths": [10**9]}, "absurd sizes, expected those of the network"),
        (EBM, {"widths": [10**40]}, "absurd sizes"),
        (EBM, {"num_blocks": 10**12}, "absurd sizes"),
        (EBM, {"widths": [1] * 10_000, "num_blocks": 10**6}, "absurd sizes"),
        (EBM, {"num_classes": [10**9] * 10_000}, "absurd sizes"),
        (ROOT, {"image": {"channels": 1, "height": 10**6, "width": 10**6}}, "at most 268,435,456"),
        (ROOT, {"sampler": {"langevin_steps": 10**9}}, "must be at most 10,000, got 1000000000"),
        (ROOT, {"labels": [{"name": "class", "values": ["a", "b\n", "c"]}]}, "a printable name"),
        (
            ROOT,
            {"labels": [{"name": "class", "values": ["a", "b" * 201, "c"]}]},
            "at most 200 char",
        ),
        (EBM, {"width": 3}, "unknown key 'width', expected .*did you mean 'widths'"),
        (EBM, {"widths": 8}, "'widths' must be a list, each item an integer, found 8"),
        (EBM, {"widths": []}, "sizes must be positive"),
        (EBM, {"data_variance": "1"}, "must be a finite number, found '1'"),
        (EBM, {"data_variance": -1.0}, "data_variance must be positive, got -1"),
        (EBM, {"widths": [16]}, r"expected unet.* of shape .*; are these the weights"),
        (EBM, {"num_blocks": 2}, "lacks tensors"),
        (EBM, {"widths": [8, 8]}, "image height|lacks tensors"),
    ],
)
def test_wrong_configs_are_told_in_one_line(
    copied: Path, file: str, change: dict[str, Any], message: str
) -> None:
    edit(copied / file, lambda config: config.update(change))
    with pytest.raises(CDRLError, match=message) as caught:
        load_model(copied)
    assert "\n" not in str(caught.value)
    assert str(copied) in str(caught.value)


@pytest.mark.parametrize("file", [ROOT, INDEX, EBM, WEIGHTS, "initializer/model.safetensors"])
def test_missing_files(copied: Path, file: str) -> None:
    (copied / file).unlink()
    with pytest.raises(CheckpointError, match=f"{file}: expected .* found"):
        load_model(copied)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a model folder, found none"):
        load_model(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no model 'fashion-mnits': expected a folder, or"):
        find_model("fashion-mnits")


@pytest.mark.parametrize("text", ["{", "[]", "", "[" * 100_000, '{"a": NaN}'])
def test_configs_that_are_not_json_objects(copied: Path, text: str) -> None:
    (copied / ROOT).write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"not valid JSON|expected an object"):
        load_model(copied)


@pytest.mark.parametrize("name", ["README.md", ROOT, EBM])
def test_what_is_no_text(copied: Path, name: str) -> None:
    (copied / name).write_bytes(b"# Caf\xe9")
    with pytest.raises(CheckpointError, match=rf"{name}: expected text in UTF-8") as caught:
        load_model(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        lambda b: b[: len(b) // 2],
        lambda b: b[:4],
        lambda b: b"",
        lambda b: b"PK\x03\x04" + b,
        lambda b: b"\x80\x02}q\x00." * 50,
    ],
)
def test_truncated_or_foreign_weights(copied: Path, damage: Callable[[bytes], bytes]) -> None:
    file = copied / WEIGHTS
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=r"not a whole safetensors file .*again") as caught:
        load_model(copied)
    assert "\n" not in str(caught.value)


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["unet.stem.weight"][0, 0, 0, 0] = float("nan")


def _infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors["unet.stem.bias"][-1] = float("inf")


def _missing(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["unet.stem.bias"]


def _unexpected(tensors: dict[str, torch.Tensor]) -> None:
    tensors["unet.stem.gain"] = torch.ones(1)


def _transposed(tensors: dict[str, torch.Tensor]) -> None:
    tensors["unet.embed1.weight"] = tensors["unet.embed1.weight"].T.contiguous()


def _integers(tensors: dict[str, torch.Tensor]) -> None:
    tensors["unet.stem.bias"] = tensors["unet.stem.bias"].to(torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_nan, "unet.stem.weight holds NaN or infinity"),
        (_infinite, "unet.stem.bias holds NaN or infinity"),
        (_missing, "lacks tensors unet.stem.bias"),
        (_unexpected, "has the unexpected tensors unet.stem.gain"),
        (_transposed, r"unet.embed1.weight of shape \(16, 64\).*found \(64, 16\)"),
        (_integers, "unet.stem.bias of shape .* in F16, BF16, F32, found .* in I32"),
    ],
)
def test_wrong_tensors(copied: Path, change: Callable[[Any], None], message: str) -> None:
    tensors = load_file(copied / WEIGHTS)
    change(tensors)
    save_file(tensors, copied / WEIGHTS)
    with pytest.raises(CheckpointError, match=message):
        load_model(copied)


def test_saving_replaces_a_model_but_nothing_else(model: CDRLModel, tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    save_model(make_model(CLASSES, seed=1), target)
    save_model(model, target)
    assert_same(load_model(target).ebm, model.ebm)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"not a CDRL model folder.*notes.txt"):
        save_model(model, target)
    assert (target / "notes.txt").read_text() == "mine"
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


def test_a_failed_swap_puts_the_old_model_back(
    model: CDRLModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(model, tmp_path / "old")
    rename, calls = os.rename, []

    def second_fails(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save_model(make_model(CLASSES, seed=1), tmp_path / "old")
    assert os.listdir(tmp_path) == ["old"]
    assert_same(load_model(tmp_path / "old").ebm, model.ebm)


def test_what_cannot_be_stored_is_refused_before_writing(model: CDRLModel, tmp_path: Path) -> None:
    model.training = {"loss": float("nan")}
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        save_model(model, tmp_path / "a")
    model.training = {}
    with torch.no_grad():
        model.ebm.unet.stem.bias[0] = 1e6
    with pytest.raises(CheckpointError, match=r"as torch.float16: .* holds NaN or infinity"):
        save_model(model, tmp_path / "a", dtype=torch.float16)
    assert os.listdir(tmp_path) == []


def test_sizes_can_be_checked_before_there_is_a_model(model: CDRLModel) -> None:
    classes = (Attribute("class", CLASSES),)
    check_sizes("ebm", model.ebm, ImageShape(1, 8, 8), classes)
    with pytest.raises(ConfigError, match="ebm: image height and width must be multiples of 2"):
        check_sizes("ebm", model.ebm, ImageShape(1, 7, 8), classes)


def test_parts_must_fit(model: CDRLModel) -> None:
    with pytest.raises(ConfigError, match=r"ebm: num_classes is \[\], but 'labels' names \[3\]"):
        CDRLModel(
            EnergyUNet(widths=(8,)),
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
    index = json.loads((folder / INDEX).read_text())
    assert index == {
        "_class_name": "CDRLPipeline",
        "ebm": ["cdrl", "EnergyUNet"],
        "initializer": ["cdrl", "PatchInitializer"],
    }
    assert "class" not in json.loads((folder / EBM).read_text())
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files == set(model_files()) - set(OPTIONAL)
    assert WEIGHTS not in model_files("fp16") and "ebm/model.fp16.safetensors" in model_files(
        "fp16"
    )


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


@pytest.mark.parametrize(
    ("writer", "needed"), [("0.4.0", "cdrl>=0.4.0'"), ("1.0\n; rm", "cdrl'"), (None, "cdrl'")]
)
def test_a_newer_format_names_the_version_that_reads_it(
    copied: Path, writer: Any, needed: str
) -> None:
    (copied / INDEX).unlink()  # whatever else it has may be otherwise too
    (copied / ROOT).write_text(
        json.dumps({"library": "cdrl", "format_version": 9, "library_version": writer})
    )
    with pytest.raises(CheckpointError, match="format version 9 found, 2 expected") as caught:
        load_model(copied)
    assert str(caught.value).endswith(f"pip install -U '{needed}")


def test_the_picture_of_the_card(model: CDRLModel, tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("L", (4, 4)).save(picture, "PNG")
    model.samples = picture.getvalue()
    save_model(model, tmp_path / "m")
    assert load_model(tmp_path / "m").samples == model.samples
    (tmp_path / "m/samples.png").write_bytes(b"GIF89a")
    with pytest.raises(CheckpointError, match=r"samples.png: expected a PNG"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("name", ["README.md", ROOT, EBM, WEIGHTS, "ebm", "samples.png"])
@pytest.mark.parametrize("absolute", [True, False])
def test_links_do_not_lead_out_of_the_folder(
    copied: Path, tmp_path: Path, name: str, absolute: bool
) -> None:
    secret = tmp_path / "secret"
    path = copied / name
    if path.exists():
        path.rename(secret)
    else:
        secret.write_text("mine")
    path.symlink_to(secret if absolute else os.path.relpath(secret, path.parent))
    with pytest.raises(CheckpointError, match=r"found a link out of it; put a copy in its place"):
        load_model(copied)


def test_links_inside_a_folder_and_in_the_cache_of_the_hub(copied: Path, tmp_path: Path) -> None:
    (copied / EBM).rename(copied / "a.json")
    (copied / EBM).symlink_to("../a.json")
    load_model(copied)
    (copied / EBM).unlink()
    (copied / EBM).symlink_to("config.json")  # a circle
    with pytest.raises(CheckpointError, match=r"cannot be found|found none"):
        load_model(copied)
    (copied / EBM).unlink()
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (copied / "a.json").rename(cache / "blobs" / "1234")
    (cache / "snapshots").mkdir()
    snapshot = copied.rename(cache / "snapshots" / "abcd")
    (snapshot / EBM).symlink_to("../../../blobs/1234")
    load_model(snapshot)


def test_huge_texts_and_headers_are_not_read(copied: Path) -> None:
    for name in (ROOT, EBM, "README.md", "samples.png"):
        kept = (copied / name).read_bytes() if (copied / name).exists() else b""
        with open(copied / name, "wb") as file:
            file.truncate(2**40)  # a hole: no disk is used
        with pytest.raises(
            CheckpointError, match=rf"{name}: expected at most .* bytes, found more"
        ):
            load_model(copied)
        (copied / name).write_bytes(kept)
        if not kept:
            (copied / name).unlink()
    with open(copied / WEIGHTS, "wb") as file:
        file.write(struct.pack("<Q", 2**30) + b"{")
        file.truncate(2**31)
    with pytest.raises(CheckpointError, match="a header of 1,073,741,824 bytes"):
        load_model(copied)
