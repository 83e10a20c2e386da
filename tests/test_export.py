"""`cdrl-hub export`: from a training run to a model folder, without its data."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import make_model, make_mpdr
from huggingface_hub import ModelCard
from PIL import Image
from runs import RESIDUAL, TINY, energy, initializer, write_data

from cdrl_infer.cli.hub import main as hub
from cdrl_infer.model import CDRLModel
from cdrl_infer.storage.folder import load_model
from cdrl_infer.untrusted import MAX_PICTURE
from cdrl_train.card import render
from cdrl_train.cli import main as train
from cdrl_train.engine import checkpoints
from cdrl_train.export import DataRecord, record_data
from cdrl_train.presets import preset

ROOT = Path(__file__).parents[1]
ATTRIBUTES = (("Shirt", "Bag"), ("red", "green", "a|b"))


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry points that pyproject.toml declares, as an installer would write them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'\[project\.entry-points\."(.+)"\]\n((?:\w.*\n)+)', text)
    assert found is not None
    info = tmp_path / "site" / "cdrl-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cdrl\nVersion: 1\n")
    lines = found[2].replace('"', "")
    (info / "entry_points.txt").write_text(f"[{found[1]}]\n{lines}")
    monkeypatch.syspath_prepend(info.parent)


def export(*arguments: object) -> Result:
    return CliRunner().invoke(hub, ["export", *map(str, arguments)])


def state(model: CDRLModel, step: int) -> dict[str, Any]:
    """What a training state has of a model's averages."""
    averages = {
        role: {
            "n_averaged": torch.tensor(step),
            **{f"module.{k}": v for k, v in getattr(model, role).state_dict().items()},
        }
        for role in ("ebm", "initializer")
    }
    return {"step": step, "images_seen": 32 * step, "seconds": 60.0 * step, "averages": averages}


@pytest.fixture
def models() -> dict[int, CDRLModel]:
    return {step: make_model(*ATTRIBUTES, seed=step) for step in (200, 9_000)}


@pytest.fixture
def run(models: dict[int, CDRLModel], tmp_path: Path) -> Path:
    """An unfinished run of two checkpoints, on images with two attributes."""
    folder = tmp_path / "run"
    for step, model in models.items():
        checkpoints.save(folder / "checkpoints", step, state(model, step), keep=2)
    config = preset("fashion-mnist").to_dict()
    config |= {"ebm": energy(), "initializer": initializer()}
    (folder / "config.json").write_text(json.dumps(config))
    record_data(folder, DataRecord("clothes.npz", models[200].image, models[200].labels, "/x/y"))
    return folder


@pytest.mark.parametrize("step", [None, 200])
def test_a_checkpoint_becomes_a_model(
    run: Path, models: dict[int, CDRLModel], tmp_path: Path, step: int | None
) -> None:
    done = export(run, tmp_path / "out", *([] if step is None else ["--step", step]))
    assert (done.exit_code, done.output) == (0, f"{tmp_path / 'out'}\n"), done.output
    step = step or 9_000
    found, expected = load_model(tmp_path / "out"), models[step]
    for role in ("ebm", "initializer"):
        ours, theirs = getattr(found, role), getattr(expected, role).state_dict()
        assert ours.state_dict().keys() == theirs.keys()
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs[name].half().float()), name  # as the preset says
    assert found.labels == expected.labels and found.image == expected.image
    assert found.training["steps"] == step and found.training["images"] == 32 * step
    assert found.sampler == preset("fashion-mnist").sampler
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict()["library_name"] == "cdrl"
    assert "arxiv.org/abs/2309.05153" in card.text and "--data clothes.npz" in card.text
    assert f"after {step:,} of these " in card.text
    assert "green, a\\|b |" in card.text


def test_options(run: Path, models: dict[int, CDRLModel], tmp_path: Path) -> None:
    made = export(
        *(run, tmp_path / "out", "--dtype", "float32", "--json"),
        *("--license", "mit", "--dataset", "fashion_mnist"),
    )
    facts = json.loads(made.output)
    assert facts["step"] == 9_000 and facts["folder"] == str(tmp_path / "out")
    assert facts["labels"] == {"attribute 0": 2, "attribute 1": 3}
    data = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert (data["license"], data["datasets"]) == ("mit", ["fashion_mnist"])
    assert export(run, tmp_path / "out", "--variant", "bf16").exit_code == 0
    name, weight = next(iter(models[9_000].ebm.state_dict().items()))
    for variant, dtype in ((None, torch.float32), ("bf16", torch.bfloat16)):
        stored = load_model(tmp_path / "out", variant=variant).ebm.state_dict()[name]
        assert torch.equal(stored, weight.to(dtype).float())


@pytest.mark.parametrize(
    ("name", "named", "paper"),
    [
        ("fashion-mnist", "A CDRL model, an energy-based model over 3 noise levels", "2309.05153"),
        ("mpdr-mnist", "An MPDR model, an energy-based model without noise levels", "2310.18677"),
        ("snl-2d", "An SNL model, an energy-based model", "2503.07021"),
        ("drl", "A DRL model, an energy-based model over 3 noise levels", "2012.08125"),
    ],
)
def test_the_card_says_the_method(name: str, named: str, paper: str) -> None:
    model = make_mpdr() if name == "mpdr-mnist" else make_model(seed=1)
    model = dataclasses.replace(model, training={"steps": 1, "images": 2, "hours": 0.1})
    card = render(model, preset(name), data="x.npz")
    assert f"\n{named}" in card and f"arxiv.org/abs/{paper}" in card
    assert ("without noise levels" in card) == (name == "mpdr-mnist")


@pytest.mark.parametrize("large", [False, True])
def test_the_preview_of_the_step_is_the_card_s_picture(
    run: Path, tmp_path: Path, large: bool
) -> None:
    preview = run / "samples" / "step-00009000.png"
    preview.parent.mkdir()
    Image.new("L", (9, 9)).save(preview)
    if large:  # more than a model folder may hold
        preview.write_bytes(preview.read_bytes() + bytes(MAX_PICTURE))
    assert export(run, tmp_path / "out").exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "samples.png").is_file() is not large
    assert ("![Samples](samples.png)" in card) is not large
    load_model(tmp_path / "out")


def no_config(run: Path) -> None:
    (run / "config.json").unlink()


def no_data(run: Path) -> None:
    (run / "data.json").unlink()


def other_key(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "colour": 1}))


def other_widths(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["ebm"]["backbone"]["widths"] = [16]
    (run / "config.json").write_text(json.dumps(config))


def other_labels(run: Path) -> None:
    data = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps({**data, "labels": "Bag"}))


def no_checkpoints(run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        path.rename(path.with_name("step-best.pt"))


def foreign(run: Path) -> None:
    (run / "checkpoints" / "manifest.json").unlink()
    torch.save({"step": 9_000}, run / "checkpoints" / "step-00009000.pt")


def damaged(run: Path) -> None:
    (run / "checkpoints" / "step-00009000.pt").write_bytes(b"PK")


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (no_config, [], "expected the folder of a training run, found no config.json"),
        (no_data, [], "expected data.json, .* `cdrl-train --resume` writes it"),
        (other_key, [], "config.json: config: unknown key 'colour'"),
        (other_labels, [], "data.json: 'labels' must be a list, found 'Bag'"),
        (other_widths, [], "step-00009000.pt: it does not fit this run's options"),
        (no_checkpoints, [], "expected a checkpoint, found none yet"),
        (foreign, [], r"step-00009000.pt is not a training state of this package"),
        (damaged, [], "step-00009000.pt is damaged"),
        (None, ["--step", "9001"], "no checkpoint of step 9001; there are 200, 9000"),
        (None, ["--dtype", "float32", "--variant", "fp16"], "are stored in torch.float16, got"),
        (None, ["--variant", "fp8"], "'fp8' is not one of 'fp16', 'bf16'"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    run: Path,
    tmp_path: Path,
    change: Callable[[Path], None] | None,
    arguments: list[str],
    message: str,
) -> None:
    if change:
        change(run)
    done = export(run, tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert re.search(message, done.output), done.output
    assert done.output.count("\n") == 1 and done.output.startswith("cdrl-hub: error: ")
    assert not (tmp_path / "out").exists()


def test_other_folders_are_kept(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    no_config(run)  # the target is looked at first
    done = export(run, tmp_path / "out")
    assert done.exit_code == 2 and "not a CDRL model folder" in done.output


@pytest.mark.parametrize("ebm", [energy(), RESIDUAL])
def test_it_is_what_the_end_of_training_writes(tmp_path: Path, ebm: dict[str, Any]) -> None:
    """To the bit, and the data need no longer be there."""
    run = tmp_path / "run"
    arguments = ["--data", write_data(tmp_path), "--out", str(run), *TINY]
    arguments += ["--set", f"ebm={json.dumps(ebm)}"]
    arguments += ["--set", f"spectral_norm={json.dumps(ebm is RESIDUAL)}"]
    done = CliRunner().invoke(train, arguments)
    assert done.exit_code == 0, done.output
    (tmp_path / "data.npz").unlink()
    assert export(run, tmp_path / "out").exit_code == 0
    written = [p.relative_to(run / "model") for p in (run / "model").rglob("*.*")]
    assert {"README.md", "samples.png", "config.json"} <= {p.name for p in written}
    for name in written:
        assert (tmp_path / "out" / name).read_bytes() == (run / "model" / name).read_bytes(), name
    assert export(run, tmp_path / "before", "--step", 4).exit_code == 0
    name = "ebm/model.safetensors"
    assert (tmp_path / "before" / name).read_bytes() != (run / "model" / name).read_bytes()
