"""benchmarks/peers.py: laws and rates of samplers, a DDPM that goes on exactly, and tiny runs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peers
import peers_ddpm
import peers_ddpm_step
import peers_pictures
import peers_samplers
import peers_train
import pytest
import torch
from classifier import Recipe
from click.testing import CliRunner
from peers_ddpm import DDPMRecipe, Diffusion
from peers_samplers import Chains, Efficiency, efficiency
from peers_targets import double_well, gaussian
from turns import Timed, in_turns

from cdrl_infer.errors import InputError
from cdrl_infer.model import Attribute, CDRLModel
from cdrl_infer.storage.folder import save_model
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import load_images
from cdrl_train.evaluation.efficientnet import EfficientNetLite0


def lacks(package: str) -> bool:
    return importlib.util.find_spec(package) is None


needs_diffusers = pytest.mark.skipif(lacks("diffusers"), reason="pip install 'cdrl[peers]'")
needs_torchebm = pytest.mark.skipif(lacks("torchebm"), reason="pip install 'cdrl[peers]'")
needs_arviz = pytest.mark.skipif(lacks("arviz_stats"), reason="pip install 'cdrl[peers]'")
TINY = DDPMRecipe(widths=(8, 8), batch_size=4, warmup_steps=2)
CLASSES = 3


# -- samplers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [gaussian(), double_well()], ids=lambda t: t.name)
def test_the_variance_and_the_draws_of_a_target_are_those_of_its_energy(target: Any) -> None:
    draws = target.draw(200_000, torch.Generator().manual_seed(0)).double()
    assert draws.square().mean(0).tolist() == pytest.approx(target.variance.tolist(), rel=0.02)
    # Integration by parts: E[y ∂E/∂y] = 1 in every coordinate, for the true density alone.
    y = draws.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(target.energy(y).sum(), y)
    assert (draws * grad).mean(0).tolist() == pytest.approx([1.0] * draws.shape[1], abs=0.02)
    curvature = torch.autograd.functional.hessian(
        lambda x: target.energy(x[None]).sum(),
        torch.ones(draws.shape[1]) if "well" in target.name else torch.zeros(draws.shape[1]),
    )
    assert float(torch.linalg.eigvalsh(curvature).max()) == pytest.approx(target.stiffness)


@needs_arviz
def test_the_bias_of_langevin_is_that_of_its_step() -> None:
    """On a quadratic energy the variance is too large by 1 / (1 - s² c / 4)."""
    target, step = gaussian(dim=2), 1.0
    sampler = peers_samplers.own_samplers(2)[0]
    chains = peers_samplers.run_chains(sampler, target, step / target.stiffness, 400, 400, 0)
    assert chains.calls == 400
    found = efficiency(Timed(2.0, chains), target)
    assert found.bias == pytest.approx(1 / (1 - step / 4) - 1, abs=0.03)
    assert found.seconds == 2 / 400


@needs_arviz
def test_independent_draws_are_worth_their_number() -> None:
    target = gaussian(dim=2)
    points = target.draw(10 * 1000, torch.Generator().manual_seed(0)).reshape(10, 1000, 2)
    found = efficiency(Timed(5.0, Chains(points, 1000)), target)
    assert found.first == pytest.approx(2000, rel=0.1)
    assert found.second == pytest.approx(2000, rel=0.1)
    assert abs(found.bias) < 0.05
    points[0, -1] = math.inf
    lost = efficiency(Timed(5.0, Chains(points, 1000)), target)
    assert lost[:2] == (0, 0) and math.isnan(lost.bias)


@needs_torchebm
@pytest.mark.parametrize("own", peers_samplers.PAIRS)
def test_a_pair_makes_the_same_chains_in_law(own: str) -> None:
    """Variances of equal steps agree, where the step is so long that another one would not."""
    target, moments = gaussian(condition=4, dim=2), {}
    samplers = [*peers_samplers.own_samplers(3), *peers_samplers.peer_samplers(3)]
    for sampler in samplers:
        if sampler.name in (own, peers_samplers.PAIRS[own]):
            chains = peers_samplers.run_chains(sampler, target, 1.5 / target.stiffness, 60, 6000, 1)
            late = chains.points[:, 10:]
            moved = (late[:, 1:] - late[:, :-1]).square().mean((0, 1))
            moments[sampler.name] = [*late.square().mean((0, 1)).tolist(), *moved.tolist()]
    mine, other = moments.values()
    assert mine == pytest.approx(other, rel=0.03)


def test_the_best_step_is_the_fastest_of_the_good_ones() -> None:
    def one(rate: float, bias: float) -> list[Efficiency]:
        return [Efficiency(rate, 2 * rate, 1.0, 1.0, bias)] * 2

    found = {0.1: one(5, 0.01), 0.2: one(9, -0.04), 0.5: one(90, 0.2), 3.0: one(0, math.nan)}
    assert peers_samplers.best_step(found) == 0.2
    assert peers_samplers.best_step({0.5: one(90, 0.2)}) is None
    assert "diverges" in peers_samplers.row("x", 3.0, found[3.0])


def test_work_is_timed_in_turns() -> None:
    order: list[str] = []

    def work(name: str) -> int:
        order.append(name)
        assert torch.get_num_threads() == 1
        return len(order)

    found = in_turns({name: lambda n=name: work(n) for name in "ab"}, 2)
    assert "".join(order) == "abbaab"
    assert [one.result for one in found["a"]] == [4, 5]


@needs_arviz
@needs_torchebm
def test_the_command_for_samplers(tmp_path: Path) -> None:
    options = ["--chains", "4", "--gradients", "100", "--rounds", "2", "--steps", "0.5,9"]
    out = tmp_path / "samplers.json"
    result = CliRunner().invoke(peers.main, ["samplers", *options, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("| leimkuhler-matthews |") == 4
    written = json.loads(out.read_text())["targets"]
    assert len(written) == 2
    for each in written.values():
        assert len(each) == 6 and each["langevin"][1]["rounds"][0]["bias"] is None
    refused = CliRunner().invoke(peers.main, ["samplers", *options, "--equal", "1"])
    assert refused.exit_code == 2 and "--equal must be one of --steps" in refused.stderr


# -- pictures ------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> str:
    """24 training and 12 test images, brighter with the class."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 24), ("test", 12)):
        labels = np.arange(count) % CLASSES
        noise = rng.integers(0, 60, (count, 8, 8))
        arrays[f"{split}_images"] = (noise + 90 * labels[:, None, None]).astype(np.uint8)
        arrays[f"{split}_labels"] = labels
    np.savez(tmp_path / "tiny.npz", **arrays)
    return str(tmp_path / "tiny.npz")


@pytest.fixture
def images(data: str) -> ImageSet:
    return load_images(data, "train")


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """diffusers and its requirements announce changes of their own with warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trained(images: ImageSet, folder: Path, steps: int, break_at: int | None = None) -> Any:
    """Train to the end, or until a break after a checkpoint."""

    def tell(text: str) -> None:
        if text.startswith(f"step {break_at} "):
            raise KeyboardInterrupt

    folder.mkdir(exist_ok=True)
    state = peers_ddpm.resume(folder, TINY, images, steps)
    return peers_ddpm.train(state, images, folder, math.inf, 0, "float32", tell)


@needs_diffusers
def test_a_run_that_goes_on_is_the_same_run(images: ImageSet, tmp_path: Path) -> None:
    whole = trained(images, tmp_path / "whole", 6)
    with pytest.raises(KeyboardInterrupt):
        trained(images, tmp_path / "parts", 6, break_at=3)
    assert peers_ddpm.load(tmp_path / "parts").steps == 3
    parts = trained(images, tmp_path / "parts", 6)
    assert parts.steps == whole.steps == 6
    for name in ("network", "average"):
        pairs = zip(
            getattr(whole, name).parameters(), getattr(parts, name).parameters(), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)
    assert not all(
        torch.equal(a, b)
        for a, b in zip(whole.network.parameters(), whole.average.parameters(), strict=True)
    )
    with pytest.raises(InputError, match="holds a run with total 6, expected 7"):
        peers_ddpm.resume(tmp_path / "parts", TINY, images, 7)
    with pytest.raises(InputError, match="holds no DDPM"):
        peers_ddpm.load(tmp_path)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [peers_ddpm_step.rate_at(step, 102, 2) for step in range(102)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[52] == pytest.approx(0.5) and rates[101] < 0.001
    assert rates[2:] == sorted(rates[2:], reverse=True)


@needs_diffusers
def test_operations_are_counted_from_the_layers() -> None:
    """Twice the batch has twice the operations; the backward pass has about two forward passes."""
    one = peers_ddpm.step_flops(TINY, (1, 8, 8), CLASSES)
    twice = peers_ddpm.step_flops(dataclasses.replace(TINY, batch_size=8), (1, 8, 8), CLASSES)
    assert twice == 2 * one
    network, calls = peers_ddpm.build(TINY, (1, 8, 8), CLASSES), 0

    def count(layer: Any, inputs: Any, output: torch.Tensor) -> None:
        nonlocal calls
        calls += 2 * output.numel() * layer.weight[0].numel()

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    zeros = torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        network(torch.zeros(4, 1, 8, 8), zeros, zeros)
    assert 2.7 * calls < one < 3.1 * calls


@needs_diffusers
@pytest.mark.parametrize("ancestral", [False, True])
def test_a_sample_depends_on_its_seed_and_its_label_alone(
    images: ImageSet, ancestral: bool
) -> None:
    state = peers_ddpm.start(TINY, images, 1)
    torch.manual_seed(0)
    for parameter in state.average.parameters():  # so that labels matter from the start
        torch.nn.init.normal_(parameter, std=0.1)
    steps = 20 if ancestral else 5
    together = Diffusion(state, steps, ancestral, batch_size=3).draw(0, 0, 4)
    assert together.shape == (4, 1, 8, 8)
    alone = Diffusion(state, steps, ancestral, batch_size=1).draw(0, 2, 4)
    assert np.abs(together[2:].astype(int) - alone).mean() < 0.5
    assert np.abs(together[:2].astype(int) - alone).mean() > 5


@needs_diffusers
def test_ddim_of_the_true_noise_finds_the_image(images: ImageSet) -> None:
    """If the network gives exactly the noise that makes x of 0.5, every number of steps ends at 0.5."""
    state = peers_ddpm.start(TINY, images, 1)
    schedule = peers_ddpm.diffusers().DDPMScheduler(num_train_timesteps=1000)

    class Exact(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> Any:
            share = schedule.alphas_cumprod[t]
            noise = (x - share.sqrt() * 0.5) / (1 - share).sqrt()
            return type("Output", (), {"sample": noise})

    drawn = Diffusion(state._replace(average=Exact()), 10).draw(0, 0, 2)
    assert np.abs(drawn.astype(int) - round(1.5 * 127.5)).max() <= 1


@needs_diffusers
def test_the_commands_for_pictures(
    model: CDRLModel, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)[..., None, None]

    stub = EfficientNetLite0(network, "stub", torch.device("cpu"))
    monkeypatch.setattr(EfficientNetLite0, "load", lambda weights, device: stub)
    monkeypatch.setattr(peers_train, "DDPMRecipe", lambda: TINY)
    evaluate, recipe = peers_pictures.evaluate, Recipe(widths=(4,), epochs=1, batch_size=8)
    monkeypatch.setattr(peers_pictures, "evaluate", lambda **o: evaluate(**o, recipe=recipe))
    attribute = Attribute("class", tuple(map(str, range(CLASSES))))
    save_model(dataclasses.replace(model, labels=(attribute,)), tmp_path / "model")
    run, shared = str(tmp_path / "run"), ["--model", str(tmp_path / "model"), "--data", data]

    def call(*options: str) -> Any:
        return CliRunner().invoke(peers.main, [options[0], *shared, *options[1:]])

    unknown = call("train", "--out", run)
    assert unknown.exit_code == 2 and "give --petaflop" in unknown.stderr
    flops = peers_ddpm.step_flops(TINY, (1, 8, 8), CLASSES)
    result = call("train", "--petaflop", f"{2.5 * flops / 1e15}", "--out", run)
    assert result.exit_code == 0, result.output
    assert "100.0 % of the steps" in result.stdout and "2 steps of 4 images" in result.stderr
    options = ["--ddpm", run, "--langevin-steps", "0", "--ddim-steps", "2", "--n", "6"]
    options += ["--seeds", "2", "--rounds", "2", "--timed-images", "2", "--batch-size", "4"]
    options += ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "pictures.json")]
    result = call("pictures", *options, "--figure", str(tmp_path / "curves.png"))
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "pictures.json").read_text())
    assert [one["name"] for one in written["results"]] == ["the model, K = 0", "DDIM, 2 steps"]
    for one in written["results"]:
        assert len(one["seconds"]) == 2 and min(one["seconds"]) > 0
        assert len(one["frechet"]["distance"]) == 2 and one["name"] in result.stdout
    assert written["ddpm"]["training_flops"] == 2 * flops and "ONLY" not in result.stdout
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
