"""Heat maps: a closed form, what noise and batch do to them, and that they find a patch."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from conftest import CLASSES, make_model
from torch import Tensor, nn

from cdrl_infer.errors import NumericalError
from cdrl_infer.model import CDRLModel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.scoring.maps import BLUR, blur, heat_map


class Quadratic(nn.Module):
    """``E(y) = ½ a ‖y - b‖²`` nats, so ``∇E = a (y - b)``."""

    output_unit: Literal["nats"] = "nats"

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))
        self.b = b

    def condition(self, level: Any, labels: Tensor | None = None) -> None:
        return None

    def forward(self, y: Tensor, condition: None) -> Tensor:
        return -0.5 * self.a * (y - self.b).square().flatten(1).sum(1)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("num_levels", "used"), [(1, [1]), (3, [2, 3]), (6, [4, 5, 6])])
def test_of_a_quadratic_energy(num_levels: int, used: list[int]) -> None:
    """Its gradient is linear in the noise, so what is left is that at ``y = m α u``."""
    schedule = NoiseSchedule(num_levels=num_levels)
    model = CDRLModel.__new__(CDRLModel)
    model.ebm, model.initializer, model.labels = Quadratic(0.7, 0.3), nn.Identity(), ()
    model.schedule = schedule
    images = torch.rand(3, 2, 6, 9, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(3, 6, 9, dtype=torch.float64)
    for t in used:
        level = schedule.level(t)
        m, alpha, sigma_bar = map(float, (level.scale, level.alpha, level.sigma_bar))
        gradient = 0.7 * (m * alpha * (2 * images.double() - 1) - 0.3)
        expected += (m * sigma_bar * gradient).square().sum(1)
    found = heat_map(model, images, 4)
    assert found.dtype == torch.float32 and found.shape == (3, 6, 9)
    torch.testing.assert_close(found.double(), blur(expected, BLUR), rtol=1e-4, atol=1e-5)


def test_the_seed_decides_and_the_batch_does_not(images: Tensor) -> None:
    model = make_model(CLASSES)
    maps = heat_map(model, images, 3)
    assert torch.equal(maps, heat_map(model, images, 3))
    assert bool((maps > 0).all())
    alone = torch.cat([heat_map(model, image[None], 3) for image in images])
    torch.testing.assert_close(alone, maps, rtol=1e-4, atol=1e-4 * float(maps.max()))
    torch.testing.assert_close(
        heat_map(model, images.flip(0), 3).flip(0), alone, rtol=1e-4, atol=1e-5
    )
    other = heat_map(model, images, 4)
    assert float((other - maps).abs().max() / maps.max()) > 0.01


def test_a_broken_model_is_reported(images: Tensor) -> None:
    model = make_model()
    model.ebm.backbone.head.bias.data[0] = math.inf
    with pytest.raises(NumericalError, match="heat map is not finite; check the model"):
        heat_map(model, images, 0)


def test_blurring_averages_what_there_is() -> None:
    flat = torch.full((2, 5, 11), 3.0, dtype=torch.float64)
    torch.testing.assert_close(blur(flat, 1.5), flat)
    point = torch.zeros(1, 31, 31, dtype=torch.float64)
    point[0, 15, 15] = 1
    spread = blur(point, 1.5)[0]
    assert abs(float(spread.sum()) - 1) < 1e-9
    offset = torch.arange(31, dtype=torch.float64) - 15
    variance = float((spread.sum(1) * offset**2).sum())
    assert abs(variance / 1.5**2 - 1) < 0.05  # cut off at 3 standard deviations
    torch.testing.assert_close(spread, spread.T)
    ratio = float(spread[15, 17] / spread[15, 15])
    assert abs(ratio - math.exp(-0.5 * (2 / 1.5) ** 2)) < 1e-9


def pixel_auroc(heat: Tensor, hidden: Tensor) -> float:
    inside, outside = heat[hidden], heat[~hidden]
    return float((inside[:, None] > outside).double().mean())


def test_a_pasted_patch_is_found() -> None:
    """A piece of a bag outside a trouser leg, in the bundled model's own images."""
    pipe = CDRLPipeline.from_pretrained()
    drawn = pipe(class_labels=["Trouser"] * 3 + ["Bag"], seeds=0, output_type="pt")
    assert isinstance(drawn.images, Tensor)
    clean, bag = drawn.images[:3], drawn.images[3]
    patched = clean.clone()
    patched[:, :, 12:20, 2:10] = bag[:, 14:22, 10:18]
    hidden = torch.zeros(28, 28, dtype=torch.bool)
    hidden[12:20, 2:10] = True
    maps = heat_map(pipe.model, patched, 0)
    found = [pixel_auroc(heat, hidden) for heat in maps]
    before = [pixel_auroc(heat, hidden) for heat in heat_map(pipe.model, clean, 0)]
    assert min(found) > 0.9 and max(before) < 0.7
