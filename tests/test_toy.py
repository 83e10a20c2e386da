"""The checkerboard: its law, its distance from a model, and that training brings a model nearer."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import toy2d
from click.testing import CliRunner
from PIL import Image
from runs import fit, trainer
from torch import Tensor

from cdrl_infer.energies.base import Energy, FunctionPotential
from cdrl_infer.errors import ConfigError, InputError, NumericalError
from cdrl_infer.model import CDRLModel, ImageShape
from cdrl_infer.networks.heads import ResidualInitializer
from cdrl_infer.networks.mlp import MLP, MLPEnergy
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.schedule import Level, NoiseSchedule
from cdrl_train import toy
from cdrl_train.cli import main
from cdrl_train.config import DataConfig
from cdrl_train.data.checkerboard import POINT, checkerboard, draw
from cdrl_train.data.sources import load_images
from cdrl_train.data.stream import BatchStream
from cdrl_train.engine.interrupt import Stopped
from cdrl_train.presets import preset
from cdrl_train.preview import save_samples

SCHEDULE = preset("toy-2d").schedule
N = 100_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_of_shares(masses: Tensor, n: int) -> float:
    """About what the total variation of n exact draws from their own law is, cell by cell."""
    return float((2 * masses * (1 - masses) / (math.pi * n)).sqrt().sum() / 2)


class Bell(Energy):
    """``x ~ N(mean, spread²)`` in both coordinates, as an energy of ``y = m x``."""

    def __init__(self, mean: float, spread: float) -> None:
        self.mean, self.spread = mean, spread

    def at(self, level: Level) -> FunctionPotential:
        def energy(y: Tensor) -> Tensor:
            x = (y / level.scale).flatten(1)
            return (x - self.mean).square().sum(1) / (2 * self.spread**2)

        return FunctionPotential(energy)


class TestTheBoard:
    def test_half_of_all_pixel_pairs_and_each_once(self) -> None:
        pairs = checkerboard().images.reshape(-1, 2).long()
        assert len(pairs) == 2**15 == len(pairs.unique(dim=0))
        dark = torch.zeros(256, 256, dtype=torch.bool)
        dark[pairs[:, 0], pairs[:, 1]] = True
        squares = dark.reshape(4, 64, 4, 64).float().mean((1, 3))
        assert squares.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]] * 2

    def test_what_training_sees_is_uniform_on_the_dark_squares(self) -> None:
        data = load_images("checkerboard")
        stream = BatchStream(data, DataConfig(), 0, "cpu")
        x = stream.next(len(data), generator()).x.reshape(-1, 2)
        assert x.min() >= -1 and x.max() < 1
        row, column = (2 * (x + 1)).floor().long().T
        assert ((row + column) % 2 == 0).all()
        within = 2 * (x + 1) % 1  # of its square
        # Mean ½ and variance 1/12 of a uniform law, to 5 standard errors; one epoch is even steadier.
        assert (within.mean(0) - 0.5).abs().max() < 5 * (1 / 12 / len(x)) ** 0.5
        assert (within.var(0) - 1 / 12).abs().max() < 5 * (1 / 180 / len(x)) ** 0.5
        assert x.square().mean() == pytest.approx(1 / 3, abs=0.01)
        assert preset("toy-2d").ebm["data_variance"] == pytest.approx(1 / 3)

    @pytest.mark.parametrize("t", [1, 2, 4, 6])
    def test_the_truth_is_the_law_of_noised_draws(self, t: int) -> None:
        level = SCHEDULE.level(t)
        truth = toy.true_masses(level)
        x = draw(N, generator())
        assert x.abs().max() <= 1
        noised = level.alpha * x + level.sigma_bar * torch.randn(x.shape, generator=generator(1))
        distance = toy.total_variation(toy.histogram(noised), toy.coarse(truth))
        assert distance < 1.15 * noise_of_shares(toy.coarse(truth), N)
        if t == 1:
            assert float(truth.sum()) == pytest.approx(1, abs=1e-12)

    def test_it_is_known_to_the_command_line_without_a_file(self, tmp_path: Path) -> None:
        config = preset("toy-2d")
        assert config.data.source == "checkerboard"
        assert load_images(config.data.source).fingerprint() == checkerboard().fingerprint()


class TestTotalVariation:
    def test_of_simple_laws(self) -> None:
        p = torch.tensor([[0.5, 0.5], [0.0, 0.0]])
        assert toy.total_variation(p, p) == 0
        assert toy.total_variation(p, p.flip(0)) == 1
        assert toy.total_variation(p, torch.tensor([[0.5, 0.0], [0.5, 0.0]])) == 0.5
        # A fifth of the samples lies in no cell.
        assert toy.total_variation(p, 0.8 * p) == pytest.approx(0.2)

    @pytest.mark.parametrize("t", [2, 6])  # y = m x with m < 1, and m = 1
    def test_of_two_bells_is_that_of_the_textbook(self, t: int) -> None:
        level, spread, apart = SCHEDULE.level(t), 0.3, 0.25
        p, q = (toy.energy_masses(Bell(mean, spread), level) for mean in (0.1, 0.1 + apart))
        # 2 Φ(d/2s) - 1, d the distance of the means in the plane.
        known = math.erf(apart * math.sqrt(2) / (2 * spread) / math.sqrt(2))
        assert toy.total_variation(p, q) == pytest.approx(known, abs=2e-3)
        points = 0.1 + apart + spread * torch.randn(N, 1, 1, 2, generator=generator())
        found, floor = toy.histogram(points), noise_of_shares(toy.coarse(q), N)
        assert toy.total_variation(found, toy.coarse(q)) < 1.15 * floor
        assert toy.total_variation(found, toy.coarse(p)) == pytest.approx(known, abs=floor)

    def test_points_out_of_reach_count(self) -> None:
        points = torch.cat([torch.zeros(3, 1, 1, 2), torch.full((1, 1, 1, 2), 9.0)])
        assert float(toy.histogram(points).sum()) == 0.75

    def test_a_cell_is_where_its_point_is(self) -> None:
        x = torch.tensor([0.31, -1.2])
        cells = toy.histogram(x.reshape(1, 1, 1, 2)).nonzero()[0]
        assert torch.allclose(
            toy.centres(toy.COARSE)[cells].float(), x, atol=toy.EXTENT / toy.COARSE
        )
        peak = toy.energy_masses(Shifted(x), SCHEDULE.level(3)).argmax()
        at = torch.stack([peak // toy.FINE, peak % toy.FINE])
        assert torch.allclose(toy.centres(toy.FINE)[at].float(), x, atol=toy.EXTENT / toy.FINE)


class Shifted(Energy):
    def __init__(self, centre: Tensor) -> None:
        self.centre = centre

    def at(self, level: Level) -> FunctionPotential:
        return FunctionPotential(
            lambda y: 50 * (y.flatten(1) / level.scale - self.centre).square().sum(1)
        )


class TestNetworks:
    def test_an_untrained_energy_is_that_of_a_gaussian(self) -> None:
        network = MLPEnergy(width=8, data_variance=0.7)
        y = torch.randn(6, 1, 1, 2, generator=generator())
        for t in (1, 6):
            level = SCHEDULE.level(t)
            x = (y / level.scale).flatten(1)
            variance = level.alpha**2 * 0.7 + level.sigma_bar**2
            expected = -x.square().sum(1) / (2 * variance)
            torch.testing.assert_close(network(y, network.condition(level)), expected)

    def test_an_untrained_initializer_proposes_x_t(self) -> None:
        network = ResidualInitializer(MLP(width=8))
        x = torch.randn(3, 1, 1, 2, generator=generator())
        assert torch.equal(network(x, network.condition(SCHEDULE.level(2))), x)

    @pytest.mark.parametrize("cls", [MLPEnergy, MLP])
    def test_level_and_label_matter(self, cls: type[MLPEnergy] | type[MLP]) -> None:
        torch.manual_seed(0)
        inner = cls(in_channels=3, num_pixels=4, width=8, num_classes=(2,))
        torch.nn.init.normal_(inner.mlp.head.weight)
        network = ResidualInitializer(inner) if isinstance(inner, MLP) else inner
        y = torch.randn(2, 3, 2, 2)
        base = network(y, network.condition(SCHEDULE.level(2), torch.tensor([[1], [1]])))
        assert base.shape == ((2,) if cls is MLPEnergy else y.shape)
        for level, labels in ((3, [[1], [1]]), (2, [[1], [2]])):
            other = network(y, network.condition(SCHEDULE.level(level), torch.tensor(labels)))
            same = (other == base).flatten(1).all(1) if base.ndim > 1 else other == base
            assert same.tolist() == ([False, False] if level == 3 else [True, False])

    @pytest.mark.parametrize("sizes", [{"width": 0}, {"num_pixels": 0}, {"num_classes": (0,)}])
    def test_absurd_sizes_are_refused(self, sizes: dict[str, object]) -> None:
        for cls in (MLPEnergy, MLP):
            with pytest.raises(ConfigError, match="MLP sizes must be positive"):
                cls(**sizes)
        with pytest.raises(ConfigError, match="data_variance"):
            MLPEnergy(data_variance=0.0)

    def test_images_of_another_size_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="num_pixels is 3, but images have 2 pixels"):
            CDRLModel(MLPEnergy(num_pixels=3), None, NoiseSchedule(), ImageShape(1, 1, 2))


TINY = [
    *("--set", "ebm.width=32", "--set", "ebm.num_blocks=2", "--set", "initializer.width=16"),
    *("--set", "cooperative.langevin_steps=1", "--set", "sampler.langevin_steps=2"),
    *("--set", "warm_start.steps=2", "--set", "cooperative.steps=1"),
]


def test_a_run_without_a_file_ends_in_a_picture_a_number_and_a_model(tmp_path: Path) -> None:
    out = tmp_path / "toy"
    result = CliRunner().invoke(main, ["--preset", "toy-2d", "--out", str(out), *TINY])
    assert result.exit_code == 0, result.output
    assert "step 3: total variation from the checkerboard at level 0: energy 0." in result.output
    with Image.open(out / "model" / "samples.png") as picture:
        levels = preset("toy-2d").schedule.num_levels
        assert picture.width > levels * toy.FINE and picture.height > 3 * toy.FINE
    pipe = CDRLPipeline.from_pretrained(out / "model")
    drawn = pipe(num_images=3, seeds=[0, 1, 2], output_type="pt").images
    assert isinstance(drawn, Tensor) and drawn.shape == (3, 1, 1, 2)
    text = CliRunner().invoke(
        toy2d.main, ["--model", str(out / "model"), "--langevin-steps", "0,1", "--samples", "200"]
    )
    assert text.exit_code == 0, text.output
    rows = [line.split("|") for line in text.output.splitlines()[2:]]
    assert [int(row[3]) for row in rows] == [0, levels]
    assert rows[0][4] == rows[1][4] and rows[0][5] != rows[1][5]  # one energy, other samples


def test_a_short_run_brings_the_energy_nearer(tmp_path: Path) -> None:
    config = preset("toy-2d").override(
        [
            *("schedule.num_levels=2", "warm_start.steps=100", "cooperative.steps=0"),
            *(
                "warm_start.batch_size=128",
                "warm_start.ebm_lr=5e-3",
                "warm_start.lr_warmup_steps=20",
            ),
            *("initializer.width=8", "ema_decay=0.9"),
        ]
    )
    run = trainer(config, tmp_path, data=checkerboard())

    def distance() -> float:
        ebm = run.state.averages["ebm"].module
        model = CDRLModel(ebm, None, config.schedule, POINT)
        return toy.measure(model, num_samples=2, langevin_steps=0)[-1].energy_tv

    before = distance()
    fit(run)
    assert before > 0.35 and distance() < 0.6 * before


def test_measuring_the_same_model_twice_gives_the_same(tmp_path: Path) -> None:
    model = CDRLModel(MLPEnergy(width=8), None, SCHEDULE, POINT)
    first, second = (toy.measure(model, num_samples=500, langevin_steps=3) for _ in range(2))
    assert [level.i for level in first] == [*range(SCHEDULE.num_levels)][::-1]
    assert [level.samples_tv for level in first] == [level.samples_tv for level in second]
    other = toy.measure(model, num_samples=500, langevin_steps=3, seed=1)
    assert other[-1].samples_tv != first[-1].samples_tv
    # An untrained energy is a Gaussian: right where noise is all there is, wrong on the board.
    assert first[0].energy_tv < 0.02 and first[-1].energy_tv > 0.4


def test_other_models_cannot_be_measured(model: CDRLModel) -> None:
    with pytest.raises(InputError, match=r"images \(1, 1, 2\), got \(1, 8, 8\) and 1 attributes"):
        toy.measure(model)


def test_chains_that_leave_the_finite_numbers_are_told(tmp_path: Path) -> None:
    network = MLPEnergy(width=8)
    torch.nn.init.constant_(network.mlp.head.bias, math.nan)
    broken = CDRLModel(network, None, SCHEDULE, POINT)
    torch.nn.init.constant_(network.mlp.stem.bias, math.inf)
    with pytest.raises(NumericalError, match="are not finite"):
        toy.measure(broken, num_samples=4, langevin_steps=1)


def test_the_picture_has_x1_to_the_right_and_x2_upwards() -> None:
    masses = torch.zeros(toy.FINE, toy.FINE, dtype=torch.float64)
    masses[-1, 0] = 1.0  # large x₁, small x₂
    pixels = np.asarray(toy.panel(masses, 1.0))
    assert pixels[-1, -1] == 0 and (pixels < 255).sum() == 1
    block = np.asarray(toy.panel(toy.coarse(masses), 1 / 16))
    assert (block < 255).sum() == 16 and block[-1, -1] == 0


def test_a_figure_is_abandoned_at_the_next_level(tmp_path: Path) -> None:
    run = trainer(preset("toy-2d"), tmp_path, data=checkerboard())
    answers = iter([False, False, True])
    with pytest.raises(Stopped):
        save_samples(run, answers.__next__)
    assert next(answers, None) is None and not list(tmp_path.rglob("*.png"))
