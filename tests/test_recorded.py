"""Recorded gradients, with a stand-in for a CUDA graph: a function that runs again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import CLASSES, make_model
from torch import Tensor

from cdrl_infer.energies import recorded
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.pipeline import CDRLPipeline

CALL = {"class_labels": ["Bag", "Shirt", None], "seeds": [3, 4, 5], "output_type": "pt"}


class Graphs:
    """Counts what is recorded and how often it is launched."""

    def __init__(self) -> None:
        self.recordings = self.launches = 0

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        self.recordings += 1
        function()

        def replay() -> None:
            self.launches += 1
            function()

        return replay


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    counted = Graphs()
    monkeypatch.setattr(recorded, "_can_record", lambda network, y: True)
    monkeypatch.setattr(recorded, "_capture", counted.capture)
    return counted


@pytest.fixture
def pipe() -> CDRLPipeline:
    return CDRLPipeline(make_model(CLASSES))


def drawn(pipe: CDRLPipeline, **options: Any) -> Tensor:
    return torch.as_tensor(pipe(**{**CALL, **options}).images)


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 2.0}, {"precision": "bfloat16"}])
def test_images_are_those_of_plain_calls(
    pipe: CDRLPipeline, graphs: Graphs, options: dict[str, Any]
) -> None:
    """At every level, and for another batch, with one recording."""
    plain = drawn(pipe, cuda_graphs=False, langevin_steps=2, **options)
    assert graphs.recordings == 0
    found = drawn(pipe, langevin_steps=2, **options)
    levels = pipe.model.schedule.num_levels
    assert graphs.recordings == 1
    assert graphs.launches == 2 * levels - recorded.PLAIN_CALLS
    torch.testing.assert_close(found, plain)
    other = {"class_labels": ["Shirt", "Bag", "Bag"], "seeds": [7, 8, 9], **options}
    again = drawn(pipe, langevin_steps=2, **other)
    assert graphs.recordings == 1
    torch.testing.assert_close(again, drawn(pipe, cuda_graphs=False, langevin_steps=2, **other))


def gradient(pipe: CDRLPipeline, y: Tensor, t: int = 1) -> tuple[Tensor, Tensor]:
    level = pipe.model.schedule.level(t)
    with recorded.recorded():
        return (
            NeuralEnergy(pipe.model.ebm, torch.ones(len(y), 1).long()).at(level).value_and_grad(y)
        )


def test_weights_in_another_place_are_recorded_anew(pipe: CDRLPipeline, graphs: Graphs) -> None:
    y = torch.randn(2, *pipe.model.image.shape)
    for _ in range(recorded.PLAIN_CALLS + 1):
        before = gradient(pipe, y)
    assert graphs.launches == 1
    with torch.no_grad():
        for parameter in pipe.model.ebm.parameters():
            parameter.mul_(0.5)  # in place: the recording reads it
    halved = gradient(pipe, y)
    assert graphs.launches == 2 and not torch.allclose(halved[1], before[1])
    for parameter in pipe.model.ebm.parameters():
        parameter.data = 2 * parameter.data
    for expected, found in zip(before, gradient(pipe, y), strict=True):
        torch.testing.assert_close(found, expected)
    assert graphs.launches == 2


def test_few_kinds_are_kept(pipe: CDRLPipeline, graphs: Graphs) -> None:
    for count in range(1, recorded.KINDS + 3):
        y = torch.randn(count, *pipe.model.image.shape)
        for _ in range(recorded.PLAIN_CALLS + 2):
            gradient(pipe, y)
    kinds = recorded._of_networks[pipe.model.ebm]
    assert graphs.recordings == recorded.KINDS + 2 and len(kinds.recordings) == recorded.KINDS
    assert len(kinds.calls) <= 2 * recorded.KINDS


def test_a_network_is_freed_with_its_recordings(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def capture(function: Callable[[], None]) -> Callable[[], None]:
        function()
        return lambda: None

    monkeypatch.setattr(recorded, "_capture", capture)
    pipe = CDRLPipeline(make_model(CLASSES))
    drawn(pipe)
    network = weakref.ref(pipe.model.ebm)
    assert recorded._of_networks[pipe.model.ebm].recordings
    del pipe
    gc.collect()
    assert network() is None


def test_what_cannot_be_recorded_is_called(
    pipe: CDRLPipeline, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(function: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(recorded, "_capture", refuse)
    plain = drawn(pipe, cuda_graphs=False)
    torch.testing.assert_close(drawn(pipe), plain)
    monkeypatch.setattr(recorded, "_capture", graphs.capture)

    class Odd:
        output_unit = "nats"

        def __call__(self, y: Tensor, condition: Any) -> Tensor:
            return condition["scale"] * y.square().flatten(1).sum(1)

    y = torch.ones(1, 1, 2, 2, requires_grad=True)
    with recorded.recorded():
        assert recorded.call(Odd(), y, {"scale": 2.0}).item() == 8
    assert graphs.recordings == 0


def test_without_a_gradient_the_network_is_called(pipe: CDRLPipeline, graphs: Graphs) -> None:
    y = torch.randn(2, *pipe.model.image.shape)
    energy = NeuralEnergy(pipe.model.ebm, torch.ones(2, 1).long())
    with torch.no_grad(), recorded.recorded():
        for _ in range(9):
            energy(y, pipe.model.schedule.level(1))
    assert graphs.recordings == 0


@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_only_plain_networks_on_a_gpu_are_recorded(pipe: CDRLPipeline, place: str) -> None:
    assert not recorded._can_record(pipe.model.ebm, torch.ones(1, device=place))
