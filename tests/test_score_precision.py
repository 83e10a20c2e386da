"""Scores at less cost: in bfloat16, and from half of the levels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import make_model
from PIL import Image
from torch import Tensor

from cdrl_infer.cli.score import main
from cdrl_infer.errors import InputError
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring.detector import CDRLDetector


@pytest.fixture(scope="module")
def good() -> Tensor:
    return torch.rand(72, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def calibrated(good: Tensor) -> CDRLPipeline:
    pipe = CDRLPipeline(make_model())
    pipe.calibrate(good, progress=False)
    return pipe


def test_bfloat16_computes_in_bfloat16_and_judges_alike(
    calibrated: CDRLPipeline, good: Tensor
) -> None:
    seen: set[torch.dtype] = set()
    stem = calibrated.model.ebm.backbone.stem
    hook = stem.register_forward_hook(lambda module, given, out: seen.add(out.dtype))
    low = calibrated.score(good, precision="bfloat16", return_map=True)
    assert seen == {torch.bfloat16}
    hook.remove()
    full = calibrated.score(good, return_map=True)
    assert not torch.equal(low.scores, full.scores)
    torch.testing.assert_close(low.scores, full.scores, rtol=0.05, atol=0.05)
    assert low.scores.dtype == full.scores.dtype
    assert low.maps is not None and full.maps is not None
    assert low.maps.dtype == torch.float32
    assert (low.maps - full.maps).abs().max() < 0.1 * full.maps.max()


def test_auto_is_one_of_both(calibrated: CDRLPipeline, good: Tensor) -> None:
    auto = calibrated.score(good[:2], precision="auto").scores
    both = [calibrated.score(good[:2], precision=p).scores for p in ("float32", "bfloat16")]
    assert any(torch.equal(auto, scores) for scores in both)


def test_half_of_the_levels_is_a_distance_of_their_features(calibrated: CDRLPipeline) -> None:
    statistics = calibrated.model.statistics
    assert statistics is not None
    count = statistics.num_levels
    chosen = list(range(0, count, 2))
    table = statistics.held_out
    columns = (table.energies, table.log_score_errors, table.log_initializer_errors)
    features = torch.cat([column[:, chosen] for column in columns], 1).numpy()
    places = [kind * count + k for kind in range(3) for k in chosen]
    mean = statistics.mean[places].numpy()
    covariance = statistics.covariance[places][:, places].numpy()
    shift = features - mean
    expected = np.sort(np.sqrt((shift @ np.linalg.inv(covariance) * shift).sum(1)))
    np.testing.assert_allclose(statistics.scores("combined-half"), expected, rtol=1e-4)


def test_half_of_the_levels_costs_half(calibrated: CDRLPipeline, good: Tensor) -> None:
    networks = calibrated.model.networks

    def passes(score: str) -> tuple[Any, list[int]]:
        """The result, and the passes of energy and initializer."""
        counts = dict.fromkeys(networks, 0)

        def counted(role: str) -> Any:
            def hook(module: Any, given: Any, out: Any) -> None:
                counts[role] += 1

            return networks[role].backbone.stem.register_forward_hook(hook)

        hooks = [counted(role) for role in networks]
        out = calibrated.score(good[:2], score)
        for hook in hooks:
            hook.remove()
        return out, [*counts.values()]

    levels = calibrated.model.schedule.num_levels
    assert passes("combined")[1] == [levels, levels]
    half, count = passes("combined-half")
    assert count == 2 * [(levels + 1) // 2]
    assert half.p_values is not None and bool((half.p_values > 0).all())


def test_a_detector_takes_both(calibrated: CDRLPipeline, good: Tensor) -> None:
    detector = CDRLDetector(calibrated, score_name="combined-half", precision="bfloat16").fit(good)
    alike = CDRLDetector(calibrated, score_name="combined-half").fit(good)
    low, full = detector.score_samples(good), alike.score_samples(good)
    assert not np.array_equal(low, full)
    np.testing.assert_allclose(low, full, rtol=0.05, atol=0.05)


def test_the_command_says_the_precision(calibrated: CDRLPipeline, tmp_path: Path) -> None:
    calibrated.save_pretrained(tmp_path / "model")
    Image.new("L", (8, 8), 90).save(tmp_path / "a.png")
    call = ["--model", str(tmp_path / "model"), str(tmp_path / "a.png"), "--json", "--precision"]
    result = CliRunner().invoke(main, [*call, "bfloat16"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["precision"] == "bfloat16"
    wrong = CliRunner().invoke(main, [*call, "half"])
    assert wrong.exit_code == 2 and "'half' is not one of" in wrong.output


def test_mistakes(calibrated: CDRLPipeline, good: Tensor) -> None:
    with pytest.raises(InputError, match=r"precision must be .*float32.*got 'half'"):
        calibrated.score(good, precision="half")
    with pytest.raises(InputError, match=r"precision must be .*float32.*got 'half'"):
        CDRLDetector(calibrated, precision="half").fit(good)  # type: ignore[arg-type]
