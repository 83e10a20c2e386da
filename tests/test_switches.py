"""Results do not depend on PyTorch's switches, whichever entry point is called."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from score_fixtures import calibrated as calibrated
from score_fixtures import pixels
from torch import Tensor

from cdrl_infer.model import CDRLModel, ImageShape
from cdrl_infer.networks.base import Network
from cdrl_infer.networks.heads import InnerProductEnergy, ResidualInitializer
from cdrl_infer.networks.mlp import MLP, MLPEnergy
from cdrl_infer.networks.residual_ebm import ResidualEBM
from cdrl_infer.networks.unet import UNet
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.scoring.detector import CDRLDetector
from cdrl_infer.scoring.reference import measure
from cdrl_infer.scoring.scorer import Scorer


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


SWITCHES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "default device": lambda: default_device("meta"),
    "device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "half": lambda: torch.autocast("cpu", dtype=torch.float16),
}
IMAGES = pixels(80, 2)
UNET = UNet(1, (8, 8), 1, (1,), 8, 16, groups=4)


def everything(pipe: CDRLPipeline) -> Iterator[Any]:
    """Results of every entry point."""
    draw = {"seeds": [1, 2], "output_type": "pt"}
    concepts, mask = "Shirt | Bag", np.eye(8)
    for kernel in ("langevin", "mala"):
        for scale in (1.0, 2.0):
            yield pipe(class_labels="Bag", guidance_scale=scale, kernel=kernel, **draw)
    yield pipe.compose(concepts, **draw)
    known = pipe.inpaint(IMAGES[0], mask, expression=concepts, **draw)
    yield known
    yield pipe.adapt_step_scale("hmc", num_images=2, steps=3)
    for score in ("combined", "energy"):
        yield pipe.score(known.images, score, return_map=True, threshold_fpr=0.1)
    yield pipe.score(iter(known.images), "score-norm", level=2, seed=3)
    yield measure(pipe.model, torch.from_numpy(IMAGES)[:, None], data="greys", seed=1).tensors()
    yield CDRLDetector(pipe).fit(IMAGES).decision_function(IMAGES[:3])


def tensors(found: Any) -> Iterator[Any]:
    """The tensors and arrays in a result, with their types."""
    if isinstance(found, (Tensor, np.ndarray)):
        yield str(found.dtype), np.asarray(found.cpu() if isinstance(found, Tensor) else found)
    elif isinstance(found, dict | list | tuple):
        for item in found.values() if isinstance(found, dict) else found:
            yield from tensors(item)
    elif hasattr(found, "__dict__"):
        yield from tensors(vars(found))
    else:
        yield found, np.zeros(0)


def assert_same(found: Any, expected: Any) -> None:
    for (kind, values), (wanted, numbers) in zip(tensors(found), tensors(expected), strict=True):
        assert kind == wanted
        np.testing.assert_array_equal(values, numbers, strict=True)


@pytest.fixture(scope="module")
def expected(calibrated: Path) -> list[Any]:
    return list(everything(CDRLPipeline.from_pretrained(calibrated)))


@pytest.mark.parametrize("switch", SWITCHES)
def test_results_are_the_same_bits(switch: str, calibrated: Path, expected: list[Any]) -> None:
    pipe, known = CDRLPipeline.from_pretrained(calibrated), torch.from_numpy(IMAGES)[:4, None]
    with SWITCHES[switch]():
        assert_same(list(everything(pipe)), expected)
        loaded = CDRLPipeline.from_pretrained(calibrated)
        stream = Scorer(loaded.model).stream(known, batch_size=2)
        parts = [next(stream)]
    assert_same([*parts, *stream], list(Scorer(pipe.model).stream(known, batch_size=2)))
    assert_same(list(everything(loaded)), expected)


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize(
    "networks",
    [
        lambda: (
            ResidualEBM(1, 8, 1, (1, 1), 8, 16),
            ResidualInitializer(UNet(1, (8,), 1, (), 8, 16, groups=4)),
        ),
        lambda: (MLPEnergy(1, 64, 16, 1), ResidualInitializer(MLP(1, 64, 16, 1))),
        lambda: (InnerProductEnergy(UNET), None),
    ],
    ids=["paper", "mlp", "unet"],
)
def test_every_network_draws_the_same_bits(
    switch: str, networks: Callable[[], tuple[Network, Network | None]]
) -> None:
    model = CDRLModel(*networks(), NoiseSchedule(num_levels=2), ImageShape(1, 8, 8))
    draw = {"seeds": [3], "output_type": "np", "langevin_steps": 1}
    expected = CDRLPipeline(model)(**draw)
    with SWITCHES[switch]():
        model.schedule = NoiseSchedule(num_levels=2)
        model.ebm = copy.deepcopy(model.ebm)
        assert_same(CDRLPipeline(model)(**draw), expected)
