"""Packages that are missing, or do not fit the others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cdrl_infer.errors import InputError, PackageError
from cdrl_infer.optional import needed

ROOT = Path(__file__).parents[1]
BROKEN = {
    "torchvision": "from cdrl_train.data import load_images; load_images('torchvision:MNIST:nowhere')",
    "sklearn": "from cdrl_train.evaluation.ood_metrics import sklearn_metrics; sklearn_metrics()",
    "matplotlib": "from cdrl_infer.scoring.plots import new_figure; new_figure()",
    "gradio": "import cdrl_infer.demo.app",
    "torch_fidelity": "from cdrl_train.evaluation.fidelity import check_torch_fidelity as check; check()",
    "efficientnet_lite_pytorch": "from cdrl_train.evaluation.efficientnet import EfficientNetLite0; "
    "EfficientNetLite0.load(None, None)",
    "accelerate": "from cdrl_train.engine.distributed import make_accelerator; make_accelerator()",
    "tensorboard": "from cdrl_train.engine.distributed import make_accelerator; "
    "make_accelerator(trackers=['tensorboard'])",
    "yaml": "from cdrl_infer.storage.card import with_figures; "
    "with_figures('', [], dataset=None, model='m')",
}


@pytest.mark.parametrize(
    "fault", ["RuntimeError", "AttributeError", "OSError", "ModuleNotFoundError"]
)
@pytest.mark.parametrize("module", BROKEN)
def test_a_package_that_cannot_be_imported_is_one_line(
    tmp_path: Path, module: str, fault: str
) -> None:
    if fault != "RuntimeError" and module not in ("torchvision", "matplotlib"):
        pytest.skip("the helper is the same")
    (tmp_path / module).mkdir()
    text = f"raise {fault}('operator nms does not exist' + chr(10) + 'line' * 1000)"
    (tmp_path / module / "__init__.py").write_text(text, encoding="utf-8")
    code = f"""
import sys, huggingface_hub
sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]
for name in [name for name in sys.modules if name.split(".")[0] == {module!r}]:
    del sys.modules[name]
from cdrl_infer.errors import CDRLError
try:
    {BROKEN[module]}
except CDRLError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert not done.stderr.strip().endswith("Error") and done.stdout.count("\n") == 1, done
    said = {"sklearn": "scikit-learn", "yaml": "pyyaml"}.get(module, module.replace("_", "-"))
    wanted = (
        rf"needs? {said}: pip install" if fault == "ModuleNotFoundError" else rf"{fault}: operator"
    )
    assert re.search(wanted, done.stdout) and f" {said}" in done.stdout, done.stdout


def test_the_versions_that_do_not_fit_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "oldvision-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Name: oldvision\nVersion: 0.1\nRequires-Dist: torch (==1.0.0)\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    wanted = r"oldvision 0.1 needs torch==1.0.0, but 2.* is installed.*--upgrade 'cdrl\[train\]'"
    with pytest.raises(InputError, match=wanted), needed("oldvision", "downloading needs", "train"):
        raise OSError("undefined symbol")


def test_a_missing_package_is_an_import_error() -> None:
    """So that ``try: … except ImportError`` works as for any package."""
    with pytest.raises(ImportError) as caught, needed("nowhere", "plots need", "score"):
        import nowhere  # noqa: F401
    assert type(caught.value) is PackageError and isinstance(caught.value, ValueError)
    assert str(caught.value) == "plots need nowhere: pip install 'cdrl[score]'"
