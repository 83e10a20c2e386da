"""The code of docs/extending.md, as it stands there: five additions from outside the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cdrl_infer.scoring import SCORES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r'```\w+ title="(\S+)"\n(.*?)```', PAGE, re.DOTALL))
COMMANDS = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)


def run(command: str, folder: Path) -> str:
    """A command line of the page; its console script is the module's ``main``."""
    modules = {
        "cdrl-train": "cdrl_train.cli",
        "cdrl-eval": "cdrl_train.cli_eval",
        "cdrl-sample": "cdrl_infer.cli.sample",
        "cdrl-score": "cdrl_infer.cli.score",
    }
    name, *arguments = command.split()
    code = f"import sys; from {modules[name]} import main; main(sys.argv[1:], prog_name={name!r})"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".py")])
def test_an_addition_has_at_most_40_lines(name: str) -> None:
    assert len(FILES[name].splitlines()) <= 40


def test_the_page_works_as_it_stands(tmp_path: Path) -> None:
    """Train, resume to the bit, export, reload, sample, calibrate and score."""
    assert len(FILES) == 6 and COMMANDS is not None
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    train, sample, calibrate, score = COMMANDS.group(1).strip().splitlines()
    options = "--track none --device cpu --set checkpoint_every=1 --set keep_checkpoints=20"
    run(f"{train} {options}", tmp_path)

    # What a kill after step 5 leaves, three steps of the first objective and two of the second.
    whole, cut = tmp_path / "run", tmp_path / "cut"
    (cut / "checkpoints").mkdir(parents=True)
    for name in ("config.json", "data.json", "metrics.jsonl", "checkpoints/step-00000005.pt"):
        shutil.copy(whole / name, cut / name)
    again = train.replace("--config options.json", "--resume").replace("--out run", "--out cut")
    run(f"{again} --track none --device cpu", tmp_path)
    first, second = (
        torch.load(folder / "checkpoints" / "step-00000008.pt", weights_only=True)
        for folder in (whole, cut)
    )
    own = first["networks"]["self_normalised"]
    assert own.keys() == {"offset", "slope.weight", "slope.bias"} and bool(own["offset"])
    for kind in ("networks", "averages"):
        for name, state in first[kind].items():
            for key, value in state.items():
                assert torch.equal(value, second[kind][name][key]), (kind, name, key)

    run(sample, tmp_path)
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 4
    run(calibrate, tmp_path)
    rows = run(score, tmp_path).strip().splitlines()
    assert len(rows) == 5 and all(float(row.split(",")[2]) > 0 for row in rows[1:])


def test_a_new_score_leaves_calibrations_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled model was calibrated before the score existed; the score has p-values at once."""
    from cdrl_infer import CDRLPipeline

    pipe = CDRLPipeline.from_pretrained()
    before = pipe.score(torch.full((2, 1, 28, 28), 0.5), progress=False)
    monkeypatch.setattr(SCORES, "_found", dict(SCORES._found))  # without the score after the test
    exec(compile(FILES["spread.py"], "spread.py", "exec"), {})
    found = pipe.score(torch.rand(2, 1, 28, 28), "spread", threshold_fpr=0.05, progress=False)
    assert found.p_values is not None and found.anomalous is not None
    after = pipe.score(torch.full((2, 1, 28, 28), 0.5), progress=False)
    assert before.p_values is not None and after.p_values is not None
    assert torch.equal(before.p_values, after.p_values)
