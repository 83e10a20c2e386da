"""Arrows go one way, and importing costs little."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "cdrl_infer").rglob("*.py"))

# A module imports from lines above its own, or from its own package.
LAYERS = [
    ["errors", "version", "files", "random"],
    ["device", "registry", "untrusted"],
    ["config"],
    ["schedule"],
    ["model", "networks"],
    ["energies"],
    ["kernels", "proposals"],
    ["sampler", "images"],
    ["arguments"],
    ["conditions", "scoring"],
    ["options", "storage"],
    ["drawing"],
    ["pipeline"],
    ["cli"],
]
TRAINING = ("cdrl_train", "torchvision", "torch_fidelity", "accelerate", "tensorboard")
LAYER = {name: k for k, names in enumerate(LAYERS) for name in names}


def imports(file: Path) -> Iterator[str]:
    """The modules that are imported when the program runs, not for its types alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(module: str) -> str:
    """``cdrl_infer.networks.unet`` -> ``networks``."""
    return module.split(".")[1]


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_one_way(file: Path) -> None:
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    own = part(module)
    for name in imports(file):
        top = name.split(".")[0]
        assert top not in TRAINING, f"{module} imports {name}"
        if top != "cdrl_infer" or "." not in name or own == "__init__" or part(name) == own:
            continue
        assert part(name) in LAYER and own in LAYER, f"{name}, {module}: give it a layer"
        assert LAYER[part(name)] < LAYER[own], f"{module} imports {name}"


def test_the_map_is_the_territory() -> None:
    found = {part(".".join(f.relative_to(ROOT).with_suffix("").parts)) for f in SOURCES}
    assert found - {"__init__"} == set(LAYER)


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_gradients_stay_possible(file: Path) -> None:
    names = {n.attr for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Attribute)}
    assert "inference_mode" not in names


def run(code: str) -> str:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return result.stdout


def test_importing_the_package_and_asking_for_help_do_not_import_torch() -> None:
    code = """
import sys, cdrl_infer
from cdrl_infer.cli.sample import main
try:
    main(["--help"])
except SystemExit:
    pass
print("LOADED", "torch" in sys.modules, "numpy" in sys.modules, "PIL" in sys.modules)
"""
    assert "LOADED False False False" in run(code)


def test_a_run_is_read_from_the_arguments_down_to_the_disk() -> None:
    """cli -> run -> trainer -> state -> checkpoints: each module loads the next ones alone."""
    code = """
import sys
order = ["engine.checkpoints", "engine.state", "engine.trainer", "run", "cli"]
for k, name in enumerate(order):
    __import__(f"cdrl_train.{name}")
    print([later for later in order[k + 1:] if f"cdrl_train.{later}" in sys.modules])
"""
    assert run(code) == "[]\n" * 5


def test_exported_names_and_what_they_load() -> None:
    code = """
import sys, cdrl_infer
for name in cdrl_infer.__all__:
    assert getattr(cdrl_infer, name) is not None, name
assert set(cdrl_infer.__all__) <= set(dir(cdrl_infer))
assert not hasattr(cdrl_infer, "nothing")
print("torchvision" in sys.modules, "cdrl_train" in sys.modules)
"""
    assert run(code) == "False False\n"


@pytest.mark.slow
def test_importing_costs_at_most_1_3_times_torch() -> None:
    def seconds(code: str) -> float:
        start = time.perf_counter()
        run(code)
        return time.perf_counter() - start

    torch = min(seconds("import torch") for _ in range(5))
    ours = min(seconds("from cdrl_infer import CDRLPipeline") for _ in range(5))
    assert ours <= 1.3 * torch
