"""The model that comes with the package: it loads, and it draws clothes, not noise."""

from __future__ import annotations

import copy
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor

from cdrl_infer.drawing import CDRLPipelineOutput
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import ConfigError, NumericalError
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.folder import (
    OPTIONAL,
    bundled_models,
    find_model,
    load_model,
    model_files,
)

LABELS = ["Trouser", "Sneaker", "Bag"] * 8


@pytest.fixture(scope="module")
def bundled() -> CDRLPipeline:
    return CDRLPipeline.from_pretrained()


@pytest.fixture(scope="module")
def drawn(bundled: CDRLPipeline) -> CDRLPipelineOutput:
    return bundled(class_labels=LABELS, seeds=range(len(LABELS)), output_type="pt")


def of_class(drawn: CDRLPipelineOutput, name: str) -> Tensor:
    """(n, 28, 28) in [0, 1]."""
    assert isinstance(drawn.images, Tensor) and drawn.labels is not None
    return drawn.images[[k for k, label in enumerate(drawn.labels) if label == name], 0]


def test_what_is_in_the_folder(bundled: CDRLPipeline) -> None:
    assert "fashion-mnist" in bundled_models()
    assert bundled.name == "fashion-mnist"
    assert bundled.model.image.shape == (1, 28, 28)
    (attribute,) = bundled.model.labels
    assert len(attribute.values) == 10
    assert {"T-shirt/top", "Trouser", "Sneaker", "Bag", "Ankle boot"} <= set(attribute.values)
    assert bundled.model.training
    files = [file for file in find_model().rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 6e6
    card = bundled.model.model_card
    assert card is not None
    for word in ("Fashion-MNIST", "MIT", "cdrl-train", "https://arxiv.org/abs/2309.05153"):
        assert word in card
    assert bundled.model.samples is not None and "](samples.png)" in card
    names = {file.relative_to(find_model()).as_posix() for file in files}
    assert names | set(OPTIONAL) == set(model_files())


def test_statistics_are_of_their_weights_and_no_others() -> None:
    models = {name: load_model(find_model(name)) for name in bundled_models()}
    del models["toy-2d"]  # not calibrated
    for name, model in models.items():
        assert model.statistics is not None
        model.statistics.check_weights(model)
        rounded = copy.deepcopy(model)
        for network in (rounded.ebm, rounded.initializer):
            network.bfloat16().float()
        model.statistics.check_weights(rounded)
        for other in (other for key, other in models.items() if key != name):
            with pytest.raises(ConfigError, match="belong to other weights"):
                model.statistics.check_weights(other)


def test_the_hub_reads_the_card_and_its_figures(bundled: CDRLPipeline) -> None:
    card = ModelCard(str(bundled.model.model_card))
    data: Any = card.data
    assert (data.library_name, data.pipeline_tag) == ("cdrl", "unconditional-image-generation")
    assert (data.license, data.datasets) == ("mit", ["fashion_mnist"])
    assert data.model_name == "fashion-mnist"
    table = next(line for line in card.text.splitlines() if line.startswith("| **K = 5"))
    share, near, _ = [float(x) for x in re.findall(r"(?<=\*\*)\d+\.\d(?= ±)", table)]
    more = next(line for line in card.text.splitlines() if line.startswith("| K = 15"))
    figures = {(r.metric_type, r.metric_args.get("langevin_steps")): r for r in data.eval_results}
    chains, bits = figures.pop(("stationarity", None)), figures.pop(("bits-per-dim", None))
    drifts = re.findall(r"[+-]\d\.\d\d", card.text.split("drift by these")[1].split("limit")[0])
    assert len(drifts) == 12 and chains.metric_value == max(abs(float(drift)) for drift in drifts)
    assert f"a bound of {bits.metric_value} ± 0.022 bits/dim" in card.text
    stored = bundled.model.normalisers
    assert stored is not None
    (entry,) = stored.entries
    assert bits.metric_args["level"] == entry.lowest == 2 and entry.verdict(2) == "sound"
    assert {key: figure.metric_value for key, figure in figures.items()} == {
        ("recognised-share", 5): share,
        ("frechet-efficientnet-lite0", 5): near,
        ("frechet-efficientnet-lite0", 15): float(more.split(" | ")[2]),
    }
    for figure in figures.values():
        assert {"n", "extractor", "resize", "reference"} <= set(figure.metric_args)


def test_samples_are_finite_in_range_and_use_it(drawn: CDRLPipelineOutput) -> None:
    images = drawn.images
    assert isinstance(images, Tensor)
    assert images.min() >= 0 and images.max() <= 1
    assert drawn.energies.isfinite().all()
    assert (images.amax(dim=(1, 2, 3)) > 0.5).all()
    corners = images[:, 0, ::27, ::27]
    assert corners.mean() < 0.05  # the ground is black
    assert 0.1 < images.mean() < 0.6


def test_more_steps_at_the_last_level_stay_where_few_end(
    bundled: CDRLPipeline, drawn: CDRLPipelineOutput
) -> None:
    """An energy that leaks is lower off the data: chains of 60 steps would end far below those of 5."""
    longer = bundled(
        class_labels=LABELS,
        seeds=range(len(LABELS)),
        langevin_steps=(5, 5, 5, 5, 5, 60),
        output_type="pt",
    )
    fall = drawn.energies - longer.energies
    assert float(fall.mean()) < float(drawn.energies.std())


def test_samples_are_smooth_as_noise_is_not(drawn: CDRLPipelineOutput) -> None:
    """``E (x_i - x_j)² / (2 Var x)`` of neighbours: 1 for white noise."""
    images = drawn.images
    assert isinstance(images, Tensor)
    ratio = images.diff(dim=3).square().mean() / (2 * images.var())
    assert ratio < 0.3


def test_classes_have_their_shapes(drawn: CDRLPipelineOutput) -> None:
    trouser, sneaker, bag = (of_class(drawn, name) for name in ("Trouser", "Sneaker", "Bag"))
    top = slice(0, 7)
    assert sneaker[:, top].mean() < 0.1 < trouser[:, top].mean()  # a shoe stands at the bottom
    side = slice(1, 5)
    assert trouser[:, 8:24, side].mean() < 0.1 < bag[:, 8:24, side].mean()  # a bag is wide


def test_same_seed_differs_by_class_and_class_by_seed(drawn: CDRLPipelineOutput) -> None:
    sneakers = of_class(drawn, "Sneaker")
    distances = torch.pdist(sneakers.flatten(1))
    assert distances.min() > 1  # no mode collapse: every pair differs


def test_energy_prefers_samples_to_noise(bundled: CDRLPipeline, drawn: CDRLPipelineOutput) -> None:
    images = drawn.images
    assert isinstance(images, Tensor)
    level = bundled.model.schedule.level(1)
    labels = torch.zeros(len(images), 1, dtype=torch.int64)
    energy = NeuralEnergy(bundled.model.ebm, labels)
    generator = torch.Generator().manual_seed(0)

    def nats(unit: Tensor) -> Tensor:
        noise = torch.randn(unit.shape, generator=generator)
        x = level.alpha * (2 * unit - 1) + level.sigma_bar * noise
        with torch.no_grad():
            return energy(x * level.scale, level)

    uniform = torch.rand(images.shape, generator=generator)
    assert nats(images).max() < nats(uniform).min()


def test_an_image_does_not_depend_on_its_batch(
    bundled: CDRLPipeline, drawn: CDRLPipelineOutput
) -> None:
    parts = bundled(class_labels=LABELS[:6], seeds=range(6), output_type="pt", batch_size=4).images
    assert isinstance(parts, Tensor) and isinstance(drawn.images, Tensor)
    assert (parts - drawn.images[:6]).abs().max() <= 1 / 255


def test_refining_and_unconditional_sampling_work(bundled: CDRLPipeline) -> None:
    for steps in (0, None):
        out = bundled(
            num_images=4, class_labels=[None], seeds=0, langevin_steps=steps, output_type="pt"
        )
        assert isinstance(out.images, Tensor)
        assert out.labels == [None] * 4
        assert out.images.diff(dim=3).square().mean() / (2 * out.images.var()) < 0.5


@pytest.mark.slow
def test_64_images_from_a_cold_shell_in_20_seconds(tmp_path: Path) -> None:
    path = os.pathsep.join(
        filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])
    )
    code = "from cdrl_infer.cli.sample import main; main()"
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, "--out", "samples.png"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        check=True,
    )
    assert time.perf_counter() - start <= 20
    with Image.open(tmp_path / "samples.png") as image:
        assert image.width > image.height > 300


def test_clothes_have_fewer_bits_than_noise(
    bundled: CDRLPipeline, drawn: CDRLPipelineOutput
) -> None:
    """By level 2, the lowest that is sound; the bound of real test images is 3.56 bits/dim."""
    black = drawn.images * (drawn.images > 0.05)  # real ones are black where samples nearly are
    out, raw = (bundled.log_likelihood(each, draws=1) for each in (black, drawn.images))
    assert (out.level, out.verdict) == (2, "sound")
    assert 1.5 < float(out.bits_per_dim.mean()) < 5 and bool((out.log_prob > raw.log_prob).all())
    assert bool((out.lower < out.upper).all() and (out.normaliser_error < 2).all())
    noise = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert bool((bundled.log_likelihood(noise, draws=1).bits_per_dim > 8).all())
    with pytest.raises(NumericalError, match=r"contradict .*; density='level-2' works"):
        bundled.log_likelihood(drawn.images, density="level-0")


def test_the_normalisers_of_the_plane_are_those_of_a_grid() -> None:
    """log Z of every level of `toy-2d`: within three standard errors of a sum over cells."""
    pipe = CDRLPipeline.from_pretrained("toy-2d")
    model, stored = pipe.model, pipe.model.normalisers
    assert stored is not None
    stored.check_weights(model)
    (entry,) = stored.entries
    assert entry.verdict() == "sound"
    cells = (torch.arange(200) + 0.5) / 200 * 10 - 5
    grid = torch.cartesian_prod(cells, cells).reshape(-1, 1, 1, 2)
    energy = NeuralEnergy(model.ebm)
    with torch.no_grad():
        for k in range(model.schedule.num_levels):
            values = -energy(grid, model.schedule.level(k + 1)).double()
            truth = float(values.logsumexp(0)) + 2 * math.log(10 / 200)
            assert abs(entry.log_z[k] - truth) < 3 * entry.error[k], (k, entry.log_z[k], truth)
            assert entry.lower[k] < truth < entry.upper[k]
