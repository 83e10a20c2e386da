"""The notebooks run, in a kernel and as plain code, and are committed with small outputs."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT, write_everything

from cdrl_infer.storage import folder as storage

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
LARGEST = 300_000  # bytes
SMALL = {
    "1_first_pictures": {"COUNT": 3},
    "2_compose_repair_steer": {"COUNT": 2, "STEPS": 1},
    "3_anomaly_detector": {"COUNT": 74, "NEW": 8},
}


def cells(file: Path, kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(file.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_there_are_three() -> None:
    assert [file.stem for file in NOTEBOOKS] == list(SMALL)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_a_notebook_is_committed_as_it_ran(file: Path) -> None:
    """All cells in order, without errors, and nothing of the machine; pictures, but no large ones."""
    assert file.stat().st_size < LARGEST
    code = cells(file, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"execute_result", "stream"}
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    text = json.dumps(
        [{k: v for k, v in o.get("data", o).items() if k != "image/png"} for o in outputs]
    )
    assert "/home" not in text and "/tmp" not in text and "/root" not in text


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_a_notebook_runs_as_plain_code(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tiny models and few pictures: names, options and shapes are right."""
    write_everything(tmp_path / "work", tmp_path / "bundled")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(storage, "BUNDLED", tmp_path / "bundled")
    names: dict[str, Any] = {}
    for cell in cells(file, "code"):
        code = "".join(cell["source"])
        for name, value in SMALL[file.stem].items():
            code = re.sub(rf"^{name} = \d+", f"{name} = {value}", code, flags=re.MULTILINE)
        exec(compile(code, file.name, "exec"), names)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_a_notebook_runs_in_a_kernel(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the bundled models and few pictures."""
    for package in ("nbclient", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            pytest.skip("the notebooks' kernel needs pip install 'cdrl[notebook]'")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "docs/_site/notebooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ran = module.run(file, tmp_path, **SMALL[file.stem])
    shown = [
        o for cell in ran.cells for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})
    ]
    assert len(shown) == sum(
        "image/png" in output.get("data", {})
        for cell in cells(file, "code")
        for output in cell["outputs"]
    )
