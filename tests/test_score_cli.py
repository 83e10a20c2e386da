"""`cdrl-score`: its table, and what it says to bad input."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import CLASSES, make_model
from PIL import Image

from cdrl_infer import __version__
from cdrl_infer.cli.score import main
from cdrl_infer.errors import NumericalError
from cdrl_infer.networks.heads import InnerProductEnergy
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring import SCORES
from cdrl_infer.storage.folder import STATISTICS, save_model

pytest_plugins = ["score_fixtures"]
COLUMNS = ["file", "score", "p_value", "anomalous"]


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def values(rows: list[dict[str, str]]) -> list[float]:
    return [float(row["score"]) for row in rows]


def listed() -> list[str]:
    return sorted(str(p) for p in Path().rglob("*") if p.is_file())


def test_the_table_is_the_pipelines(
    score: Any, scorer: CDRLPipeline, pictures: list[Image.Image]
) -> None:
    before = listed()
    expected = scorer.score(pictures, threshold_fpr=0.05)
    result = score("images", "--threshold-fpr", "0.05", "--batch-size", "3")
    assert result.exit_code == 0, result.output
    rows = table(result.stdout)
    assert list(rows[0]) == COLUMNS
    assert [row["file"] for row in rows] == [str(Path("images", f"{k}.png")) for k in range(7)]
    assert values(rows) == pytest.approx(expected.scores.tolist(), rel=1e-4)
    assert [float(row["p_value"]) for row in rows] == expected.p_values.tolist()
    assert [row["anomalous"] for row in rows] == [
        json.dumps(odd) for odd in expected.anomalous.tolist()
    ]
    assert rows[-1]["anomalous"] == "true" and rows[-1]["p_value"] == str(1 / 41)
    count = int(expected.anomalous.sum())
    assert 1 <= count < 7
    assert result.stderr == (
        "cdrl-score: images: 7 images\n"
        f"{count} of 7 images are anomalous: combined above {expected.threshold:.6g}\n"
    )
    assert listed() == before


def test_csv_and_json_say_the_same(score: Any, scorer: CDRLPipeline) -> None:
    Path("old.csv").write_text("old")
    arguments = ("images", "--score", "energy", "--threshold-fpr", "0.2")
    written = score(*arguments, "--out", "old.csv")
    assert (written.exit_code, written.stdout) == (0, "")
    assert score(*arguments, "--out", "new.JSON").exit_code == 0
    shown = json.loads(score(*arguments, "--json").stdout)
    assert shown == json.loads(Path("new.JSON").read_text())
    threshold = scorer.model.statistics.threshold("energy", 0.2)
    facts = {
        "model": "tiny",
        "version": f"cdrl {__version__}",
        "score": "energy",
        "level": None,
        "seed": 4,
        "threshold_fpr": 0.2,
        "threshold": threshold,
    }
    assert facts.items() <= shown.items()
    rows = table(Path("old.csv").read_text())
    assert len(rows) == 7
    for row, image in zip(rows, shown["images"], strict=True):
        assert list(image) == COLUMNS
        assert row["file"] == image["file"]
        assert float(row["score"]) == image["score"]
        assert float(row["p_value"]) == image["p_value"]
        assert json.loads(row["anomalous"]) is image["anomalous"]


def test_every_score_and_what_is_not_calibrated(
    score: Any, scorer: CDRLPipeline, pictures: list[Image.Image], folder: Path
) -> None:
    for name in SCORES:
        rows = table(score("images", "--score", name).stdout)
        expected = scorer.score(pictures, name)
        assert values(rows) == pytest.approx(expected.scores.tolist(), rel=1e-4)
        assert {row["anomalous"] for row in rows} == {""}
    level = score("images", "--score", "energy", "--level", "2")
    expected = scorer.score(pictures, "energy", level=2)
    assert values(table(level.stdout)) == pytest.approx(expected.scores.tolist(), rel=1e-4)
    p_values = [float(row["p_value"]) for row in table(level.stdout)]
    assert p_values == pytest.approx(expected.p_values.tolist())
    seed = score("images", "--score", "energy", "--seed", "5")
    expected = scorer.score(pictures, "energy", seed=5)
    assert values(table(seed.stdout)) == pytest.approx(expected.scores.tolist(), rel=1e-4)
    assert {row["p_value"] for row in table(seed.stdout)} == {""}
    assert "no p_value: 'tiny' is calibrated for seed 4 alone" in seed.stderr
    bare = score("images", "--score", "energy", "--model", str(folder))
    assert (bare.exit_code, "cdrl-eval --calibrate" in bare.stderr) == (0, True)
    assert json.loads(score("images", "--score", "energy", "--seed", "5", "--json").stdout)[
        "images"
    ][0] | {"score": 0} == {"file": "images/0.png", "score": 0, "p_value": None, "anomalous": None}


def test_a_score_of_a_users_module(score: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SCORES, "_found", dict(SCORES._found))
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("my_scores.py").write_text(
        "from cdrl_infer.scoring import SCORES\n"
        "from cdrl_infer.scoring.scores import Score\n"
        "class Error(Score):\n"
        "    def __call__(self, features, level=1, fit=None):\n"
        "        return features.log_score_errors[:, level - 1]\n"
        "SCORES.register('denoising', Error())\n"
    )
    result = score("images", "--import", "my_scores", "--score", "denoising", "--plot", "p.png")
    assert result.exit_code == 0, result.output
    assert all(0 < float(row["p_value"]) <= 1 for row in table(result.stdout))
    assert "--import my_scroes" in score("images", "--import", "my_scroes").stderr


def test_unreadable_files_are_named_and_the_others_scored(score: Any) -> None:
    good = table(score("images").stdout)
    whole = Path("images/0.png").read_bytes()
    Path("images/3b.png").write_bytes(whole[:-30])  # its header is whole
    Path("images/4b.png").write_text("no picture")
    Path("empty").mkdir()
    result = score("images", "missing.png", "none*.png", "empty", "--out", "scores.csv")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    told = "cdrl-score: images: 9 images"
    assert all(line.startswith("cdrl-score: skipped: ") for line in lines if line != told)
    for name in ("images/3b.png", "images/4b.png", "missing.png", "none*.png", "empty: no images"):
        assert sum(f" {name}" in line for line in lines) == 1, name
    assert len(lines) == 6 and told in lines
    kept = table(Path("scores.csv").read_text())
    assert [row["file"] for row in kept] == [row["file"] for row in good]
    assert values(kept) == pytest.approx(values(good), rel=1e-4)


@pytest.mark.parametrize("size", [-30, 8])
def test_nothing_readable_is_no_empty_table(score: Any, size: int) -> None:
    Path("bad.png").write_bytes(Path("images/0.png").read_bytes()[:size])
    before = listed()
    result = score("bad.png", "--out", "a.csv", "--plot", "a.png", "--heatmap", "maps")
    assert (result.exit_code, result.stdout) == (1, "")
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("cdrl-score: skipped: bad.png cannot be read as an image: ")
    assert result.stderr.splitlines()[-1] == (
        "cdrl-score: error: none of the files could be read, nothing is written"
    )
    assert listed() == before


def test_a_file_name_is_no_formula_for_a_spreadsheet(score: Any) -> None:
    shutil.copy("images/0.png", "=cmd.png")
    (row,) = table(score("=cmd.png").stdout)
    assert row["file"] == "./=cmd.png"


def test_a_failure_leaves_what_was_there(score: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("scores.csv").write_text("old")
    before, work, calls = listed(), InnerProductEnergy.forward, []
    for error, code, message in (
        (NumericalError("not finite"), 3, "error: images/4.png … images/6.png: not finite"),
        (KeyboardInterrupt(), 130, "cdrl-score: interrupted"),
    ):
        calls.clear()

        def fail(self: InnerProductEnergy, y: Any, *rest: Any, error: BaseException = error) -> Any:
            calls.append(len(y))
            if len(y) == 3:  # the second batch
                raise error
            return work(self, y, *rest)

        monkeypatch.setattr(InnerProductEnergy, "forward", fail)
        result = score(
            *("images", "--batch-size", "4", "--out", "scores.csv"),
            *("--plot", "plot.png", "--heatmap", "maps"),
        )
        assert (result.exit_code, result.stdout, calls.count(3)) == (code, "", 1)
        assert message in result.stderr
        assert listed() == before
        assert Path("scores.csv").read_text() == "old"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'IMAGES...'"),
        (["empty"], "expected at least one image, found none in empty"),
        (["images", "--score", "enregy"], "--score: unknown score 'enregy'"),
        (["images", "--level", "2"], "'combined' takes no level"),
        (["images", "--score", "energy", "--level", "4"], "level must lie in 1 … 3, got 4"),
        (["images", "--seed", "-1"], "in 0 … 2**32 - 1, got -1"),
        (["images", "--threshold-fpr", "1"], "less than 1, got 1"),
        (["images", "--threshold-fpr", "nan"], "must be a finite number"),
        (["images", "--threshold-fpr", "0.1", "--seed", "5"], "leave the seed out"),
        (["images", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["images", "--device", "tpu9"], "device 'tpu9' cannot be used here"),
        (["images", "--model", "nowhere"], "no model 'nowhere'"),
        (["images", "--revision", "v1"], "only repositories on the Hub have revisions"),
        (["images", "--variant", "fp16"], "model.fp16.safetensors: expected the network's"),
        (["images", "--out", "a.txt"], "expected a .csv or .json file, got 'a.txt'"),
        (["images", "--out", ""], "expected the name of a .csv or .json file, got ''"),
        (["images", "--plot", "a.jpg"], "expected a .png file, got 'a.jpg'"),
        (["images", "--heatmap", ""], "expected the name of a folder, got ''"),
        (["images", "--heatmap", "images/0.png"], "expected a folder, found another kind"),
        (["images", "--heatmap", "no/maps"], "cannot write to 'no/maps'"),
        (["images", "--out", "no/a.csv"], "cannot write to 'no/a.csv'"),
        (["images", "--out", "a.csv", "--json"], "--json writes to stdout"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    score: Any, arguments: list[str], message: str
) -> None:
    Path("empty").mkdir()
    before = listed()
    result = score(*arguments, *[] if "--plot" in arguments else ["--plot", "p.png"])
    assert (result.exit_code, result.stdout) == (2, "")
    errors = [line for line in result.stderr.splitlines() if "skipped" not in line]
    assert len(errors) == 1 and errors[0].startswith("cdrl-score: error: ")
    assert message in errors[0]
    assert listed() == before and not Path("maps").exists()


def test_scores_without_a_calibration_are_refused(score: Any, folder: Path) -> None:
    for arguments in ([], ["--score", "energy", "--threshold-fpr", "0.05"]):
        result = score("images", "--model", str(folder), *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "cdrl-eval --calibrate" in result.stderr


def test_a_calibration_of_other_weights_is_refused(
    score: Any, calibrated: Path, tmp_path: Path
) -> None:
    save_model(make_model(CLASSES, seed=1), tmp_path / "other")
    shutil.copy(calibrated / STATISTICS, tmp_path / "other")
    before = listed()
    for arguments in ([], ["--score", "energy"], ["--out", "a.csv", "--plot", "p.png"]):
        result = score("images", "--model", str(tmp_path / "other"), *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.count("\n") == 1
        assert "'other': the reference statistics belong to other weights" in result.stderr
        assert "calibrate again: run `cdrl-eval --calibrate" in result.stderr
    assert listed() == before


def test_help_and_version_do_not_import_torch() -> None:
    code = """
import sys
from cdrl_infer.cli.score import main
try:
    main(["--help"])
except SystemExit:
    print("LOADED", "torch" in sys.modules, "numpy" in sys.modules, "PIL" in sys.modules)
"""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "LOADED False False False" in done.stdout
    for option in ("--score", "--level", "--seed", "--threshold-fpr", "--plot", "--heatmap"):
        assert option in done.stdout
    version = CliRunner().invoke(main, ["--version"])
    assert version.output == f"cdrl-score, version {__version__}\n"
