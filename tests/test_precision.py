"""Sampling in bfloat16: the error of a gradient, the bound on the pictures, and what stays float32."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from conftest import CLASSES, make_model

from cdrl_infer import device as device_module
from cdrl_infer import options as options_module
from cdrl_infer.cli.sample import main
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import InputError
from cdrl_infer.images import read_images
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.pipeline import CDRLPipeline

# Of the bundled fashion-mnist; docs/control.md has what was measured.
GRADIENT = {
    1: 0.06,
    2: 0.012,
    3: 0.006,
    4: 0.004,
    5: 0.003,
    6: 0.002,
}  # relative error, by transition
MEAN, MOST = 4.0, 64.0  # grey levels: of an image on average, of any pixel


@pytest.fixture(scope="module")
def bundled() -> CDRLPipeline:
    return CDRLPipeline.from_pretrained()


def test_the_error_of_the_gradient_is_within_its_bound(bundled: CDRLPipeline) -> None:
    model, count = bundled.model, 6
    x = torch.as_tensor(bundled(num_images=count, seeds=0, output_type="pt").images)
    x = 2 * read_images(x, model.image.shape, resize=False, grey=False) - 1
    labels = torch.arange(count)[:, None] + 1
    generator = torch.Generator().manual_seed(0)
    for t, bound in GRADIENT.items():
        level = model.schedule.level(t)
        noise = torch.randn(x.shape, generator=generator)
        y = level.scale * (level.alpha * x + level.sigma_bar * noise)
        potential = NeuralEnergy(model.ebm, labels).at(level)
        _, exact = potential.value_and_grad(y)
        with torch.autocast("cpu", torch.bfloat16):
            _, low = potential.value_and_grad(y)
        error = (low - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
        assert 0 < error.max() < bound, t


def test_pictures_stay_within_their_bound(bundled: CDRLPipeline) -> None:
    call = {"num_images": 6, "seeds": 0, "output_type": "pt"}
    exact, low = (bundled(**call, precision=p) for p in ("float32", "bfloat16"))
    difference = 255 * (torch.as_tensor(exact.images) - torch.as_tensor(low.images)).abs()
    assert 0 < difference.flatten(1).mean(1).max() < MEAN
    assert difference.max() < MOST
    assert (exact.energies - low.energies).abs().max() < 16


def test_what_stays_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The energies that are told, and the steps; the model's networks compute in bfloat16."""
    pipe = CDRLPipeline(make_model(CLASSES))
    seen: list[torch.dtype] = []
    stem = pipe.model.ebm.backbone.stem
    stem.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    out = pipe(num_images=1, seeds=0, precision="bfloat16", output_type="pt")
    steps = 3 * 2  # levels, Langevin steps
    assert seen == [torch.bfloat16] * steps + [torch.float32]
    assert out.images.dtype == out.energies.dtype == torch.float32


def test_auto_takes_what_is_faster_but_not_where_it_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(CLASSES)
    for faster in ("float32", "bfloat16"):
        monkeypatch.setattr(device_module, "fastest_precision", lambda device, f=faster: f)
        options = options_module.SamplingOptions(precision="auto")
        assert options.sampler(model).precision == faster
        options = options_module.SamplingOptions(precision="auto", kernel=Langevin(0.5))
        assert options.sampler(model).precision == faster
        options = options_module.SamplingOptions(precision="auto", kernel="mala")
        assert options.sampler(model).precision == "float32"


def test_mistakes(folder: str) -> None:
    pipe = CDRLPipeline(make_model(CLASSES))
    with pytest.raises(InputError, match=r"precision must be .*float32.*got 'half'"):
        pipe(precision="half")
    with pytest.raises(InputError, match="HMC decides by differences of energies"):
        pipe(precision="bfloat16", kernel="hmc")


def test_the_command_takes_it(folder: str, tmp_path: str) -> None:
    call = ["--model", str(folder), "-n", "1", "--out", f"{tmp_path}/a.png", "--precision"]
    assert CliRunner().invoke(main, [*call, "bfloat16"]).exit_code == 0
    wrong = CliRunner().invoke(main, [*call, "half"])
    assert wrong.exit_code == 2 and "'half' is not one of" in wrong.output
