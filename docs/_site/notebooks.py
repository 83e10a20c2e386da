"""Runs the notebooks of examples/ and keeps their outputs: python docs/_site/notebooks.py

The outputs that are committed are text and PNG, so that readers of the repository see the pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
KEPT = ("text/plain", "image/png")


def run(file: Path, folder: Path, **constants: int) -> Any:
    """The notebook after all its cells ran.

    Args:
        file: the notebook.
        folder: the current folder of its kernel.
        constants: other values for lines ``NAME = VALUE``, such as a smaller ``COUNT``.

    Raises:
        ValueError: the notebook has no line for a constant.
    """
    notebook = nbformat.read(file, as_version=4)
    for name, value in constants.items():
        changed = 0
        for cell in notebook.cells:
            lines = cell.source.splitlines()
            places = [k for k, line in enumerate(lines) if line.startswith(f"{name} = ")]
            for k in places:
                lines[k] = f"{name} = {value}"
            cell.source, changed = "\n".join(lines), changed + len(places)
        if changed != 1:
            raise ValueError(f"{file.name}: expected one line {name} = …, found {changed}")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            output.update(
                {"data": {kind: data[kind] for kind in KEPT if kind in data}} if data else {}
            )
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    return notebook


if __name__ == "__main__":
    chosen = [Path(name) for name in sys.argv[1:]] or sorted((ROOT / "examples").glob("*.ipynb"))
    for one in chosen:
        nbformat.write(run(one, one.parent), one)
