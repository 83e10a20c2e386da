"""A VAE with a self-normalised prior: the bound against sums and integrals, draws, and planted errors."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import snelbo
import torch
from click.testing import CliRunner
from runs import fit, images, trainer
from torch import Tensor

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import ConfigError, InputError
from cdrl_infer.likelihood.compute import compute
from cdrl_infer.model import CDRLModel, ImageShape
from cdrl_infer.networks.vae import VAEEnergy, bernoulli, gaussian
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.proposals import DistributionProposal
from cdrl_infer.random import BatchRandom
from cdrl_infer.scoring.reference import measure
from cdrl_infer.storage.folder import load_model, save_model
from cdrl_train.config import TrainConfig
from cdrl_train.data.stream import Batch
from cdrl_train.export import to_model
from cdrl_train.objectives import Losses, Models
from cdrl_train.objectives.snelbo import SelfNormalisedELBO, binarised
from cdrl_train.presets import preset

SCHEDULE = preset("snl-vae-mnist").schedule
LEVEL = SCHEDULE.level(1)
PIXELS = 3
LATENTS = torch.linspace(-8, 8, 4001)[:, None]  # the values of a single z
STEP = math.log(16 / 4000)
COUNT = 20_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vae(prior: str = "energy") -> VAEEnergy:
    """One latent value, three pixels, and an f that is not 0."""
    torch.manual_seed(2)
    made = VAEEnergy(1, PIXELS, 1, 8, 1, prior, prior_width=16, components=2)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in (*made.encoder.parameters(), *made.decoder.parameters()):
            parameter.mul_(2)
        if made.prior is not None:
            made.prior.mlp.head.weight.normal_(std=0.4)
            made.prior.mlp.head.bias.fill_(2.0)
    return made.requires_grad_(True)


def every_image() -> Tensor:
    """(8, 3) all black and white images."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=PIXELS)))


def log_prior(network: VAEEnergy) -> Tensor:
    """``log p(z)`` on the grid, normalised there, (4001,)."""
    values = gaussian(LATENTS) + network.tilt(LATENTS, network.condition(LEVEL))
    return values - values.logsumexp(0) - STEP


def log_z(network: VAEEnergy) -> float:
    """The log-normaliser of ``f(z) - b``, by the grid."""
    values = gaussian(LATENTS) + network.tilt(LATENTS, network.condition(LEVEL))
    return float(values.logsumexp(0)) + STEP


def log_likelihoods(network: VAEEnergy) -> Tensor:
    """``log p(x)`` of every image, by the grid."""
    x = every_image()
    joint = [bernoulli(row.expand(len(LATENTS), -1), network.decode(LATENTS)) for row in x]
    return (torch.stack(joint) + log_prior(network)).logsumexp(1) + STEP


def exact_bounds(network: VAEEnergy) -> Tensor:
    """The evidence lower bound of every image, by the grid."""
    found = []
    for row in every_image():
        mean, log_scale = network.encode(row[None])
        log_q = gaussian((LATENTS - mean) / log_scale.exp()) - log_scale[0, 0]
        likelihood = bernoulli(row.expand(len(LATENTS), -1), network.decode(LATENTS))
        inside = likelihood + log_prior(network) - log_q
        found.append((log_q.exp() * inside).sum() * math.exp(STEP))
    return torch.stack(found)


def step(network: VAEEnergy, objective: SelfNormalisedELBO, row: Tensor, seed: int = 0) -> Losses:
    """The losses of many copies of one image."""
    x = (2 * row - 1).expand(COUNT, -1).reshape(COUNT, 1, 1, PIXELS)
    level = SCHEDULE.level(torch.ones(COUNT, dtype=torch.int64))
    models = Models(network, None, None, SCHEDULE)
    return objective.losses(models, Batch(x, None), level, BatchRandom(COUNT, generator(seed)))


def begun(draws: int = 1) -> SelfNormalisedELBO:
    """An objective that does not set b at the first step."""
    objective = SelfNormalisedELBO(draws=draws)
    objective.begun.fill_(1.0)
    return objective


def normalise(network: VAEEnergy) -> None:
    assert network.prior is not None
    with torch.no_grad():
        network.prior.log_normaliser += log_z(network)


@torch.no_grad()
def test_the_model_is_a_density_of_black_and_white_images_and_the_bound_is_below_it() -> None:
    network = vae()
    logs, bounds = log_likelihoods(network), exact_bounds(network)
    assert abs(float(logs.exp().sum()) - 1) < 1e-4
    assert bool((bounds < logs).all())


@pytest.mark.parametrize("prior", ["energy", "gaussian"])
@torch.no_grad()
def test_the_objective_is_the_bound(prior: str) -> None:
    network = vae(prior)
    if prior == "energy":
        normalise(network)
    for row, expected in zip(every_image(), exact_bounds(network), strict=True):
        found = step(network, begun(), row)
        assert abs(float(found.by_level["elbo"].mean()) - float(expected)) < 0.03
        parts = [found.by_level[name].mean() for name in ("reconstruction", "divergence")]
        assert abs(float(parts[0] - parts[1]) - float(expected)) < 0.03


@torch.no_grad()
def test_a_wrong_normaliser_lowers_the_bound_by_what_the_formula_says() -> None:
    network, row = vae(), every_image()[5]
    normalise(network)
    assert network.prior is not None
    right, truth = float(network.prior.log_normaliser), float(exact_bounds(network)[5])
    for off in (-0.5, 0.5):
        network.prior.log_normaliser.fill_(right + off)
        found = float(step(network, begun(), row).by_level["elbo"].mean())
        assert abs(found - (truth - off - math.exp(-off) + 1)) < 0.03 and found < truth - 0.05


@pytest.mark.parametrize("learn_prior", [True, False])
def test_without_a_tilt_it_is_the_plain_vae_exactly(learn_prior: bool) -> None:
    torch.manual_seed(0)
    plain = VAEEnergy(1, PIXELS, 1, 8, 1, "gaussian")
    tilted = VAEEnergy(1, PIXELS, 1, 8, 1, "energy", prior_width=16)
    tilted.load_state_dict(plain.state_dict(), strict=False)
    if learn_prior and tilted.proposal is not None:  # with r = N(0, I) all weights are 1
        with torch.no_grad():
            tilted.proposal.means.zero_()
            tilted.proposal.log_scales.zero_()
    row = every_image()[3]
    objective = SelfNormalisedELBO(learn_prior=learn_prior)
    found = [step(network, objective, row) for network in (plain, tilted)]
    torch.testing.assert_close(found[0].by_level["elbo"], found[1].by_level["elbo"])
    y = (2 * every_image() - 1).reshape(-1, 1, 1, PIXELS)
    with torch.no_grad():
        energies = [NeuralEnergy(network)(y, LEVEL) for network in (plain, tilted)]
    torch.testing.assert_close(*energies)
    for losses, network in zip(found, (plain, tilted), strict=True):
        losses.totals["ebm"].backward()
        assert network.encoder[0].weight.grad is not None
    grads = [network.encoder[0].weight.grad for network in (plain, tilted)]
    torch.testing.assert_close(grads[0], grads[1])


@torch.no_grad()
def test_b_starts_at_the_log_of_the_normaliser() -> None:
    network = vae()
    truth = log_z(network)
    assert abs(truth) > 1
    step(network, SelfNormalisedELBO(draws=4), every_image()[0])
    assert network.prior is not None
    assert abs(float(network.prior.log_normaliser) - truth) < 0.02 and abs(log_z(network)) < 0.02


@torch.no_grad()
def test_a_missing_density_of_the_mixture_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    network = vae()
    truth = log_z(network)
    monkeypatch.setattr(DistributionProposal, "log_prob", lambda self, y, *_: 0 * y.sum((1, 2, 3)))
    step(network, SelfNormalisedELBO(draws=4), every_image()[0])
    assert network.prior is not None
    assert abs(float(network.prior.log_normaliser) - truth) > 0.3


def test_the_mixture_learns_the_encoders_draws_and_does_not_teach_the_encoder() -> None:
    network, row = vae(), every_image()[6]
    x = row[None]
    normalise(network)
    assert network.proposal is not None
    (step(network, begun(), row).total).backward()
    gradient = network.encoder[0].weight.grad.clone()
    network.zero_grad()
    with torch.no_grad():
        network.proposal.means += 1.0  # the fit has another gradient; that of the bound is unbiased
    step(network, begun(draws=4), row).total.backward()
    torch.testing.assert_close(network.encoder[0].weight.grad, gradient, atol=1e-3, rtol=1e-3)
    optimizer = torch.optim.Adam(network.proposal.parameters(), lr=0.1)
    objective = SelfNormalisedELBO(learn_prior=False)
    for seed in range(40):
        optimizer.zero_grad()
        step(network, objective, row, seed).total.backward()
        optimizer.step()
    mean, log_scale = (float(each.detach()) for each in network.encode(x))
    with torch.no_grad():
        log_r = network.proposal.log_prob(LATENTS)
        log_q = gaussian((LATENTS - mean) / math.exp(log_scale)) - log_scale
    mixed = 0.9 * log_q.exp() + 0.1 * gaussian(LATENTS).exp()  # the wide Gaussian stays
    assert float((log_r.exp() - mixed).abs().sum()) * math.exp(STEP) < 0.1


@torch.no_grad()
def test_latents_are_drawn_from_the_prior() -> None:
    network = vae()
    z = network.draw_latents(BatchRandom(COUNT, generator()), LEVEL)[:, 0].sort().values
    cdf = (log_prior(network) + STEP).exp().cumsum(0)
    found = torch.searchsorted(z, LATENTS[:, 0].contiguous()) / COUNT
    assert float((found - cdf).abs().max()) < 0.02
    plain = torch.special.ndtr(LATENTS[:, 0])
    assert float((plain - cdf).abs().max()) > 0.1


def test_the_energy_is_minus_the_bound_at_the_mean_and_has_a_gradient() -> None:
    network = vae()
    normalise(network)
    x = torch.rand(5, PIXELS, generator=generator())
    mean, log_scale = network.encode(x)
    q = torch.distributions.Normal(mean, log_scale.exp())
    law = torch.distributions.Normal(torch.zeros(1), torch.ones(1))
    divergence = torch.distributions.kl_divergence(q, law).sum(1)
    white = torch.distributions.Bernoulli(logits=network.decode(mean), validate_args=False)
    tilt = network.tilt(mean, network.condition(LEVEL))
    expected = -white.log_prob(x).sum(1) + divergence - tilt
    potential = NeuralEnergy(network.double()).at(LEVEL)
    y = (2 * x - 1).double().reshape(-1, 1, 1, PIXELS)
    value, gradient = potential.value_and_grad(y)
    torch.testing.assert_close(value.float(), expected.float())
    direction = torch.randn(y.shape, generator=generator(1), dtype=torch.float64)
    with torch.no_grad():
        slope = (potential(y + 1e-4 * direction) - potential(y - 1e-4 * direction)) / 2e-4
    torch.testing.assert_close(
        (gradient * direction).flatten(1).sum(1), slope, rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_the_energy_of_images_unlike_the_data_stays_finite() -> None:
    network = vae("gaussian")
    last = network.encoder[2]
    assert isinstance(last, torch.nn.Linear)
    last.bias[1] = 1000.0  # log σ
    x = every_image()
    found = NeuralEnergy(network)((2 * x - 1).reshape(-1, 1, 1, PIXELS), LEVEL)
    assert bool(found.isfinite().all())
    assert bool((found > 0.4 * math.exp(6)).all())  # most of KL(N(μ, e^6) ‖ N(0, 1))


def test_pixels_become_black_and_white() -> None:
    grey = torch.tensor([-1.0, -0.5, 0.5, 1.0]).expand(COUNT, 1, 1, 4)
    found = binarised(grey, "dynamic", BatchRandom(COUNT, generator()))
    assert set(found.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(found.mean(0), torch.tensor([0, 0.25, 0.75, 1]), atol=0.02, rtol=0)
    fixed = binarised(grey, "threshold", BatchRandom(COUNT, generator()))
    assert fixed[0].tolist() == [0, 0, 1, 1]


def small(*assignments: str) -> TrainConfig:
    return preset("snl-vae-mnist").override(
        [
            "warm_start.steps=20",
            "snelbo.steps=20",
            "ebm.latents=4",
            "ebm.width=16",
            "ebm.num_pixels=64",
            "ebm.components=2",
            "log_every=10",
            *assignments,
        ]
    )


@pytest.mark.parametrize("prior", ["energy", "gaussian"])
def test_a_trained_model_draws_and_scores(tmp_path: Path, prior: str) -> None:
    run = trainer(small(f"ebm.prior={prior}"), tmp_path, data=images().with_attributes(()))
    fit(run)
    save_model(to_model(run), tmp_path / "model")
    pipe = CDRLPipeline.from_pretrained(tmp_path / "model")
    out = pipe(num_images=3, seeds=[4, 5, 6], output_type="pt", progress=False)
    alone = pipe(num_images=1, seeds=[5], output_type="pt", progress=False)
    torch.testing.assert_close(out.images[1:2], alone.images)
    assert out.images.std() > 0.01 and bool((out.images[0] != out.images[1]).any())
    pixels = torch.rand(40, 1, 8, 8, generator=generator())
    statistics = measure(pipe.model, pixels, data="noise", seed=0, batch_size=20)
    calibrated = CDRLModel(**{**vars(pipe.model), "statistics": statistics})
    save_model(calibrated, tmp_path / "calibrated")
    again = CDRLPipeline(load_model(tmp_path / "calibrated"))
    found = again.score(pixels[:5], "energy")
    torch.testing.assert_close(found.scores.float(), again.energy(pixels[:5]), rtol=1e-4, atol=1e-2)
    assert found.p_values is not None
    black = again.score(torch.zeros(1, 1, 8, 8))
    assert bool(torch.as_tensor(black.scores).isfinite().all())


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (['initializer={"class": "MixtureDistribution"}'], "draws by itself, .*initializer=null"),
        (["schedule.num_levels=2"], "'snelbo' needs schedule.num_levels=1"),
        (['ebm={"class": "MLPEnergy"}'], "got 'MLPEnergy'; use a 'VAEEnergy'"),
        (["snelbo.binarise=grey"], "'binarise' must be one of 'dynamic', 'threshold'"),
    ],
)
def test_a_run_that_cannot_work_is_refused_at_once(assignments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(*assignments)


def test_there_is_no_normaliser_to_compute() -> None:
    model = CDRLModel(vae(), None, SCHEDULE, ImageShape(1, 1, PIXELS))
    with pytest.raises(InputError, match=r"the energy of a VAE is a bound .* no normaliser"):
        compute(model, [()], lambda _: None, name="none")


def test_labels_and_empty_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unconditional, .*data.attributes=\[\]"):
        VAEEnergy(num_classes=(10,))
    with pytest.raises(ConfigError, match=r"positive sizes, .*'latents': 0"):
        VAEEnergy(latents=0)


def test_the_benchmark_prints_a_row_for_each_prior(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "m.npz", train_images=pixels, test_images=pixels[:30])
    options = ["--data", str(tmp_path / "m.npz"), "--seed", "0", "--steps", "6"]
    options += ["--keep", str(tmp_path / "kept"), "--picture", str(tmp_path / "p.png")]
    first = CliRunner().invoke(snelbo.main, options)
    assert first.exit_code == 0, first.output
    assert "| gaussian" in first.output and "| energy" in first.output
    again = CliRunner().invoke(snelbo.main, options)
    assert again.output == first.output and (tmp_path / "p.png").is_file()


def test_the_benchmarks_bound_is_the_exact_one() -> None:
    network = vae()
    normalise(network)
    model = CDRLModel(network, None, SCHEDULE, ImageShape(1, 1, PIXELS))
    x = every_image()
    found = snelbo.measure(model, x.repeat_interleave(2_500, 0))
    assert abs(found.elbo - float(exact_bounds(network).detach().mean())) < 0.02
    assert abs(found.error) < 0.02
    with torch.no_grad():
        network.prior.log_normaliser += 0.7  # type: ignore[union-attr]
    moved = snelbo.measure(model, x.repeat_interleave(2_500, 0))
    assert abs(moved.error - found.error - 0.7) < 1e-4 and abs(moved.elbo - found.elbo) < 1e-4
