"""What needs a CUDA device: the same images as on the CPU, and training there. Skipped elsewhere.

`benchmarks/accelerator.py` runs this file.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peers_ddpm
import pytest
import torch
from conftest import CLASSES, make_model
from peers_ddpm import DDPMRecipe
from runs import fit, images, tiny
from torch import Tensor

from cdrl_infer.energies import recorded
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_train.config import TrainConfig
from cdrl_train.data.stream import BatchStream
from cdrl_train.engine.saving import resume
from cdrl_train.engine.trainer import Trainer
from cdrl_train.objectives import Losses
from cdrl_train.objectives.score_matching import ScoreMatching

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
GREY = 1 / 255
LONGER = ("score_matching.steps=9", "cooperative.steps=9")  # the first three are not recorded
CALL = {"class_labels": ["Bag", "Shirt", None], "seeds": [3, 4, 5], "output_type": "pt"}


def drawn(pipe: CDRLPipeline, **options: object) -> Tensor:
    return torch.as_tensor(pipe(**{**CALL, **options}).images)


@pytest.mark.parametrize("kernel", ["langevin", "hmc"])
def test_images_are_those_of_the_cpu_within_a_grey_level(folder: Path, kernel: str) -> None:
    """With a kernel that can reject a move, rounding may tip a decision; not for these seeds."""
    on_cpu = drawn(CDRLPipeline.from_pretrained(folder), kernel=kernel)
    on_cuda = drawn(CDRLPipeline.from_pretrained(folder).to("cuda"), kernel=kernel)
    assert (on_cpu - on_cuda).abs().max() <= GREY


def test_a_bundled_model_draws_the_same_clothes() -> None:
    call = {"class_labels": ["Sneaker", "Bag"], "seeds": [0, 1], "output_type": "pt"}
    on_cpu, on_cuda = (
        torch.as_tensor(CDRLPipeline.from_pretrained().to(place)(**call).images)
        for place in ("cpu", "cuda")
    )
    assert (on_cpu - on_cuda).abs().max() <= GREY


def test_energies_and_scores_are_those_of_the_cpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without TF32, which keeps three digits, as bfloat16 keeps two."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    x = drawn(CDRLPipeline.from_pretrained(folder))
    on_cpu, on_cuda = (
        CDRLPipeline.from_pretrained(folder).to(place).energy_and_gradient(x)
        for place in ("cpu", "cuda")
    )
    for a, b in zip(on_cpu, on_cuda, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    "options", [{}, {"guidance_scale": 2.0}, {"precision": "bfloat16"}, {"kernel": "hmc"}]
)
def test_recorded_gradients_draw_the_same_images(folder: Path, options: dict[str, Any]) -> None:
    """At all levels and for a second batch; the first gradients are plain."""
    pipe = CDRLPipeline.from_pretrained(folder).to("cuda")
    call = {"langevin_steps": 4, **options}
    for seeds in ([3, 4, 5], [6, 7, 8]):
        plain = drawn(pipe, cuda_graphs=False, seeds=seeds, **call)
        assert (drawn(pipe, seeds=seeds, **call) - plain).abs().max() <= GREY
    kinds = recorded._of_networks[pipe.model.ebm]
    assert [*kinds.recordings.values()] and None not in kinds.recordings.values()
    scores = [pipe.score(plain, "energy").scores for _ in range(2)]  # recorded in the first call
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-2)


def test_noise_drawn_on_the_device_depends_on_the_seed_alone() -> None:
    pipe = CDRLPipeline(make_model(CLASSES)).to("cuda")
    first, again = (drawn(pipe, draw_on="device") for _ in range(2))
    assert torch.equal(first, again)
    alone = drawn(pipe, draw_on="device", class_labels=["Shirt"], seeds=[4])
    assert (alone - first[1:2]).abs().max() <= GREY
    assert not torch.equal(first, drawn(pipe))  # other bits than those of the CPU's generator


def losses(config: TrainConfig, place: str, folder: Path) -> list[dict[str, float]]:
    stream = BatchStream(images(), config.data, config.seed, torch.device(place))
    run = Trainer(config, stream, folder)
    return [run.train_step() for _ in range(config.total_steps)]


def test_training_is_repeatable_and_lower_precision_is_near(tmp_path: Path) -> None:
    exact, again, low = (
        losses(tiny(precision=precision), "cuda", tmp_path)
        for precision in ("float32", "float32", "bfloat16")
    )
    for a, b, c in zip(exact, again, low, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-3)
        assert a == pytest.approx(c, rel=0.1, abs=0.1)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_training_is_that_without(tmp_path: Path) -> None:
    plain, compiled = (losses(tiny(compile=compile), "cuda", tmp_path) for compile in (False, True))
    for a, b in zip(plain, compiled, strict=True):
        assert a == pytest.approx(b, rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recorded_steps_are_those_without(tmp_path: Path, precision: str) -> None:
    plain, recorded = (
        losses(tiny(*LONGER, precision=precision, cuda_graphs=graphs), "cuda", tmp_path)
        for graphs in (False, True)
    )
    for a, b in zip(plain, recorded, strict=True):
        assert a == pytest.approx(b, rel=1e-2, abs=1e-2)


def test_a_step_that_reads_a_value_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ScoreMatching.losses

    def reading(self: ScoreMatching, *args: Any) -> Losses:
        found = original(self, *args)
        assert found.total.item() >= 0
        return found

    plain = losses(tiny(*LONGER, cuda_graphs=False), "cuda", tmp_path)
    monkeypatch.setattr(ScoreMatching, "losses", reading)
    told: list[str] = []
    config = tiny(*LONGER)
    stream = BatchStream(images(), config.data, config.seed, torch.device("cuda"))
    run = Trainer(config, stream, tmp_path, told.append)
    found = [run.train_step() for _ in range(run.config.total_steps)]
    assert "not recorded" in told[0]
    for a, b in zip(plain, found, strict=True):
        assert a == pytest.approx(b, rel=1e-2, abs=1e-2)


def test_a_run_resumes_on_the_device(tmp_path: Path) -> None:
    config = tiny()
    stream = BatchStream(images(), config.data, config.seed, torch.device("cuda"))
    run = Trainer(config, stream, tmp_path)
    fit(run, until=5)
    second = Trainer(config, BatchStream(images(), config.data, 0, torch.device("cuda")), tmp_path)
    assert resume(second) and second.step == 5
    fit(second)
    assert second.step == config.total_steps


@pytest.mark.skipif(find_spec("diffusers") is None, reason="pip install 'cdrl[peers]'")
@pytest.mark.filterwarnings("ignore")  # diffusers and its requirements announce their changes
def test_a_ddpm_of_diffusers_trains_as_on_the_cpu(tmp_path: Path) -> None:
    """Its recorded steps as well, and those of a run that began on the CPU."""
    recipe, steps = DDPMRecipe(widths=(8, 8), batch_size=4, warmup_steps=2), 12

    def train(name: str, place: str, break_at: int | None = None) -> list[Tensor]:
        def tell(text: str) -> None:
            if text.startswith(f"step {break_at} "):
                raise KeyboardInterrupt

        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        state = peers_ddpm.resume(folder, recipe, images(), steps, torch.device(place))
        peers_ddpm.train(state, images(), folder, 600, 0, "float32", tell)
        return [*peers_ddpm.load(folder).average.parameters()]

    on_cpu = train("cpu", "cpu")
    with pytest.raises(KeyboardInterrupt):
        train("both", "cpu", break_at=4)
    for found in (train("cuda", "cuda"), train("both", "cuda")):
        torch.testing.assert_close(found, on_cpu, rtol=1e-2, atol=2e-3)
