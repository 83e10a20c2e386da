"""Models of points in the plane: what they draw is a scatter plot, not pictures of two pixels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cdrl_infer.cli.sample import main
from cdrl_infer.images import scatter, to_points
from cdrl_infer.images.plane import EXTENT, HIGH, LOW, SIDE
from cdrl_infer.model import CDRLModel, ImageShape, SamplerDefaults
from cdrl_infer.networks.heads import ResidualInitializer
from cdrl_infer.networks.mlp import MLP, MLPEnergy
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.schedule import NoiseSchedule


@pytest.fixture(scope="module")
def plane() -> CDRLPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = (
            MLPEnergy(num_pixels=2, width=16),
            ResidualInitializer(MLP(num_pixels=2, width=16)),
        )
    return CDRLPipeline(
        CDRLModel(
            *networks,
            schedule=NoiseSchedule(num_levels=2),
            image=ImageShape(1, 1, 2),
            sampler=SamplerDefaults(langevin_steps=1),
        ),
        "plane",
    )


def pixel_of(x: float, y: float) -> tuple[int, int]:
    """Row and column of a point, by the definition: x goes right, y goes up."""
    return round((EXTENT - y) / (2 * EXTENT) * (SIDE - 1)), round(
        (x + EXTENT) / (2 * EXTENT) * (SIDE - 1)
    )


def test_points_are_where_they_belong() -> None:
    points = torch.tensor([[0.75, -0.25], [-0.5, 0.5], [9.0, 9.0]])
    pixels = np.asarray(scatter(points, torch.tensor([-3.0, 2.0, 0.0])))
    assert tuple(pixels[pixel_of(0.75, -0.25)]) == LOW
    assert tuple(pixels[pixel_of(-0.5, 0.5)]) == HIGH
    assert tuple(pixels[pixel_of(0.0, 0.0)]) == (255, 255, 255)
    same = np.asarray(scatter(points, torch.ones(3)))
    assert tuple(same[pixel_of(-0.5, 0.5)]) == LOW


def test_a_grid_of_points_is_a_scatter_plot(plane: CDRLPipeline) -> None:
    out = plane(num_images=20, seeds=0, output_type="pt")
    assert isinstance(out.images, torch.Tensor)
    points = to_points(out.images)
    assert torch.equal(points, 2 * out.images.reshape(20, 2) - 1)
    pixels = np.asarray(out.grid())
    lowest = points[out.energies.argmin()].tolist()
    assert pixels.shape == (SIDE, SIDE, 3)
    assert (pixels[pixel_of(*lowest)] != 255).any()
    pictures = plane(num_images=20, seeds=0).images
    assert isinstance(pictures, list)
    assert (to_points(pictures) - points).abs().max() <= 1 / 255 + 1e-6
    array = plane(num_images=20, seeds=0, output_type="np").images
    assert torch.equal(to_points(array), points)
    assert "blue: low energy" in str(out._repr_html_())
    assert str(out._repr_html_()).count("<img") == 1


def test_the_command_writes_scatter_plots(
    plane: CDRLPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plane.save_pretrained("plane")
    call = ["--model", "plane", "-n", "30", "--seed", "0"]
    result = CliRunner().invoke(main, [*call, "--out", "a.png", "--trajectory", "a.gif"])
    assert result.exit_code == 0, result.output
    assert "a.png: 30 images of plane, one scatter plot, seed 0" in result.output
    with Image.open("a.png") as picture:
        assert picture.size == (SIDE, SIDE)
        expected = plane(num_images=30, seeds=0).grid()
        assert (np.asarray(picture) != 255).any(2).sum() == (np.asarray(expected) != 255).any(
            2
        ).sum()
    with Image.open("a.gif") as film:
        assert film.n_frames == 2 + 2 * 2 and film.width >= SIDE
    result = CliRunner().invoke(main, [*call, "--out", "many/"])
    assert result.exit_code == 2
    assert "plane draws points in the plane" in result.output and "--out FILE.png" in result.output
    assert sorted(os.listdir()) == ["a.gif", "a.png", "plane"]
