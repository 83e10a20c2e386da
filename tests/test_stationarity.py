"""Long chains on analytic energies stay at the data; on an energy that leaks they do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor

from cdrl_infer.energies.analytic import GaussianMixtureEnergy
from cdrl_infer.energies.base import Energy, FunctionPotential
from cdrl_infer.likelihood.stationary import ERRORS, LIMIT, STARTS_LIMIT, Drift, judge
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.random import PerImageRandom
from cdrl_infer.schedule import Level, NoiseSchedule
from cdrl_train.cli_eval import main
from cdrl_train.data.image_set import ImageSet
from cdrl_train.evaluation.chains import KINDS, Chains, Starts, run_chains, starts_at_data
from cdrl_train.evaluation.sampling import RealImages
from cdrl_train.evaluation.stationarity import Stationarity

SCHEDULE = NoiseSchedule(num_levels=4, step_rule="curvature", step_size=0.4)
DIM = 12
DATA = GaussianMixtureEnergy(
    [1.0, 2.0], [[0.6] * DIM, [-0.4] * DIM], [[0.2] * DIM, [0.05, 0.4] * (DIM // 2)]
)


class Leaky(Energy):
    """The truth, but lower off the data: less by ``depth ‖y‖² / (4 + ‖y‖²)`` nats times a scale."""

    def __init__(self, depth: float) -> None:
        self.depth = depth

    def at(self, level: Level) -> FunctionPotential:
        truth = DATA.at(level)

        def energy(y: Tensor) -> Tensor:
            size = y.square().sum(1)
            return truth(y) - self.depth * size / (4 + size)

        return FunctionPotential(energy)


def chains(energy: Energy, t: int, kind: str, seed: int = 0, bias: float = 0.0) -> Chains:
    """40 chains of 60 moves from exact draws, and as many from draws that are shifted by ``bias``."""
    level = SCHEDULE.level(t)
    generator = torch.Generator().manual_seed(seed)
    x = DATA.sample(300, generator).float()
    noised = starts_at_data(x, level, PerImageRandom.from_seeds(range(300), "cpu"))
    own = Starts(noised.y[40:80] + bias, noised.x_t[40:80])
    return run_chains(
        energy,
        SCHEDULE,
        t,
        kind,
        Starts(noised.y[:40], noised.x_t[:40]),
        own,
        energies=energy(noised.y, level).double().numpy(),
        moves=60,
        leapfrog_steps=3,
        seeds=range(1000, 1080),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [1, 2, 4])
def test_chains_of_the_true_energy_stay(t: int, kind: str) -> None:
    found = chains(DATA, t, kind)
    judged = found.judged
    assert not judged.fault and not judged.doubt
    assert abs(judged.leak) < 4 * judged.leak_error and judged.leak_error < LIMIT / 2
    assert 0.4 < found.acceptance < 0.9
    assert found.traces.shape == (61, 80) and found.largest.shape == (61,)
    np.testing.assert_allclose(found.traces[0, :40], found.data[:40], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_leaky_energy_drifts_down(kind: str) -> None:
    found = chains(Leaky(40.0), 2, kind)
    judged = found.judged
    assert judged.fault.startswith("the energy is lower off the data than on it: ")
    assert judged.leak < -LIMIT and judged.leak < -4 * judged.leak_error
    assert found.largest[-1] > 1.2 * found.largest[0]


def test_samples_off_the_data_are_seen_before_and_not_after_long_chains() -> None:
    short = chains(DATA, 2, "marginal", bias=2.0)
    before = short.traces[0, ~short.from_data].mean() - short.data.mean()
    gap, error = short.gap()
    assert before > 20 * error and abs(gap) < 4 * error


def test_the_three_figures() -> None:
    """8 moves: the start, four moves that no figure uses, the third and the last quarter of two each."""
    traces = torch.full((9, 6), 77.0, dtype=torch.float64)
    traces[0, :4] = torch.tensor([1.0, 2, 3, 4])
    traces[5:7, :4], traces[7:, :4] = 9.0, torch.tensor([10.0, 10, 10, 14])
    traces[5:7, 4:], traces[7:, 4:] = 15.0, torch.tensor([19.0, 23])
    from_data = torch.arange(6) < 4
    found = judge(traces, from_data, unit=2.0)
    assert found.leak == pytest.approx((11 - 2.5) / 2)
    assert found.leak_error == pytest.approx(np.std([9, 8, 7, 10], ddof=1) / 2 / 2)
    assert found.drift == pytest.approx(6 / 2)  # the chains from samples move more
    assert found.drift_error == pytest.approx(2 / 2)
    assert found.starts == pytest.approx((21 - 11) / 2)
    assert found.starts_error == pytest.approx(np.hypot(2, 1) / 2)
    own_unit = judge(traces, from_data)
    assert own_unit.leak == pytest.approx(8.5 / np.std([1, 2, 3, 4], ddof=1))
    apart = judge(traces, from_data, unit=2.0, same_law=False)
    assert apart.starts == apart.starts_error == 0 and apart.leak == found.leak
    samples = judge(traces[:, 4:], from_data[4:], unit=2.0)
    assert samples.leak == samples.starts == 0 and samples.drift == found.drift
    traces[7] = torch.nan
    assert judge(traces, from_data).fault


@pytest.mark.parametrize(
    ("name", "limit", "words"),
    [
        ("leak", -LIMIT, "lower off the data"),
        ("leak", LIMIT, "is not the density of the data"),
        ("drift", -LIMIT, "mean energy moves by"),
        ("starts", STARTS_LIMIT, "begun at samples end"),
    ],
)
def test_beyond_a_limit_is_a_fault_only_beyond_the_error(
    name: str, limit: float, words: str
) -> None:
    def drift(value: float, error: float) -> Drift:
        still = dict.fromkeys(("drift", "starts", "leak"), 0.0)
        errors = dict.fromkeys(("drift_error", "starts_error", "leak_error"), 0.1)
        return Drift(**{**still, **errors, name: value, f"{name}_error": error})

    within, few = drift(0.9 * limit, 0.01), drift(1.1 * limit, abs(limit))
    sure = drift(1.1 * limit, 1.05 * abs(limit) / ERRORS)
    assert not within.fault and not within.doubt
    assert not few.fault and words in few.doubt
    assert words in sure.fault and not sure.doubt


def test_the_verdict_names_what_leaks(pipe: CDRLPipeline) -> None:
    images = RealImages(ImageSet(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)), "test", 0, 2)
    still, leaks = chains(DATA, 1, "marginal"), chains(Leaky(40.0), 2, "recovery")
    clean = Stationarity(pipe, images, "test images", found=[still])
    assert clean.verdict.startswith("stationary: ")
    both = Stationarity(pipe, images, "test images", found=[still, leaks])
    expected = "not stationary (recovery t = 2: the energy is lower off the data than on it: "
    assert both.verdict.startswith(expected) and "t = 1" not in both.verdict
    assert both.verdict in both.conditions()["chains"] and both.verdict in both.detail()


def test_chains_are_judged_in_deviations_of_the_data() -> None:
    traces = np.zeros((9, 8))
    traces[1:] = 3.0
    traces[:, ::2] += 1.0
    from_data = np.arange(8) < 4
    metric = Chains(1, "marginal", traces[0], traces, from_data, np.zeros(9), 1.0, 1.0)
    expected = judge(torch.from_numpy(traces), torch.from_numpy(from_data), unit=metric.unit)
    assert metric.judged == expected and metric.judged.fault


def test_mixing_tells_chains_that_agree_from_chains_that_do_not() -> None:
    noise = np.random.default_rng(0).normal(size=(201, 8))
    alike = Chains(1, "marginal", noise[0], noise, np.ones(8, bool), noise[:, 0], 1.0, 1.0)
    apart = Chains(
        1, "marginal", noise[0], noise + np.arange(8), np.ones(8, bool), noise[:, 0], 1.0, 1.0
    )
    assert alike.mixing()[0] < 1.02 < 1.5 < apart.mixing()[0]
    assert alike.mixing()[1] > 400 > 50 > apart.mixing()[1]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    path = tmp_path / "grey.npz"
    np.savez(path, train_images=images, test_images=images, test_labels=np.arange(40) % 3)
    return path


def run(*arguments: object) -> Result:
    small = ("--metrics", "stationarity", "-n", 20, "--chains", 3, "--moves", 6)
    return CliRunner().invoke(main, [*map(str, arguments), *map(str, small)])


def test_the_command(folder: Path, data: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(folder, tmp_path / "model"))
    out, plot = tmp_path / "out.json", tmp_path / "chains.png"
    arguments = ("--model", model, "--data", data, "--out", out)
    first = run(*arguments, "--plot", plot, "--update-card")
    assert first.exit_code == 0, first.output
    results = json.loads(out.read_text())
    names = [result["metric"] for result in results["results"]]
    levels = len(names) // 2
    expected = [f"drift-{kind}-{t}" for kind in KINDS for t in range(levels, 0, -1)]
    assert names == [*expected, "stationarity"]
    values = {result["metric"]: result["value"] for result in results["results"]}
    assert values["stationarity"] == max((values[n] for n in expected), key=abs)
    verdict = results["settings"]["verdict"]
    assert verdict in first.stdout
    with Image.open(plot) as picture:
        assert picture.width > picture.height
    card = (model / "README.md").read_text()
    assert "stationarity" in card and "drift-marginal" not in card
    (entry,) = ModelCard(card).data.eval_results or ()
    assert entry.metric_args["verdict"] == verdict
    again = run(*arguments)
    assert json.loads(out.read_text())["results"] == results["results"], again.output


def test_too_few_moves_for_r_hat_are_written_as_unknown(
    folder: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    asked = ("--metrics", "stationarity", "-n", 20, "--chains", 2, "--moves", 2, "--out", out)
    result = CliRunner().invoke(main, [*map(str, ("--model", folder, "--data", data, *asked))])
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["results"][0]["args"]["r_hat"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metrics", "fid", "--plot", "x.png"), "--plot draws the chains of stationarity"),
        (("--metrics", "stationarity", "--chains", 1), "--chains must be at least 2, got 1"),
        (("--metrics", "stationarity", "-n", 30, "--chains", 31), "--chains must be at most n, 30"),
        (("--metrics", "stationarity", "--moves", 0), "--moves"),
    ],
)
def test_bad_input(folder: Path, data: Path, arguments: tuple[object, ...], message: str) -> None:
    start = ("--model", folder, "--data", data)
    result = CliRunner().invoke(main, [*map(str, start), *map(str, arguments)])
    assert result.exit_code == 2 and message in result.output
    assert "Traceback" not in result.output
