"""Number for number with the CDRL authors' released code; see tests/fixtures/README.md."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from cdrl_infer.conditions.conditions import Guided, Labelled
from cdrl_infer.energies.neural import EBMNetwork, NeuralEnergy
from cdrl_infer.errors import CheckpointError, ConfigError, InputError
from cdrl_infer.images import to_unit
from cdrl_infer.model import SamplerDefaults
from cdrl_infer.networks.base import Network
from cdrl_infer.networks.heads import InnerProductEnergy, ResidualInitializer
from cdrl_infer.networks.patch_unet import PatchUNet
from cdrl_infer.networks.residual_ebm import ResidualEBM
from cdrl_infer.networks.unet import UNet
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


def test_default_sizes_are_the_papers() -> None:
    with torch.device("meta"):
        ebm, initializer = ResidualEBM(), UNet()
    assert sum(p.numel() for p in ebm.parameters()) == pytest.approx(34.8e6, rel=2e-3)
    assert sum(p.numel() for p in initializer.parameters()) == pytest.approx(3.8e6, rel=1e-2)


def test_initializer_starts_as_the_identity() -> None:
    unet = UNet(in_channels=1, widths=(8, 16), num_blocks=1, attention_levels=(1,), groups=4)
    network = ResidualInitializer(unet)
    x, level = torch.randn(2, 1, 8, 8), NoiseSchedule().level(4)
    assert torch.equal(network(x, network.condition(level)), x)


def test_dropout_is_on_in_training_alone() -> None:
    network = UNet(
        in_channels=1, widths=(8,), num_blocks=1, attention_levels=(), groups=4, dropout=0.5
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    x, condition = torch.randn(1, 1, 4, 4), network.condition(torch.tensor(0.5))
    assert not torch.equal(network.train()(x, condition), network(x, condition))
    assert torch.equal(network.eval()(x, condition), network(x, condition))


def test_silu_energy_of_two_attributes() -> None:
    """Twice differentiable, moved by each attribute, and patches keep the image's size."""
    ebm = ResidualEBM(
        in_channels=1,
        width=4,
        num_blocks=2,
        width_multipliers=(1, 2),
        frequencies=4,
        embedding_dim=8,
        num_classes=(2, 3),
        activation="silu",
        patch_size=2,
    )
    assert isinstance(ebm, EBMNetwork) and ebm.size_multiple == 4
    level = NoiseSchedule().level(2)
    y = torch.randn(3, 1, 8, 8, requires_grad=True)
    f = ebm(y, ebm.condition(level, torch.tensor([[0, 0], [1, 0], [1, 3]])))
    (grad,) = torch.autograd.grad(f.sum(), y, create_graph=True)
    grad.square().sum().backward()
    assert y.grad is not None and bool((y.grad != 0).any())
    same = y.detach()[:1].expand(3, -1, -1, -1)
    values = ebm(same, ebm.condition(level, torch.tensor([[0, 0], [1, 0], [1, 3]])))
    assert values.unique().numel() == 3


def small(cls: type[Network], **sizes: Any) -> Network:
    if cls is ResidualEBM:
        return ResidualEBM(width=4, num_blocks=1, embedding_dim=8, **sizes)
    if cls is UNet:
        unet = UNet(widths=(4,), groups=4, attention_levels=(), embedding_dim=8, **sizes)
        return ResidualInitializer(unet)
    return InnerProductEnergy(PatchUNet(widths=(4,), embedding_dim=8, **sizes))


@pytest.mark.parametrize("cls", [ResidualEBM, UNet, PatchUNet])
def test_labels_must_be_those_the_network_has(cls: type[Network]) -> None:
    level, labels = NoiseSchedule().level(1), torch.ones(2, 1, dtype=torch.int64)
    conditional: Any = small(cls, num_classes=(3,))
    conditional.condition(level, labels)
    for wrong, got in (
        (None, "none"),
        (labels.repeat(1, 2), r"\(2, 2\)"),
        (labels[:, 0], r"\(2,\)"),
    ):
        with pytest.raises(InputError, match=rf"conditional: expected labels \(B, 1\), got {got}"):
            conditional.condition(level, wrong)
    unconditional: Any = small(cls)
    unconditional.condition(level)
    with pytest.raises(InputError, match=r"unconditional: expected no labels, got \(2, 1\)"):
        unconditional.condition(level, labels)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ResidualEBM(width=0), "positive.*width=0"),
        (lambda: ResidualEBM(frequencies=1), "at least 2.*frequencies=1"),
        (lambda: ResidualEBM(width_multipliers=()), "width_multipliers"),
        (lambda: ResidualEBM(activation="tanh"), "'silu', got 'tanh'"),  # type: ignore[arg-type]
        (lambda: UNet(num_blocks=0), "num_blocks=0"),
        (lambda: UNet(widths=(48,)), "multiples of groups=32, got .48"),
        (lambda: UNet(attention_levels=(3,)), "0 … 2"),
        (lambda: UNet(dropout=1.0), r"\[0, 1\), got 1.0"),
    ],
)
def test_sizes_out_of_range(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()


def drop(content: dict[str, Any], key: str) -> None:
    del content[key]


def drop_average(content: dict[str, Any]) -> None:
    content["pi_ema_state_dict"]["shadow_params"].pop()


def misshape_average(content: dict[str, Any]) -> None:
    content["p_ema_state_dict"]["shadow_params"][0] = torch.zeros(2, 2)


def poison(content: dict[str, Any]) -> None:
    content["p_ema_state_dict"]["shadow_params"][3][0] = float("nan")


def drop_u(content: dict[str, Any]) -> None:
    del content["pi_state_dict"]["module.temb_map1.weight_u"]


def rename_layer(content: dict[str, Any]) -> None:
    state = content["p_state_dict"]
    content["p_state_dict"] = {key.replace("final_conv", "last"): state[key] for key in state}


def rename_stem(content: dict[str, Any]) -> None:
    state = content["pi_state_dict"]
    renamed = {key.replace("module_list.0.", "first."): state[key] for key in state}
    content["pi_state_dict"] = renamed


def mix_models(content: dict[str, Any]) -> None:
    other = torch.load(FIXTURES / "authors-cond.pth.tar", weights_only=True)
    for kind in ("state_dict", "ema_state_dict"):
        content[f"p_{kind}"] = other[f"p_{kind}"]


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda c: drop(c, "p_ema_state_dict"), "lacks p_ema_state_dict"),
        (drop_average, "expected 37 averaged weights .* found 36"),
        (misshape_average, "init_conv.weight.*shapes"),
        (poison, "NaN or infinity in p module.time_mlp.1.bias"),
        (drop_u, "'module.temb_map1.weight_orig'.*weight_u"),
        (rename_layer, "UNet.*head.*last"),
        (rename_stem, "authors' EBM.*module_list.0.weight"),
        (mix_models, "mixes two models"),
    ],
)
def test_damaged_checkpoints(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], text: str
) -> None:
    content = torch.load(FIXTURES / "authors-uncond.pth.tar", weights_only=True)
    damage(content)
    torch.save(content, tmp_path / "bad.pth.tar")
    with pytest.raises(CheckpointError, match=text) as caught:
        load_authors_checkpoint(tmp_path / "bad.pth.tar")
    assert "\n" not in str(caught.value) and "bad.pth.tar" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint\n", b"\x80\x02}q\x00.", b"PK\x03\x04junk"]
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pth.tar"
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match="expected a checkpoint of the CDRL authors"
    ) as caught:
        load_authors_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_truncated_and_missing_files(tmp_path: Path) -> None:
    whole = (FIXTURES / "authors-uncond.pth.tar").read_bytes()
    (tmp_path / "short.pth.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"could not read .*short.pth.tar"):
        load_authors_checkpoint(tmp_path / "short.pth.tar")
    with pytest.raises(CheckpointError, match="found nothing at"):
        load_authors_checkpoint(tmp_path / "none.pth.tar")


class Payload:
    """A pickle that would create a file when loaded without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("save", [torch.save, lambda o, p: Path(p).write_bytes(pickle.dumps(o))])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, save: Callable[..., object]) -> None:
    save({"pi_state_dict": Payload(tmp_path / "ran")}, tmp_path / "evil.pth.tar")
    with pytest.raises(CheckpointError):
        load_authors_checkpoint(tmp_path / "evil.pth.tar")
    assert not (tmp_path / "ran").exists()
