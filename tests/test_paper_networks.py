"""The paper's networks: sizes, starts, labels, and sizes out of range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cdrl_infer.energies.neural import EBMNetwork
from cdrl_infer.errors import ConfigError, InputError
from cdrl_infer.networks.base import Network
from cdrl_infer.networks.heads import InnerProductEnergy, ResidualInitializer
from cdrl_infer.networks.patch_unet import PatchUNet
from cdrl_infer.networks.residual_ebm import ResidualEBM
from cdrl_infer.networks.unet import UNet
from cdrl_infer.schedule import NoiseSchedule


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
