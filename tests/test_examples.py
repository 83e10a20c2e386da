"""The examples run as they stand in their first lines, and show what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import script
from PIL import Image

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(example: Path, *arguments: str, cwd: Path) -> str:
    command = [sys.executable, str(example), *arguments]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)
def test_every_example_runs_and_draws(example: Path, tmp_path: Path) -> None:
    small = {"analytic_chain": ["--points", "2000"], "anomaly": ["--images", "2"], "levels": []}
    text = example.read_text(encoding="utf-8")
    assert re.search(rf"^python examples/{example.name}  # \d+ s on one core$", text, re.MULTILINE)
    run(example, "--out", "out.png", *small.get(example.stem, ["--columns", "2"]), cwd=tmp_path)
    with Image.open(tmp_path / "out.png") as picture:
        assert min(picture.size) >= 100
        low, high = picture.convert("L").getextrema()
        assert low < 64 and high > 192


def test_every_example_runs_without_arguments() -> None:
    """Every option has a default; the table of the examples names the file that is written."""
    table = (ROOT / "examples/README.md").read_text(encoding="utf-8")
    for example in EXAMPLES:
        options = script(f"examples/{example.name}").params
        assert not [option.name for option in options if option.required]
        (out,) = (str(option.default) for option in options if option.name == "out")
        row = next(line for line in table.splitlines() if line.startswith(f"| [{example.name}]"))
        assert f"`{out}`" in row and out.endswith(".png")
        seconds = re.search(r"# (\d+) s on", example.read_text(encoding="utf-8"))
        assert seconds is not None and row.endswith(f"| {seconds[1]} |")


def test_the_analytic_chain_recovers_its_weights(tmp_path: Path) -> None:
    (example,) = (e for e in EXAMPLES if e.stem == "analytic_chain")
    text = run(example, "--out", "out.png", cwd=tmp_path)
    found = [tuple(map(float, pair)) for pair in re.findall(r"weight (\S+), recovered (\S+)", text)]
    assert len(found) == 3
    for weight, recovered in found:
        # 20,000 points: 5 standard errors, and 0.01 for the unadjusted chain
        assert abs(weight - recovered) < 5 * (weight * (1 - weight) / 20_000) ** 0.5 + 0.01
