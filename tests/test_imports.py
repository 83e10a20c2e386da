"""The structure of the code: imports go one way and cost little, and files are short."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("cdrl_infer", "cdrl_train", "tests", "benchmarks", "examples")
FILES = {folder: sorted((ROOT / folder).rglob("*.py")) for folder in FOLDERS}
LONGEST = 400  # lines

# Each module or folder imports only from lines above its own, and from itself.
LAYERS = {
    "cdrl_infer": """
        errors version files random
        optional device registry arguments habits
        processes
        config
        untrusted
        schedule
        model networks
        energies
        kernels proposals
        sampler images
        showing
        conditions scoring
        likelihood
        options storage
        drawing evaluating loading
        pipeline
        demo
        cli
        __main__
    """,
    "cdrl_train": """
        spectral upload calibrate
        objectives assignments
        config
        data networks presets tracking
        engine init_from settle normalise
        card cost evaluation report toy
        export
        dry_run preview storing contradiction
        run catalogue
        cli cli_eval cli_export
        __main__
    """,
}
RANKS = {
    (package, name): rank
    for package, text in LAYERS.items()
    for rank, line in enumerate(text.strip().splitlines())
    for name in line.split()
}
TRAINING = ("cdrl_train", "torchvision", "torch_fidelity", "accelerate", "tensorboard")


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for name in LAYERS for file in FILES[name]}


def imports(module: str) -> set[str]:
    """What a module imports when the program runs, also inside functions, but not for its types."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in inner}
    return found


GRAPH = {module: imports(module) for module in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    package, *own = module.split(".")
    for name in GRAPH[module]:
        top, *other = name.split(".")
        assert package == "cdrl_train" or top not in TRAINING, f"{module} imports {name}"
        if top != package or not other or not own or other[0] == own[0]:
            continue
        assert RANKS[top, other[0]] < RANKS[package, own[0]], f"{module} imports {name}"


def test_every_module_has_a_layer() -> None:
    found = {tuple(module.split(".")[:2]) for module in MODULES if "." in module}
    assert found == set(RANKS)


def test_no_module_imports_itself_by_way_of_others() -> None:
    try:
        TopologicalSorter({m: names & set(MODULES) for m, names in GRAPH.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_are_short(folder: str) -> None:
    lines = {file: file.read_text(encoding="utf-8").count("\n") for file in FILES[folder]}
    assert not {file.name: count for file, count in lines.items() if count > LONGEST}


def test_training_knows_no_objective_by_name() -> None:
    names = {"score_matching", "cooperative", "drl"}
    for module in MODULES:
        if not module.startswith(("cdrl_train.objectives", "cdrl_train.presets")):
            nodes = ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
            found = {
                n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)
            }
            assert not names & found, module


def test_gradients_stay_possible() -> None:
    for file in FILES["cdrl_infer"]:
        if file.name == "device.py":  # it leaves that mode
            continue
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        assert not [n for n in nodes if isinstance(n, ast.Attribute) and n.attr == "inference_mode"]


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
assert {*cdrl_infer.__all__, "CDRLDetector"} <= set(dir(cdrl_infer))
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
