"""The benchmark of recipes: equal operations, runs that go on, and a tiny run of the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipes
import torch
from classifier import Recipe
from click.testing import CliRunner
from recipes import TERA, plan, train
from runs import options

from cdrl_infer.errors import InputError
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import load_images
from cdrl_train.evaluation.efficientnet import EfficientNetLite0

TINY = [text for text in options() if text != "--set"]
NAMES = ("mnist", "mnist+no-warm-start")


@pytest.fixture
def data(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 24), ("test", 12)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 3
    np.savez(tmp_path / "tiny.npz", **arrays)
    return str(tmp_path / "tiny.npz")


@pytest.fixture
def images(data: str) -> ImageSet:
    return load_images(data, "train")


def test_all_recipes_get_as_many_operations(images: ImageSet) -> None:
    plans = [
        plan(text, images, 0.02 * TERA, TINY[2:]) for text in (*NAMES, f"{NAMES[0]},ema_decay=0.5")
    ]
    for planned in plans:
        total = planned.flops(planned.config.total_steps)
        assert abs(total - 0.02 * TERA) <= max(planned.step_flops)
    with_start, without, own = plans
    warm, cooperative = with_start.config.phases
    assert warm.steps > 5 * cooperative.steps > 0
    assert with_start.flops(warm.steps + 1) == sum(
        flops * steps for flops, steps in zip(with_start.step_flops, (warm.steps, 1), strict=True)
    )
    # A step with Langevin costs more, so there are fewer.
    (only,) = without.config.phases
    assert only.steps < warm.steps
    assert own.config.ema_decay == 0.5
    with pytest.raises(InputError, match="less than a step of each phase"):
        plan(NAMES[0], images, 1.0, TINY)


def test_a_run_goes_on_and_refuses_other_options(images: ImageSet, tmp_path: Path) -> None:
    planned = plan(NAMES[1], images, 4e7, TINY)
    first = train(planned, images, tmp_path / "run", 2, "cpu")
    log = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert len(first) == 2
    assert train(planned, images, tmp_path / "run", 2, "cpu") == first
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == log
    with pytest.raises(InputError, match="other options"):
        train(planned, images, tmp_path / "run", 1, "cpu")


def test_the_command(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)[..., None, None]

    stub = EfficientNetLite0(network, "stub", torch.device("cpu"))
    monkeypatch.setattr(EfficientNetLite0, "load", lambda weights, device: stub)
    monkeypatch.setattr(recipes, "Recipe", lambda: Recipe(widths=(4,), epochs=1, batch_size=8))
    out, figure = tmp_path / "out.json", tmp_path / "curves.png"
    arguments = ["--data", data, "--tflop", "2e-4", "--points", "2", "--n", "6", "--seeds", "2"]
    arguments += [part for name in NAMES for part in ("--recipe", name)]
    arguments += [part for text in TINY for part in ("--set", text)]
    arguments += ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    arguments += ["--out", str(out), "--figure", str(figure)]
    result = CliRunner().invoke(recipes.main, arguments)
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    for name in NAMES:
        points = written["recipes"][name]["points"]
        assert [len(point["distance"]) for point in points] == [2, 2]
        assert points[0]["step"] < points[1]["step"]
        assert points[1]["flops"] == pytest.approx(2e8, rel=0.1)
        assert name in result.output
    assert figure.read_bytes().startswith(b"\x89PNG")
