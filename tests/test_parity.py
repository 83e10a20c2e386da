"""Number for number with the CDRL authors' released code; see tests/fixtures/README.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from cdrl_infer.conditions.conditions import Guided, Labelled
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import ConfigError
from cdrl_infer.images import to_unit
from cdrl_infer.model import SamplerDefaults
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.proposals import InitializerProposal
from cdrl_infer.random import PerImageRandom
from cdrl_infer.sampler import CooperativeSampler
from cdrl_infer.schedule import Level, NoiseSchedule
from cdrl_infer.storage.authors import ConvertedModel, load_authors_checkpoint

FIXTURES = Path(__file__).parent / "fixtures"


class Recording(NamedTuple):
    model: ConvertedModel
    tensors: dict[str, Tensor]
    steps: int

    def labels(self, name: str) -> Tensor | None:
        return self.tensors[name][:, None] if name in self.tensors else None

    def level(self) -> Level:
        logsnr = self.tensors["logsnr"]
        level = self.model.schedule.level(torch.ones(len(logsnr), dtype=torch.int64))
        return replace(level, logsnr=logsnr, logsnr_in=logsnr)


class Replay:
    """The recorded draws, in order."""

    def __init__(self, noise: Tensor) -> None:
        self.left = list(noise)

    def normal(self, shape: Sequence[int]) -> Tensor:
        draw = self.left.pop(0)
        assert draw.shape[1:] == tuple(shape)
        return draw

    def uniform(self) -> Tensor:
        raise AssertionError("their code draws none")


@pytest.fixture(scope="module", params=["uncond", "cond"])
def recording(request: pytest.FixtureRequest) -> Recording:
    stem = FIXTURES / f"authors-{request.param}"
    with safe_open(stem.with_suffix(".safetensors"), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        steps = int(file.metadata()["K"])
    return Recording(load_authors_checkpoint(f"{stem}.pth.tar"), tensors, steps)


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


def run_chain(recording: Recording, score_scale: float) -> Tensor:
    model, labels = recording.model, recording.labels("sample_labels")
    sampler = CooperativeSampler(model.schedule, recording.steps, score_scale=score_scale)
    replay = Replay(recording.tensors["noise"])
    energy = NeuralEnergy(model.ebm, labels)
    proposal = InitializerProposal(model.initializer, labels)
    samples = sampler.sample(energy, proposal, replay, (3, 32, 32)).samples
    assert not replay.left
    return samples


def test_ebm_output_and_gradient(recording: Recording) -> None:
    ebm = recording.model.ebm
    x = recording.tensors["x"].clone().requires_grad_(True)
    f = ebm(x, ebm.condition(recording.level(), recording.labels("labels")))
    (grad,) = torch.autograd.grad(f.sum(), x)
    assert relative_error(f.detach(), recording.tensors["f"]) <= 1e-5
    assert relative_error(grad, recording.tensors["grad_f"]) <= 1e-5


@torch.no_grad()
def test_initializer_output(recording: Recording) -> None:
    network = recording.model.initializer
    condition = network.condition(recording.level(), recording.labels("labels"))
    found = network(recording.tensors["x"], condition)
    assert relative_error(found, recording.tensors["initializer"]) <= 1e-5


def test_whole_chain(recording: Recording) -> None:
    found = run_chain(recording, recording.model.score_scale)
    assert relative_error(found, recording.tensors["sample"]) <= 1e-4


@pytest.mark.parametrize("recording", ["cond"], indirect=True)
def test_guided_chain(recording: Recording) -> None:
    """Their w = 0.7 is a guidance scale of 1.7; plain sampling of the same noise misses the record."""
    model, recorded = recording.model.to_model(), recording.tensors["sample_0.7"]
    labels = recording.labels("sample_labels_0.7")
    assert labels is not None

    def error(asked: Labelled) -> float:
        replay = Replay(recording.tensors["noise_0.7"])
        energy, proposal = asked.bind(model, slice(0, len(labels)), replay)
        sampler = CooperativeSampler(model.schedule, recording.steps, score_scale=2.0)
        samples = sampler.sample(energy, proposal, replay, (3, 32, 32)).samples
        assert not replay.left
        return relative_error(samples, recorded)

    assert error(Guided(labels, 1.7)) <= 1e-4
    assert error(Labelled(labels)) > 0.01
    assert error(Guided(labels, 0.7)) > 0.01


def test_doubled_score_is_real(recording: Recording) -> None:
    """Tweedie's formula as it is written does not give the record; exactly twice the score does."""
    once, twice, recorded = (
        run_chain(recording, 1.0),
        run_chain(recording, 2.0),
        recording.tensors["sample"],
    )
    assert relative_error(once, recorded) > 3e-4
    unit = twice - once
    fitted_scale = 1 + float((unit * (recorded - once)).sum() / unit.square().sum())
    assert fitted_scale == pytest.approx(2.0, abs=0.02)  # 2/m_1, a rival, is 2.067


def test_sizes_and_options_come_out(recording: Recording) -> None:
    model = recording.model
    conditional = "labels" in recording.tensors
    assert model.num_classes == ((10,) if conditional else ())
    assert len(model.initializer.backbone.down) == (8 if conditional else 5)
    assert len(model.ebm.blocks) == 4
    assert (model.ebm.size_multiple, model.initializer.size_multiple) == (8, 4)
    assert (model.langevin_steps, model.score_scale) == (15, 2.0)
    assert model.schedule == NoiseSchedule()
    assert not model.ebm.training and not model.initializer.training


def test_the_pipeline_draws_with_a_converted_model(recording: Recording, tmp_path: Path) -> None:
    """What it draws is what the sampler draws with the recorded options, and it survives the disk."""
    model = recording.model
    names = [f"class {k}" for k in range(10)] if model.num_classes else None
    pipe = CDRLPipeline(model.to_model(names))
    assert pipe.model.sampler == SamplerDefaults(15, score_scale=2.0)
    call: dict[str, Any] = {"seeds": [1, 2], "langevin_steps": 1, "output_type": "pt"}
    if names:
        call["class_labels"] = ["class 7", None]
    drawn = pipe(**call)

    labels = torch.tensor([[8], [0]]) if names else None
    expected = CooperativeSampler(model.schedule, 1, score_scale=model.score_scale).sample(
        NeuralEnergy(model.ebm, labels),
        InitializerProposal(model.initializer, labels),
        PerImageRandom.from_seeds([1, 2], "cpu"),
        (3, 32, 32),
    )
    assert (drawn.images - to_unit(expected.samples)).abs().max() <= 1 / 255

    pipe.save_pretrained(tmp_path / "converted")
    again = CDRLPipeline.from_pretrained(tmp_path / "converted")
    assert again.model.sampler == pipe.model.sampler and again.model.labels == pipe.model.labels
    assert torch.equal(again(**call).images, drawn.images)


def test_a_converted_model_has_names_and_a_shape_that_fit(recording: Recording) -> None:
    model = recording.model
    by_default = [attribute.values for attribute in model.to_model().labels]
    assert by_default == ([tuple("0123456789")] if model.num_classes else [])
    assert model.to_model(image=(3, 16, 24)).image.shape == (3, 16, 24)
    with pytest.raises(ConfigError, match=r"'labels' has \[2\] values"):
        model.to_model(["cat", "dog"])
    with pytest.raises(ConfigError, match="multiples of 8, got 30 and 32"):
        model.to_model(image=(3, 30, 32))


@torch.no_grad()
def test_a_level_for_all_is_the_same_as_one_for_each(recording: Recording) -> None:
    model, x, labels = recording.model, recording.tensors["x"], recording.labels("labels")
    for network in (model.ebm, model.initializer):
        scalar = network(x, network.condition(model.schedule.level(3), labels))
        each = network(x, network.condition(model.schedule.level(torch.tensor([3, 3])), labels))
        torch.testing.assert_close(scalar, each)


def test_images_of_another_shape_pass(recording: Recording) -> None:
    model, level = recording.model, recording.model.schedule.level(2)
    labels = recording.labels("labels")
    x = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    energy, grad = NeuralEnergy(model.ebm, labels).at(level).value_and_grad(x)
    assert energy.shape == (2,) and grad.shape == x.shape
    assert InitializerProposal(model.initializer, labels).mean(x, level).shape == x.shape


def test_spectral_norm_is_on_the_layers_that_the_authors_normalise(recording: Recording) -> None:
    name = "cond" if recording.model.num_classes else "uncond"
    content = torch.load(FIXTURES / f"authors-{name}.pth.tar", weights_only=True)
    theirs = [
        tuple(value.shape)
        for key, value in content["pi_state_dict"].items()
        if key.endswith("weight_orig")
    ]
    ours = [tuple(m.weight.shape) for m in recording.model.ebm.spectral_norm_layers()]
    assert sorted(ours) == sorted(theirs)


def test_folding_is_what_the_parametrization_computes() -> None:
    """A weight folded by hand is the one that torch's own spectral norm computes in eval mode."""
    generator = torch.Generator().manual_seed(0)
    content = torch.load(FIXTURES / "authors-uncond.pth.tar", weights_only=True)
    live, shadow = content["pi_state_dict"], content["pi_ema_state_dict"]["shadow_params"]
    layer = nn.Conv2d(3, 32, 3)
    layer.weight.data.copy_(shadow[5])
    parametrizations.spectral_norm(layer).eval()
    norm = layer.parametrizations.weight[0]
    norm._u.copy_(live["module.module_list.0.weight_u"])
    norm._v.copy_(live["module.module_list.0.weight_v"])
    x = torch.randn(1, 3, 8, 8, generator=generator)
    folded = load_authors_checkpoint(FIXTURES / "authors-uncond.pth.tar").ebm.stem.weight
    expected = layer(x) - layer.bias[:, None, None]
    torch.testing.assert_close(torch.conv2d(x, folded), expected)
