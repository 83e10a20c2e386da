"""`cdrl-train` as a user runs it: train, resume, export, sample; and what it says to bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from runs import TINY, write_data
from torch import Tensor

from cdrl_infer.device import fastest_precision
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_train.cli import main


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_data(tmp_path)


def train(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_a_run_ends_in_a_model_that_the_pipeline_opens(data: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = train("--data", data, "--out", str(out), *TINY)
    assert result.exit_code == 0, result.output
    pipe = CDRLPipeline.from_pretrained(out / "model")
    assert pipe.model.labels[0].values == ("0", "1", "2")
    assert len(pipe(num_images=2, class_labels=["1", "2"], seeds=[0, 1]).images) == 2
    assert (out / "samples" / "step-00000005.png").is_file()
    assert pipe.model.training["config"] == json.loads((out / "config.json").read_text())
    card = pipe.model.model_card
    assert card is not None and "20 images" in card
    assert "--data data.npz" in card and str(tmp_path) not in card
    rows = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4, 5]
    again = train("--data", data, "--out", str(out), *TINY)
    assert (again.exit_code, "already holds a run" in again.output) == (2, True)


def test_the_folder_is_all_that_a_resume_needs(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--data", "data.npz", "--init-from", "fashion-mnist", *TINY[-10:]]
    command += ["--set", "warm_start.batch_size=4", "--set", "cooperative.batch_size=4"]
    begun = train(*command)
    assert begun.exit_code == 0, begun.output
    assert "60 of 61 tensors are the model's" in begun.output
    run = tmp_path / "runs" / "data"
    card = (run / "model/README.md").read_text()
    assert "started from | fashion-mnist" in card and "# data" in card
    for file in (run / "model").rglob("*"):
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes()
    (tmp_path / "elsewhere").mkdir()
    for arguments in (["--resume", "auto"], ["--resume"], ["--resume", "--preset", "mnist"]):
        again = train(*command, *arguments)
        if "--preset" in arguments:
            assert (
                again.exit_code == 2
                and "runs/data holds a run whose options differ" in again.output
            )
        else:
            assert again.exit_code == 0 and "resumed at step 5 of 5" in again.output, again.output
    monkeypatch.chdir(tmp_path / "elsewhere")
    longer = train("--resume", "--out", "../runs/data", "--set", "cooperative.steps=3")
    assert longer.exit_code == 0 and "resumed at step 5 of 6" in longer.output, longer.output
    other = train("--resume", "--out", "../runs/data", "--init-from", "coloured-fashion-mnist")
    assert other.exit_code == 2 and "started from fashion-mnist" in other.output


def test_presets_for_trained_models_take_their_networks(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--data", "data.npz", "--preset", "manifold", "--out", "odd"]
    sizes = ["manifold.batch_size=4", "manifold.chains=4", "manifold.chain_steps=1"]
    sizes += ["reconstruction.batch_size=4", "reconstruction.steps=1", "manifold.steps=1"]
    command += [part for text in sizes for part in ("--set", text)]
    alone = train(*command)
    assert alone.exit_code == 2 and "manifold goes on from a trained model: add" in alone.output
    begun = train(*command, "--init-from", "coloured-fashion-mnist", "--grey")
    assert begun.exit_code == 0, begun.output
    again = train(*command, "--resume", "--grey")
    assert again.exit_code == 0 and "resumed at step 2 of 2" in again.output, again.output
    shown = train(*command, "--print-config", "--init-from", "coloured-fashion-mnist")
    assert json.loads(shown.stdout)["initializer"]["backbone"]["widths"] == [48, 96]
    command[3] = "manifold+no-score-matching"
    varied = train(*command, "--print-config", "--init-from", "coloured-fashion-mnist")
    found = json.loads(varied.stdout)
    assert found["initializer"]["backbone"]["widths"] == [48, 96]
    assert found["phases"][1]["objective"]["score_matching"] == 0


def test_what_would_stop_the_model_from_being_written_is_said_before_training(
    data: str, tmp_path: Path
) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "notes.txt").touch()
    result = train("--data", data, "--out", str(tmp_path / "run"), *TINY)
    assert result.exit_code == 2 and "notes.txt" in result.output
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]


def test_automatic_precision_is_the_faster_one_and_is_kept(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_instructions(x: Tensor, *_: object, **__: object) -> None:
        time.sleep(0.002 if x.dtype == torch.bfloat16 else 0.001)

    monkeypatch.setattr("cdrl_infer.device.functional.conv2d", without_instructions)
    assert fastest_precision(torch.device("cpu")) == "float32"
    monkeypatch.undo()
    command = ["--data", data, "--out", str(tmp_path / "run"), *TINY]
    assert "precision    " in train(*command, "--dry-run").output
    assert train(*command, "--set", "precision=auto").exit_code == 0
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["precision"]
    assert kept in ("float32", "bfloat16")
    assert train(*command, "--set", "precision=auto", "--resume", "auto").exit_code == 0


def test_a_model_of_coloured_clothes(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    file = tmp_path / "fashion.npz"
    np.savez(file, train_images=images, train_labels=np.arange(20, dtype=np.uint8) % 10)
    out = tmp_path / "run"
    result = train("--data", f"coloured:{file}", "--out", str(out), *TINY)
    assert result.exit_code == 0, result.output
    pipe = CDRLPipeline.from_pretrained(out / "model")
    assert [a.name for a in pipe.model.labels] == ["garment", "colour", "background"]
    assert pipe.compose("red & ~sneaker", seeds=[1]).images[0].mode == "RGB"
    assert (out / "samples" / "step-00000005.png").is_file()
    card = pipe.model.model_card
    assert card is not None and "--data coloured:fashion.npz" in card
    assert str(tmp_path) not in card and "colour: red, yellow" in card


def test_resume_goes_on_where_a_killed_run_was(data: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train("--data", data, "--out", str(whole), *TINY).exit_code == 0
    assert train("--data", data, "--out", str(cut), *TINY).exit_code == 0
    # As a kill after step 4 leaves it: the state of step 4, and a half-written line of step 5.
    (cut / "checkpoints" / "step-00000005.pt").unlink()
    rows = (cut / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cut / "metrics.jsonl").write_text("".join(rows[:4]) + rows[4][:20])
    result = train("--data", data, "--out", str(cut), "--resume")
    assert result.exit_code == 0, result.output
    assert "resumed at step 4 of 5" in result.output
    for file in ("ebm/model.safetensors", "initializer/model.safetensors"):
        assert (cut / "model" / file).read_bytes() == (whole / "model" / file).read_bytes()
    rows = (cut / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4, 5]


def test_one_command_begins_a_run_and_goes_on_with_it(data: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["--data", data, "--out", str(out), *TINY, "--resume", "auto"]
    begun = train(*command)
    assert begun.exit_code == 0 and "resumed" not in begun.output, begun.output
    whole = (out / "model/ebm/model.safetensors").read_bytes()
    shutil.rmtree(out / "model")
    (out / "checkpoints" / "step-00000005.pt").unlink()
    again = train(*command)
    assert again.exit_code == 0 and "resumed at step 4 of 5" in again.output, again.output
    assert (out / "model/ebm/model.safetensors").read_bytes() == whole


def test_a_run_killed_before_its_first_checkpoint_is_begun_anew(data: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["--data", data, "--out", str(out), *TINY, "--resume", "auto"]
    assert train(*command).exit_code == 0
    whole = (out / "model/ebm/model.safetensors").read_bytes()
    for name in ("model", "samples", "checkpoints"):
        shutil.rmtree(out / name)
    again = train(*command)
    assert again.exit_code == 0 and "resumed" not in again.output, again.output
    assert (out / "model/ebm/model.safetensors").read_bytes() == whole
    rows = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("grad_clip=2", "expected 1.0, got grad_clip=2.0"),
        ("ebm.widths=[16]", "expected [8], got ebm.backbone.widths=[16]"),
        ("ebm.data_variance=0.5", "expected null, got ebm.data_variance=0.5"),
        ("cooperative.ebm_lr=0.5", "expected 0.0001, got cooperative.ebm_lr=0.5"),
        ("cooperative.weight=paper", 'expected "noise", got cooperative.weight="paper"'),
    ],
)
def test_one_command_means_the_same_options(
    data: str, tmp_path: Path, change: str, message: str
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    command = ["--data", data, "--out", str(out), *TINY]
    options = train(*command, "--print-config").output
    (out / "config.json").write_text(options)
    refused = train(*command, "--resume", "auto", "--set", change)
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1), refused.output
    assert f"{out} holds a run whose options differ: {message}; " in refused.output
    assert [path.name for path in out.iterdir()] == ["config.json"]
    assert (out / "config.json").read_text() == options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--preset", "fashion"],
            "unknown preset 'fashion', expected one of celeba64, cifar10, cifar10-compact",
        ),
        (["--set", "warm_start.stepz=3"], "stepz"),
        (["--set", 'ebm={"class": "Transformer"}'], "unknown energy network 'Transformer'"),
        (["--set", "schedule.step_size=-1"], "step_size must lie in"),
        (["--resume"], "nothing to resume"),
        (["--data", "nowhere.npz"], "no data at 'nowhere.npz'"),
        (["--device", "toaster"], "device"),
        (["--set", "sampler.langevin_steps=[1]"], "one integer or 2"),
        (["--set", "log_every=0"], "log_every must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    data: str, tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "run"
    result = train("--data", data, "--out", str(out), *TINY, *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert result.output.startswith("cdrl-train: error: ") and result.output.count("\n") == 1
    assert not out.exists()


def test_options_go_through_a_file_and_back(tmp_path: Path) -> None:
    printed = train(
        "--preset", "cifar10+no-shared-noise", "--set", "ebm.width=96", "--print-config"
    )
    assert printed.exit_code == 0, printed.output
    config = json.loads(printed.output)
    assert (config["name"], config["ebm"]["width"]) == ("cifar10+no-shared-noise", 96)
    file = tmp_path / "mine.json"
    file.write_text(printed.output)
    again = train("--config", str(file), "--print-config")
    assert again.output == printed.output
    changed = train("--config", str(file), "--set", "grad_clip=2", "--print-config")
    assert json.loads(changed.output) == {**config, "grad_clip": 2.0}


def test_a_run_of_a_file_of_options_on_the_presets_data(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the run's folder gets the name in the options
    options = [*TINY, "--set", f"data.source={Path(data).name}", "--set", "data.attributes=[]"]
    options += ["--set", "name=mine"]
    file = tmp_path / "mine.json"
    file.write_text(train("--preset", "mnist", *options, "--print-config").output)
    result = train("--config", str(file), "--track", "none")
    assert result.exit_code == 0, result.output
    pipe = CDRLPipeline.from_pretrained(tmp_path / "runs" / "mine" / "model")
    assert pipe.model.labels == ()  # asked for none
    assert "cdrl-train --config options.json" in str(pipe.model.model_card)
    resumed = train("--out", "runs/mine", "--resume", "--track", "none")
    assert resumed.exit_code == 0 and "resumed at step 5 of 5" in resumed.output


def test_a_dry_run_tells_the_cost_and_leaves_nothing(data: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["--data", data, "--out", str(out), "--device", "cpu", *TINY]
    result = train(*arguments, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "images       1 x 8 x 8, conditional on attributes of 3 values" in result.output
    assert "warm_start   3 steps of 4 images, each " in result.output
    assert " s a step on cpu, by 3 steps with a batch of " in result.output
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "mnist", "--config", "a.json"], "leave one out"),
        (["--config", "nowhere.json"], "nowhere.json: expected options in JSON"),
        (["--config", "pipe"], "pipe: expected options in JSON"),
        (["--config", "deep.json"], "deep.json: expected options in JSON"),
        (["--config", "list.json"], "expected an object"),
        (["--config", "odd.json"], "'name' is missing"),
        (
            ["--resume"],
            "nothing to resume in runs/fashion-mnist: there is no config.json; --out names",
        ),
        (["--preset", "my-images"], "no data: add --data"),
        (["--init-from", "nowhere"], "no model 'nowhere'"),
        (
            ["--preset", "mnist", "--out", "list.json/run"],
            "list.json is not a folder that is writable",
        ),
        (["--resume", "a.json"], "'a.json' is not one of 'yes', 'auto'"),
        (["--preset", "mnist", "--set", "data.source="], "no data: add --data"),
        (["--preset", "cifar10", "--set", "ebm.widht=96"], "did you mean 'width'"),
        (["--preset", "imagenet32-cond"], "train_data_batch_1.npz: it comes from"),
    ],
)
def test_bad_options_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "odd.json").write_text("{}")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    result = train(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert result.output.startswith("cdrl-train: error: ") and result.output.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_images_that_do_not_fit_the_networks_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "odd.npz", train_images=np.zeros((4, 9, 9), np.uint8))
    result = train("--data", str(tmp_path / "odd.npz"), "--out", str(tmp_path / "run"), *TINY)
    assert result.exit_code == 2
    assert "multiples of 2, got 9 and 9" in result.output
    assert not (tmp_path / "run").exists()


def test_a_refused_resume_leaves_the_run_as_it_was(data: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train("--data", data, "--out", str(out), *TINY).exit_code == 0
    resume = ["--data", data, "--out", str(out), "--resume"]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for change, message in (
        ("ebm.widths=[16]", "does not fit"),
        ("cooperative.steps=1", "is that of step 5, the options end the run at step 4; raise"),
    ):
        refused = train(*resume, "--track", "none", "--set", change)
        assert (refused.exit_code, refused.output.count("\n")) == (2, 1), refused.output
        assert message in refused.output
        after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert after == before
    assert train(*resume).exit_code == 0


def test_divergence_exits_with_3(data: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = train(
        "--data", data, "--out", str(out), *TINY, "--set", "cooperative.max_energy_gap=1e-30"
    )
    assert result.exit_code == 3, result.output
    assert "diverged at step 3" in result.output and "step-00000002.pt" in result.output
    assert not (out / "model").exists()


def test_help_needs_no_torch() -> None:
    code = "import sys, cdrl_train.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
