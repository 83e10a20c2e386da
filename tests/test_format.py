"""docs/format.md tells the truth: its examples are the bundled model's files, its limits the code's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from cdrl_infer.model import MAX_NAME, MAX_SIDE, MAX_STEPS, MAX_VALUES
from cdrl_infer.networks.registry import BACKBONES, NETWORKS
from cdrl_infer.storage.folder import FORMAT_VERSION, OPTIONAL, find_model, model_files
from cdrl_infer.storage.weights import VARIANTS
from cdrl_infer.untrusted import MAX_HEADER, MAX_PICTURE, MAX_TEXT

TEXT = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")


def example(file: str, language: str) -> str:
    """The first code block below a file's heading."""
    section = TEXT.split(f"\n### {file}")[1]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(
    "file", [name for name in model_files() if name.endswith(".json") and name not in OPTIONAL]
)
def test_examples_are_the_bundled_models_files(file: str) -> None:
    shown: dict[str, Any] = json.loads(example(file, "json"))
    real = json.loads((find_model() / file).read_text(encoding="utf-8"))
    if "training" in real:
        real["training"] = {}  # too long to show
    assert shown == real


def test_the_cards_example_is_the_bundled_cards(tmp_path: Path) -> None:
    shown: Any = ModelCard(example("README.md", "yaml")).data
    real: Any = ModelCard((find_model() / "README.md").read_text(encoding="utf-8")).data
    for name in ("library_name", "pipeline_tag", "license", "datasets", "tags"):
        assert getattr(shown, name) == getattr(real, name)
    (figure,) = shown.eval_results
    (same,) = [r for r in real.eval_results if r.metric_name == figure.metric_name]
    assert figure.metric_value == same.metric_value
    assert figure.metric_args.items() <= same.metric_args.items()


def test_names_and_limits() -> None:
    tree = TEXT.split("```")[1]
    for name in model_files():
        assert f"\n{name} " in tree or f"\n{name}\n" in tree
    assert f"This is format version {FORMAT_VERSION}." in TEXT
    for names in (BACKBONES, *NETWORKS.values()):
        assert all(f"`{name}`" in TEXT for name in names)
    for variant in filter(None, VARIANTS):
        assert f"`model.{variant}.safetensors`" in TEXT
    assert (
        MAX_TEXT == MAX_HEADER == 2**20 and "have at most 1 MiB, headers of weights 1 MiB" in TEXT
    )
    assert MAX_PICTURE == 2**22 and "at most 4 MiB" in TEXT
    assert f"at most {MAX_STEPS:,} Langevin steps" in TEXT and f"at most {MAX_NAME}\n" in TEXT
    assert f"at most {MAX_VALUES:,} values" in TEXT and f"{MAX_SIDE} × {MAX_SIDE} pixels" in TEXT
