"""`cdrl-eval`: calibrating a model folder, extractors of the user's, help."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file

from cdrl_infer.cli.score import main as score
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring.reference import STATISTICS
from cdrl_infer.storage.folder import load_model
from cdrl_train.calibrate import choose
from cdrl_train.cli_eval import main
from cdrl_train.evaluation.registry import EXTRACTORS


@pytest.fixture
def model(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    path = tmp_path / "clothes.npz"
    np.savez(path, train_images=images, test_images=images[:40] // 2)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_calibrate(model: Path, data: Path) -> None:
    before = names(model)
    result = run(
        "--model", model, "--data", data, "--calibrate", "-n", 50, "--seed", 5, "--split", "train"
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{model / STATISTICS}: 50 images of clothes.npz, train, seed 5\n"
    assert names(model) == before | {STATISTICS}
    pipe = CDRLPipeline.from_pretrained(model)
    found = pipe.model.statistics
    images = torch.from_numpy(np.load(data)["train_images"])[:, None]
    pipe.calibrate(choose(images, 50, 5), data="clothes.npz, train", seed=5)
    expected = pipe.model.statistics
    assert found is not None and expected is not None
    assert (found.data, found.count, found.seed) == ("clothes.npz, train", 50, 5)
    for name, tensor in expected.tensors().items():
        torch.testing.assert_close(found.tensors()[name], tensor, rtol=1e-4, atol=1e-4)
    out = pipe.score(images, threshold_fpr=0.2)
    assert out.seed == 5 and out.p_values is not None and out.anomalous is not None

    result = run("--model", model, "--data", data, "--calibrate", "--score", "typicality")
    assert result.exit_code == 0 and result.stdout.endswith("its score is typicality\n")
    assert CDRLPipeline.from_pretrained(model).score(images).score == "typicality"
    wrong = run("--model", model, "--data", data, "--calibrate", "--score", "oddness")
    assert wrong.exit_code == 2 and "score must be one of combined" in wrong.output

    result = run("--model", model, "--data", data, "--calibrate")
    assert result.exit_code == 0, result.output
    assert f"{STATISTICS}: 40 images of clothes.npz, test, seed 0" in result.stdout.replace(
        "\n", ""
    )
    again = load_model(model).statistics
    assert again is not None and again.count == 40


def test_a_folder_of_pictures(model: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for k, pixels in enumerate(np.random.default_rng(1).integers(0, 256, (36, 8, 8), np.uint8)):
        Image.fromarray(pixels).save(pictures / f"{k}.png")
    result = run("--model", model, "--data", pictures, "--calibrate", "--variant", "fp16")
    assert result.exit_code == 2 and "expected the network's weights" in result.stderr
    assert run("--model", model, "--data", pictures, "--calibrate").exit_code == 0
    found = load_model(model).statistics
    assert found is not None and (found.data, found.count) == ("pictures", 36)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data DATA --calibrate", "name it, --model FOLDER"),
        (
            "--model MODEL --data DATA --calibrate --repeats 2",
            "measures nothing: leave --repeats out",
        ),
        ("--model MODEL --calibrate", "Missing option '--data'"),
        ("--model nowhere --data DATA --calibrate", "nowhere: expected a model folder, found none"),
        ("--model MODEL --data nowhere --calibrate", "no data at 'nowhere'"),
        (
            "--model MODEL --data DATA --calibrate -n 41",
            "expected at most 40 images, all there are",
        ),
        ("--model MODEL --data DATA --calibrate -n 0", "-n must be at least 1, got 0"),
        ("--model MODEL --data DATA --calibrate -n 20", "needs at least 36 images, got 20"),
        ("--model MODEL --data DATA --calibrate --seed -1", "a seed must be an integer in 0"),
        ("--model MODEL --data DATA --calibrate --batch-size 0", "--batch-size must be at least 1"),
        ("--model MODEL --data DATA --calibrate --split other", "'other' is not one of"),
        (
            "--model MODEL --data DATA --calibrate --device toaster",
            "device 'toaster' cannot be used",
        ),
        ("--model MODEL --data LARGE --calibrate", "expected images of 1 channels, 8 x 8"),
        ("--model MODEL --data DATA --metrics ood --outside \x1b=DATA", "must be NAME=DATA"),
    ],
)
def test_bad_input(
    arguments: str,
    message: str,
    model: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    large = tmp_path / "large.npz"
    np.savez(large, test_images=np.zeros((60, 10, 10), np.uint8))
    for word, path in (("MODEL", model), ("DATA", data), ("LARGE", large)):
        arguments = arguments.replace(word, str(path))
    before = names(model)
    result = run(*arguments.split())
    assert result.exit_code == 2 and message in result.stderr, result.stderr
    assert result.stderr.startswith("cdrl-eval: error: ") and result.stderr.count("\n") == 1
    assert names(model) == before


def test_names_that_cannot_be_printed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = ("\x1b[2J" + 150 * "$x$")[:240]
    odd = tmp_path / name
    shutil.copytree(model, odd)
    data = tmp_path / os.fsdecode(name.encode() + b"\xff.npz")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    np.savez(data, test_images=images)
    result = run("--model", odd, "--data", data, "--calibrate")
    assert result.exit_code == 0, result.output
    common = ("--model", odd, "--data", data, "--metrics", "ood", "-n", 30, "--score", "energy")
    result = run(*common, "--outside", f"a={data}", "--out", tmp_path / "a.json", "--update-card")
    assert result.exit_code == 0 and "\x1b" not in result.output + (odd / "README.md").read_text()
    assert json.loads((tmp_path / "a.json").read_text())["model"]["name"].startswith("?[2J$x$")
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(score, ["--model", name, "a.png", "--plot", "b.png"])
    assert result.exit_code == 0 and "\x1b" not in result.output, result.output


def test_what_fails_leaves_the_old_statistics(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--model", model, "--data", data, "--calibrate").exit_code == 0
    before = {p: p.read_bytes() for p in model.rglob("*") if p.is_file()}
    write = Path.write_bytes

    def full_disk(self: Path, content: bytes) -> int:
        write(self, content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    result = run("--model", model, "--data", data, "--calibrate", "--seed", 1)
    assert result.exit_code == 5
    assert f"cannot write {STATISTICS}" in result.stderr.replace(f"{model}/", "")
    assert "No space left" in result.stderr
    assert {p: p.read_bytes() for p in model.rglob("*") if p.is_file()} == before


def test_a_model_that_diverged(model: Path, data: Path) -> None:
    file = model / "initializer" / "model.safetensors"
    tensors = load_file(file)
    tensors["backbone.stem.bias"].fill_(3e38)
    save_file(tensors, file)
    result = run("--model", model, "--data", data, "--calibrate")
    assert result.exit_code == 3 and "not finite" in result.stderr
    assert STATISTICS not in names(model)


def test_an_extractor_of_a_users_module(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EXTRACTORS, "_found", dict(EXTRACTORS._found))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_extractor.py").write_text(
        "from cdrl_train.evaluation.extractors import EXTRACTORS, Extractor\n"
        "class Pixels(Extractor):\n"
        "    name, title, convention, feature_dim = 'pixels', 'pixels', 'none', 3 * 64\n"
        "    load = classmethod(lambda cls, weights, device: cls(None, 'd', device))\n"
        "    def rows(self, images):\n"
        "        return images.flatten(1).float()\n"
        "EXTRACTORS.register('pixels', Pixels)\n"
    )
    result = run(
        *("--model", model, "--data", data, "-n", 20, "--cache", tmp_path / "cache"),
        *("--metrics", "fid", "--extractor", "pixels", "--import", "my_extractor"),
    )
    assert result.exit_code == 0 and "Fréchet distance" in result.stdout, result.output


def test_help_says_what_is_written() -> None:
    text = run("--help").stdout
    assert "statistics.safetensors" in text and "--calibrate" in text
    assert run("--version").stdout.startswith("cdrl-eval")
