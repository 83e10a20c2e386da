"""Heads and backbones: values, gradients, conditioning, and the paper's U-Net inside an energy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import CLASSES, make_model
from torch import Tensor

from cdrl_infer.errors import ConfigError
from cdrl_infer.networks.base import Backbone
from cdrl_infer.networks.heads import (
    InnerProductEnergy,
    ResidualInitializer,
    SquaredDistanceEnergy,
)
from cdrl_infer.networks.mlp import MLP
from cdrl_infer.networks.patch_unet import PatchUNet
from cdrl_infer.networks.unet import UNet
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.storage.folder import load_model, save_model
from cdrl_train.networks import build_network

SCHEDULE = NoiseSchedule()
HEADS = [InnerProductEnergy, SquaredDistanceEnergy]


def backbone(kind: str, num_classes: tuple[int, ...] = ()) -> Backbone:
    """With random weights where it starts at zero, in float64."""
    torch.manual_seed(0)
    made: Backbone
    if kind == "UNet":
        made = UNet(1, (8, 8), 1, (1,), 4, 16, num_classes, groups=4)
    elif kind == "PatchUNet":
        made = PatchUNet(1, (8, 12), 1, embedding_dim=16, num_classes=num_classes)
    else:
        made = MLP(1, 64, 16, num_classes=num_classes)
    for parameter in made.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return made.eval().double()


class Constant(Backbone):
    """U(x) = a."""

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.in_channels, self.num_classes = 1, ()
        self.a = a

    def condition(self, logsnr: Tensor, labels: Tensor | None) -> None: ...

    def forward(self, x: Tensor, condition: None) -> Tensor:
        return self.a.expand_as(x)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["UNet", "PatchUNet", "MLP"])
def test_energies_are_differentiated_twice(kind: str, head: type[InnerProductEnergy]) -> None:
    """The gradient in y and that of its norm in a weight, against finite differences."""
    energy = head(backbone(kind), data_variance=0.3).double()
    level = SCHEDULE.level(torch.tensor([1, 4]))
    level = type(level)(
        **{k: v.double() if v.is_floating_point() else v for k, v in vars(level).items()}
    )
    y = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)

    def value(point: Tensor) -> Tensor:
        return energy(point, energy.condition(level))

    (grad,) = torch.autograd.grad(value(y).sum(), y, create_graph=True)
    direction, h = torch.randn_like(y), 1e-5
    with torch.no_grad():
        slope = (value(y + h * direction) - value(y - h * direction)) / (2 * h)
    torch.testing.assert_close((grad * direction).flatten(1).sum(1), slope, rtol=1e-6, atol=1e-6)

    weight = next(p for p in energy.parameters() if p.ndim == 4 or kind == "MLP")
    (second,) = torch.autograd.grad(grad.square().sum(), weight)

    def norm(step: float) -> Tensor:
        with torch.no_grad():
            weight.flatten()[0].add_(step)
        (moved,) = torch.autograd.grad(value(y).sum(), y)
        with torch.no_grad():
            weight.flatten()[0].sub_(step)
        return moved.square().sum()

    torch.testing.assert_close(
        second.flatten()[0], (norm(h) - norm(-h)) / (2 * h), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("head", HEADS)
def test_an_energy_starts_as_a_gaussian(head: type[InnerProductEnergy]) -> None:
    energy = head(PatchUNet(1, (8,), 1, embedding_dim=16), data_variance=0.3)
    level = SCHEDULE.level(torch.tensor([1, 3, 6]))
    y = torch.randn(3, 1, 4, 4)
    x = y / level.scale[:, None, None, None]
    expected = -0.5 * x.square().sum((1, 2, 3)) / (0.3 * level.alpha**2 + level.sigma_bar**2)
    torch.testing.assert_close(energy(y, energy.condition(level)), expected)


def test_inner_product_and_squared_distance_are_their_formulas() -> None:
    a, level, v = torch.randn(1, 4, 4), SCHEDULE.level(2), 0.3
    y = torch.randn(5, 1, 4, 4)
    x, p = y / level.scale, 1 / (level.alpha**2 * v + level.sigma_bar**2)
    c = (level.alpha**2 * v * p).sqrt()
    inner = InnerProductEnergy(Constant(a), v)
    expected = -0.5 * p * x.square().sum((1, 2, 3)) - c / level.sigma_bar * (x * a).sum((1, 2, 3))
    torch.testing.assert_close(inner(y, inner.condition(level)), expected)
    distance = SquaredDistanceEnergy(Constant(a), v)
    denoised = (1 - level.sigma_bar * p.sqrt()) * x + c * a
    expected = -0.5 * ((x - denoised) / level.sigma_bar).square().sum((1, 2, 3))
    torch.testing.assert_close(distance(y, distance.condition(level)), expected)


@pytest.mark.parametrize("kind", ["UNet", "PatchUNet", "MLP"])
def test_heads_condition_on_the_level_of_their_input(kind: str) -> None:
    """An energy sees x_{t-1}, an initializer x_t; both see the labels."""
    inner, x = backbone(kind, (2,)).float(), torch.randn(2, 1, 8, 8)
    level, labels = SCHEDULE.level(3), torch.tensor([[1], [2]])

    def output(logsnr: Tensor, labels: Tensor = labels) -> Tensor:
        return inner(x, inner.condition(logsnr, labels))

    initializer, energy = ResidualInitializer(inner), InnerProductEnergy(inner)
    u = output(level.logsnr_in)
    assert torch.equal(initializer(x, initializer.condition(level, labels)), x + u)
    given = energy.condition(level, labels).backbone
    assert torch.equal(inner(x, given), output(level.logsnr))
    assert not torch.equal(output(level.logsnr), u)
    assert not torch.equal(output(level.logsnr_in, labels.flip(0)), u)


def test_the_papers_unet_serves_in_an_energy(tmp_path: Path) -> None:
    model = make_model(CLASSES)
    model.ebm = InnerProductEnergy(backbone("UNet", (3,)).float())
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m").ebm
    y, labels, level = torch.randn(2, 1, 8, 8), torch.ones(2, 1).long(), model.schedule.level(2)
    before, after = (n(y, n.condition(level, labels)) for n in (model.ebm, loaded))
    assert torch.equal(before, after) and before.shape == (2,)
    assert loaded.config["backbone"]["attention_levels"] == (1,)


def test_sizes_of_the_data_go_to_the_backbone() -> None:
    options = {"class": "InnerProductEnergy", "backbone": {"class": "MLP", "num_pixels": 4}}
    network = build_network("ebm", options, 3, (2,))
    assert network.config["backbone"].items() >= {"in_channels": 3, "num_classes": (2,)}.items()
    assert (network.in_channels, network.num_classes, network.num_pixels) == (3, (2,), 4)
    assert options == {"class": "InnerProductEnergy", "backbone": {"class": "MLP", "num_pixels": 4}}
    with pytest.raises(ConfigError, match="in_channels comes from the data; leave it out"):
        build_network("ebm", {**options, "backbone": {"class": "MLP", "in_channels": 3}}, 3, ())
    with pytest.raises(ConfigError, match=r'ebm: expected "backbone": .*, found None'):
        build_network("ebm", {"class": "InnerProductEnergy"}, 3, ())
    with pytest.raises(ConfigError, match="spectral_norm is not defined for MLP; use ResidualEBM"):
        network.spectral_norm_layers()
