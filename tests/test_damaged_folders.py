"""Every way a model folder can be wrong."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cdrl_infer.errors import CDRLError, CheckpointError, ConfigError
from cdrl_infer.storage.folder import find_model, load_model

ROOT, INDEX = "config.json", "model_index.json"
EBM, WEIGHTS = "ebm/config.json", "ebm/model.safetensors"


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The saved tiny model, free to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def test_sizes_are_compared_before_memory_is_taken(copied: Path) -> None:
    edit(copied / "ebm/config.json", lambda c: c["backbone"].update(embedding_dim=300_000))
    with pytest.raises(CheckpointError, match=r"expected backbone.* of shape .*300000.*found .*16"):
        load_model(copied)  # 360 GB, had it been allocated


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (ROOT, {"colour": 1}, "unknown key 'colour', expected format_version"),
        (ROOT, {"sampling": 1}, "did you mean 'sampler'"),
        (ROOT, {"format_version": 1}, r"expected format version 3, found 1; .*export the model ag"),
        (ROOT, {"format_version": 2}, r"version 3, found 2; .*cdrl_infer.storage.upgrade"),
        (ROOT, {"format_version": 4}, r"version 3, found 4; update cdrl .*: pip"),
        (
            ROOT,
            {"format_version": 0},
            "format_version must be at least 1, found 0; someone changed",
        ),
        (ROOT, {"format_version": "1"}, "format_version, found none"),
        (ROOT, {"library": "diffusers"}, 'expected "library": "cdrl"'),
        (ROOT, {"labels": "Bag"}, "'labels' must be a list"),
        (ROOT, {"labels": []}, r"num_classes is \[3\], but 'labels' has \[\]"),
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
        (INDEX, {"ebm": ["cdrl", "Energy"]}, "network 'Energy', expected one of InnerP.*did you m"),
        (
            INDEX,
            {"ebm": ["cdrl", "Mixer"]},
            "'Mixer', expected .*register your own energy network",
        ),
        (INDEX, {"ebm": ["cdrl", ["MLPEnergy"]]}, "unknown energy network"),
        (INDEX, {"ebm": None}, r"'ebm' must be \[\"cdrl\", a class\], found None"),
        (INDEX, {"ebm": ["os", "system"]}, r"'ebm' must be \[\"cdrl\", a class\], found \['os'"),
        (INDEX, {"ebm": "MLPEnergy"}, "found 'MLPEnergy'"),
        (INDEX, {"vae": ["cdrl", "MLPEnergy"]}, "unknown key 'vae', expected _class_name, ebm"),
        (INDEX, {"_class_name": "StableDiffusionPipeline"}, "expected '_class_name' CDRLPipeline"),
        (EBM, {"class": "MLPEnergy"}, "unknown key 'class', expected backbone"),
        (EBM, {"data_variance": 10**400}, "must be a finite number, found 1000"),
        (EBM, {"backbone": {"widths": [10**9]}}, "are absurd, expected those of the stored"),
        (EBM, {"backbone": {"widths": [10**40]}}, "sizes of the network are absurd"),
        (EBM, {"backbone": {"num_blocks": 10**12}}, "sizes of the network are absurd"),
        (
            EBM,
            {"backbone": {"widths": [1] * 10_000, "num_blocks": 10**6}},
            "sizes of the network are absurd",
        ),
        (EBM, {"backbone": {"num_classes": [10**9] * 10_000}}, "sizes of the network are absurd"),
        (ROOT, {"image": {"channels": 1, "height": 16_384, "width": 28}}, "at most 65,536 pixels"),
        (ROOT, {"image": {"channels": 1, "height": 10**6, "width": 10**6}}, "at most 4,194,304"),
        (
            ROOT,
            {"sampler": {"langevin_steps": 5_000}},
            "at most 10,000 Langevin steps in all .*got 15,000",
        ),
        (ROOT, {"labels": [{"name": "class", "values": ["a", "b\n", "c"]}]}, "a printable name"),
        (
            ROOT,
            {"labels": [{"name": "class", "values": ["a", "b" * 201, "c"]}]},
            "at most 200 char",
        ),
        (EBM, {"backbone": "PatchUNet"}, "'backbone': expected an object .*found 'PatchUNet'"),
        (EBM, {"backbone": {"class": "UNett"}}, "unknown backbone 'UNett', .*did you mean 'UNet'"),
        (EBM, {"backbone": {"width": 3}}, "unknown key 'width', expected .*did you mean 'widths'"),
        (
            EBM,
            {"backbone": {"widths": 8}},
            "'widths' must be a list, each item an integer, found 8",
        ),
        (EBM, {"backbone": {"widths": []}}, "sizes must be positive"),
        (EBM, {"data_variance": "1"}, "must be a finite number, found '1'"),
        (EBM, {"data_variance": -1.0}, "data_variance must be positive, got -1"),
        (
            EBM,
            {"backbone": {"widths": [16]}},
            r"expected backbone.* of shape .*; are these the weights",
        ),
        (EBM, {"backbone": {"num_blocks": 2}}, "lacks tensors"),
        (EBM, {"backbone": {"widths": [8, 8]}}, "image height|lacks tensors"),
    ],
)
def test_wrong_configs_are_told_in_one_line(
    copied: Path, file: str, change: dict[str, Any], message: str
) -> None:
    def update(config: dict[str, Any], change: dict[str, Any]) -> None:
        inner = change.get("backbone")
        config.update(
            {"backbone": config["backbone"] | inner} if isinstance(inner, dict) else change
        )

    edit(copied / file, lambda config: update(config, change))
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
    tensors["backbone.stem.weight"][0, 0, 0, 0] = float("nan")


def _infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors["backbone.stem.bias"][-1] = float("inf")


def _missing(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["backbone.stem.bias"]


def _unexpected(tensors: dict[str, torch.Tensor]) -> None:
    tensors["backbone.stem.gain"] = torch.ones(1)


def _transposed(tensors: dict[str, torch.Tensor]) -> None:
    tensors["backbone.embed1.weight"] = tensors["backbone.embed1.weight"].T.contiguous()


def _integers(tensors: dict[str, torch.Tensor]) -> None:
    tensors["backbone.stem.bias"] = tensors["backbone.stem.bias"].to(torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_nan, "backbone.stem.weight holds NaN or infinity"),
        (_infinite, "backbone.stem.bias holds NaN or infinity"),
        (_missing, "lacks tensors backbone.stem.bias"),
        (_unexpected, "has the unexpected tensors backbone.stem.gain"),
        (_transposed, r"backbone.embed1.weight of shape \(16, 64\).*found \(64, 16\)"),
        (_integers, "backbone.stem.bias of shape .* in F16, BF16, F32, found .* in I32"),
    ],
)
def test_wrong_tensors(copied: Path, change: Callable[[Any], None], message: str) -> None:
    tensors = load_file(copied / WEIGHTS)
    change(tensors)
    save_file(tensors, copied / WEIGHTS)
    with pytest.raises(CheckpointError, match=message):
        load_model(copied)


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
    with pytest.raises(CheckpointError, match="expected format version 3, found 9") as caught:
        load_model(copied)
    assert str(caught.value).endswith(f"pip install -U '{needed}")


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
