"""The commands as modules, and labels of several attributes on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner
from conftest import make_model
from PIL import Image

from cdrl_infer.cli.sample import main
from cdrl_infer.pipeline import CDRLPipeline


def test_modules_are_programs_too(folder: Path, tmp_path: Path) -> None:
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=100,
        )

    call = ["cdrl_infer", "sample", "--model", str(folder), "-n", "1", "--out"]
    assert run(*call, "a.png").returncode == 0
    assert (tmp_path / "a.png").is_file()
    wrong = run(*call, "a.jpg")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "error: " in wrong.stderr
    listed = run("cdrl_infer", "--help").stdout
    assert all(f"\n  {name} " in listed for name in ("hub", "sample", "score"))
    assert run("cdrl_infer").stdout == listed
    assert "Usage: python -m cdrl_train" in run("cdrl_train", "--help").stdout


def test_labels_of_several_attributes(tmp_path: Path) -> None:
    CDRLPipeline(make_model(("cat", "dog"), ("day", "night"))).save_pretrained(tmp_path / "two")
    call = ["--model", str(tmp_path / "two"), "--out", str(tmp_path / "a.png"), "-n", "2"]
    for text, expected in (
        ("DOG, night", ["dog", "night"]),
        ("dog,none", ["dog", None]),
        ("None", [None, None]),
    ):
        assert CliRunner().invoke(main, [*call, "--label", text]).exit_code == 0
        with Image.open(tmp_path / "a.png") as image:
            assert json.loads(image.text["labels"]) == [expected] * 2
    result = CliRunner().invoke(main, [*call, "--label", "dog"])
    assert result.exit_code == 2
    order = "this model has 2 attributes: expected --label 'attribute 0,attribute 1', such as "
    assert f"{order}--label 'cat,day', with none for one that is open, got 'dog'" in result.output
