"""MPDR: the sphere, the chains in the paper's units, the losses, and models of one transition."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_mpdr
from laws import batch_random
from runs import fit, trainer
from torch import Tensor

from cdrl_infer.energies.base import FunctionPotential
from cdrl_infer.errors import ConfigError
from cdrl_infer.kernels.langevin import BoxedLangevin
from cdrl_infer.kernels.sphere import SphereDescent
from cdrl_infer.model import CDRLModel, ImageShape
from cdrl_infer.networks.autoencoder import (
    TEMPERATURE,
    AutoencoderEnsemble,
    ConvEnergy,
    SphereAutoencoder,
)
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.proposals import AutoencoderProposal, make_proposal
from cdrl_infer.scoring.detector import CDRLDetector
from cdrl_infer.scoring.features import NoisedImages, draw_noise
from cdrl_train.config import TrainConfig
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.stream import Batch
from cdrl_train.objectives import Models
from cdrl_train.objectives.autoencoder import Autoencoding, shared
from cdrl_train.objectives.mpdr import ManifoldRecovery, Negatives
from cdrl_train.objectives.walk import Walked, arc
from cdrl_train.presets import preset

B = 6


def pictures(n: int = B, seed: int = 0) -> Tensor:
    """(n, 1, 8, 8) in [-1, 1]."""
    return 2 * torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) - 1


def models_of(model: CDRLModel) -> Models:
    return Models(model.ebm, model.ebm, model.initializer, model.schedule)


def small(name: str, *assignments: str) -> TrainConfig:
    """A preset on pictures of 8 x 8, with networks and phases that take no time."""
    sizes = [f"{role}.{key}" for role in ("ebm", "initializer") for key in ("width=4", "hidden=16")]
    more = ["ebm.latent=6"] if name == "mpdr-r-mnist" else []
    shapes = ["ebm.image_size=[8,8]", "initializer.image_size=[8,8]", "initializer.latent=6"]
    steps = ["autoencoder.steps=3", "mpdr.steps=2", "autoencoder.batch_size=8", "mpdr.batch_size=8"]
    own = ["precision=float32", "log_every=1", *sizes, *shapes, *more, *steps, *assignments]
    return preset(name).override(own)


def grey(n: int = 40) -> ImageSet:
    generator = torch.Generator().manual_seed(3)
    return ImageSet(torch.randint(256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8))


# The sphere


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (8, 8), (16, 20)])
def test_latents_have_length_one_and_images_their_size(size: tuple[int, int]) -> None:
    network = SphereAutoencoder(3, width=4, hidden=8, latent=5, image_size=size)
    u = torch.rand(2, 3, *size) * 2 - 1
    torch.testing.assert_close(network.encode(u).norm(dim=1), torch.ones(2))
    decoded = network.decode(network.encode(u))
    assert decoded.shape == u.shape and bool((decoded.abs() <= 1).all())


def test_noise_becomes_a_uniform_latent() -> None:
    """``P x / ‖P x‖`` of normal x: mean 0, covariance I/D; P has orthonormal rows."""
    network = SphereAutoencoder(width=4, hidden=8, latent=5, image_size=(8, 8))
    rows = network.projection
    torch.testing.assert_close(rows @ rows.T, torch.eye(5), atol=1e-5, rtol=0)
    seen: list[Tensor] = []
    network.decode = lambda z: seen.append(z) or torch.zeros(len(z), 1, 8, 8)  # type: ignore
    network(torch.randn(40_000, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    (z,) = seen
    torch.testing.assert_close(z.mean(0), torch.zeros(5), atol=0.01, rtol=0)
    torch.testing.assert_close(z.T.cov(), torch.eye(5) / 5, atol=0.01, rtol=0)


def test_the_noise_of_an_image_chooses_its_member_and_others_do_not() -> None:
    network = AutoencoderEnsemble(widths=(4, 6), hidden=8, latent=5, image_size=(8, 8))
    x = torch.randn(12, 1, 8, 8)
    with torch.no_grad():
        together, alone = network(x), torch.cat([network(row[None]) for row in x])
        each = [member(x) for member in network.members]
    torch.testing.assert_close(together, alone)
    second = x[:, 0, 0, 0] > 0  # the upper half of a normal
    torch.testing.assert_close(together[second], each[1][second])
    torch.testing.assert_close(together[~second], each[0][~second])


def test_members_share_a_batch() -> None:
    network = AutoencoderEnsemble(widths=(4, 6, 8), hidden=8, latent=5, image_size=(8, 8))
    for count in (1, 2, 7, 9):
        rows = [k for _, part in shared(network, count) for k in range(count)[part]]
        assert rows == [*range(count)]
    sizes = [len(range(128)[part]) for _, part in shared(network, 128)]
    assert max(sizes) - min(sizes) <= 1


def test_the_arc_is_the_angle_and_safe_where_arccos_is_not() -> None:
    z = torch.nn.functional.normalize(torch.randn(2, 50, 4, dtype=torch.float64), dim=2)
    torch.testing.assert_close(arc(*z), torch.acos((z[0] * z[1]).sum(1)))
    for sign, angle in ((1.0, 0.0), (-1.0, math.pi)):
        a = z[0].clone().requires_grad_(True)
        found = arc(a, sign * z[0])
        (grad,) = torch.autograd.grad(found.square().sum(), a)
        assert bool(grad.isfinite().all())
        torch.testing.assert_close(found.detach(), torch.full_like(found, angle), atol=1e-7, rtol=0)


def test_a_step_on_the_sphere_has_its_length_whatever_the_slope() -> None:
    """Without noise, a step of length a·s along the tangent turns z by arctan(a·s) towards -c."""

    class Silent:
        def normal(self, shape: Any) -> Tensor:
            return torch.zeros(3, *shape)

    c = torch.tensor([1.0, 0, 0, 0])
    z = torch.nn.functional.normalize(
        torch.tensor([[0.0, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]), dim=1
    )
    kernel, s2 = SphereDescent(ratio=2.5), torch.tensor(0.02**2)
    for slope in (1e-6, 1e6):
        potential = FunctionPotential(lambda y, slope=slope: slope * (y @ c))
        end = kernel.run(z, potential, s2, Silent(), 1).y  # type: ignore[arg-type]
        torch.testing.assert_close(end.norm(dim=1), torch.ones(3))
        turned = arc(z, end)
        torch.testing.assert_close(
            turned[:2], torch.full((2,), math.atan(0.05)), atol=1e-5, rtol=1e-4
        )
        assert bool((end[:2] @ c < z[:2] @ c).all())
        torch.testing.assert_close(end[2], z[2])  # the gradient has no tangent part: nothing moves


# The visible chain


def test_the_visible_chain_is_the_papers_in_its_units() -> None:
    """``x ← clamp(x - 10 ∇_x E + 0.005 ε, 0, 1)`` with x in [0, 1], here as u = 2x - 1."""
    c, k = torch.tensor([0.2, 0.7, 0.9]), 0.004

    def energy(x: Tensor) -> Tensor:
        return k * (x - c).square().sum(1)

    class Fixed:
        def normal(self, shape: Any) -> Tensor:
            return torch.tensor([[1.0, -2.0, 60.0]])

    x = torch.tensor([[0.0, 0.5, 0.8]])
    expected = (x - 10 * 2 * k * (x - c) + 0.005 * Fixed().normal(())).clamp(0, 1)
    nats = FunctionPotential(lambda u: energy((u + 1) / 2) / TEMPERATURE)
    step = BoxedLangevin().run(2 * x - 1, nats, torch.tensor(1e-4), Fixed(), 1)  # type: ignore[arg-type]
    torch.testing.assert_close((step.y + 1) / 2, expected)
    assert float(expected[0, 2]) == 1.0  # where the clamp is at work


@pytest.mark.parametrize("name", ["mpdr-mnist", "mpdr-r-mnist"])
def test_the_presets_step_is_the_papers(name: str) -> None:
    config = preset(name)
    variance = float(config.schedule.level(1).step_variance)
    assert math.sqrt(variance) / 2 == pytest.approx(0.005, rel=0.01)  # of x in [0, 1]
    assert variance / (2 * TEMPERATURE) / 4 == pytest.approx(10, rel=0.01)
    assert config.schedule.num_levels == 1 and float(config.schedule.level(1).recovery) == 0


# The losses


@pytest.mark.parametrize("kind", ["ConvEnergy", "ReconstructionEnergy"])
def test_the_loss_is_the_formula(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_mpdr(kind)
    end, z = pictures(seed=1), torch.nn.functional.normalize(torch.randn(B, 6), dim=1)
    found = Negatives(Walked(z, z, z, pictures(seed=2), []), end)
    monkeypatch.setattr(ManifoldRecovery, "negatives", lambda *_: found)
    weights = {"positive_square": 0.3, "negative_square": 0.7}
    if kind == "ReconstructionEnergy":
        weights["encoder_l2"] = 0.01
    objective, x = ManifoldRecovery(**weights), pictures()  # type: ignore[arg-type]
    level = model.schedule.level(torch.ones(B, dtype=torch.int64))
    loss = objective.losses(models_of(model), Batch(x, None), level, batch_random(B)).total
    e, n = (-model.ebm(u) * model.ebm.temperature for u in (x, end))
    expected = (e - n + 0.3 * e**2 + 0.7 * n**2).mean()
    if kind == "ReconstructionEnergy":
        torch.testing.assert_close(
            e, ((x - model.ebm.reconstruct(x)) / 2).square().flatten(1).mean(1)
        )
        encoder = [p for k, p in model.ebm.named_parameters() if k.startswith(("encoder", "leave"))]
        expected = expected + 0.01 * sum(p.square().sum() for p in encoder)
    torch.testing.assert_close(loss, expected)


def test_negatives_stay_where_the_options_say() -> None:
    """Without steps and nearly without noise they are reconstructions; with a spread they move as far."""
    model, x = make_mpdr(), pictures()
    models, level = models_of(model), model.schedule.level(torch.ones(B, dtype=torch.int64))
    still = ManifoldRecovery(latent_steps=0, langevin_steps=0, spread_min=1e-7, spread_max=1e-7)
    found = still.negatives(models, x, level, batch_random(B))
    torch.testing.assert_close(found.end, model.initializer.reconstruct(x), atol=1e-4, rtol=0)
    many = x[:1].expand(4_000, -1, -1, -1)
    level = model.schedule.level(torch.ones(4_000, dtype=torch.int64))
    spread = ManifoldRecovery(latent_steps=0, langevin_steps=0, spread_min=0.05, spread_max=0.05)
    found = spread.negatives(models, many, level, batch_random(4_000))
    moved = arc(found.walked.projected, found.walked.diffused).square().mean()
    assert float(moved) == pytest.approx(5 * 0.05**2, rel=0.05)  # D - 1 directions along the sphere


def test_reconstruction_energy_begins_at_the_autoencoder_and_its_average_anew(
    tmp_path: Path,
) -> None:
    run = trainer(small("mpdr-r-mnist", "mpdr.ebm_lr=0"), tmp_path, data=grey())
    fit(run, until=3)
    assert not torch.equal(
        run.state.ebm.encode(pictures()), run.state.initializer.encode(pictures())
    )
    fit(run)
    u, ebm = pictures(), run.state.ebm
    torch.testing.assert_close(ebm.reconstruct(u), run.state.initializer.reconstruct(u))
    average = run.state.averages["ebm"].module
    torch.testing.assert_close(average.reconstruct(u), ebm.reconstruct(u))


@pytest.mark.parametrize("name", ["mpdr-mnist", "mpdr-r-mnist"])
def test_each_phase_trains_its_network_alone(name: str, tmp_path: Path) -> None:
    run = trainer(small(name), tmp_path, data=grey())

    def weights(role: str) -> list[Tensor]:
        return [p.detach().clone() for p in getattr(run.state, role).parameters()]

    def moved(role: str, before: list[Tensor]) -> bool:
        return any(not torch.equal(a, b) for a, b in zip(before, weights(role), strict=True))

    ebm, initializer = weights("ebm"), weights("initializer")
    fit(run, until=3)
    assert moved("initializer", initializer) and not moved("ebm", ebm)
    ebm, initializer = weights("ebm"), weights("initializer")
    fit(run)
    assert moved("ebm", ebm) and not moved("initializer", initializer)


# Models of one transition


def test_the_initializers_feature_is_the_error_of_reconstruction() -> None:
    model = make_mpdr()
    images = (pictures() + 1) / 2
    noise = draw_noise(model.schedule, (1, 8, 8), 0)
    found = NoisedImages.of(model, images, noise).log_initializer_errors[:, 0].exp()
    u = 2 * images - 1
    expected = (u - model.initializer.reconstruct(u)).square().flatten(1).sum(1)
    torch.testing.assert_close(found.float(), expected.detach())
    assert isinstance(make_proposal(model.initializer), AutoencoderProposal)
    assert not hasattr(AutoencoderProposal, "log_prob")  # it has no density


def test_a_model_is_loaded_sampled_calibrated_and_scored(tmp_path: Path) -> None:
    pipe = CDRLPipeline(make_mpdr())
    good = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    pipe.calibrate(good).save_pretrained(tmp_path / "model")
    again = CDRLPipeline.from_pretrained(tmp_path / "model")
    one, other = (p(num_images=2, seeds=[1, 2], output_type="pt").images for p in (pipe, again))
    torch.testing.assert_close(one, other)
    out = again.score(good[:5], return_map=True, threshold_fpr=0.1)
    assert out.score == "energy" and out.p_values is not None and out.maps is not None
    u = torch.from_numpy(good[:5])[:, None].float() / 127.5 - 1
    level, noise = again.model.schedule.level(1), draw_noise(again.model.schedule, (1, 8, 8), 0)
    expected = -again.model.ebm(level.diffused(u, noise))
    torch.testing.assert_close(out.scores.float(), expected)
    assert again.score(good[:5], "combined").score == "combined"
    detector = CDRLDetector(again, contamination=0.1).fit(good)
    np.testing.assert_allclose(detector.score_samples(good[:5]), -out.scores.numpy())


def test_other_models_keep_their_default_score(model: CDRLModel) -> None:
    pipe = CDRLPipeline(model)
    pipe.calibrate(np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8))
    assert pipe.score(torch.rand(2, 1, 8, 8)).score == "combined"


# What is refused


@pytest.mark.parametrize(
    ("name", "assignment", "message"),
    [
        (
            "mpdr-mnist",
            "schedule.num_levels=3",
            "models of one transition: set schedule.num_levels=1",
        ),
        ("mpdr-mnist", "mpdr.encoder_l2=1", "encoder_l2 for a 'ReconstructionEnergy' only"),
        ("mpdr-mnist", 'ebm={"class":"MLPEnergy"}', "'ConvEnergy' .* or 'ReconstructionEnergy'"),
        ("mpdr-mnist", "initializer=null", "needs an autoencoder as initializer"),
        ("mpdr-r-mnist", "ebm.latent=16", "both must have the same sizes, got .*16.* and .*32"),
        ("mpdr-mnist", "mpdr.spread_min=0.5", "spread_min=0.5, spread_max=0.3"),
        ("mpdr-mnist", "mpdr.latent_noise=0", "latent_noise must be positive"),
        ("mnist", 'initializer={"class":"SphereAutoencoder"}', "a mean for each x_t"),
    ],
)
def test_options_that_do_not_fit_are_one_line(name: str, assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        preset(name).override([assignment])
    assert "\n" not in str(caught.value)


def test_labels_and_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"takes no labels.*set data.attributes=\[\]"):
        ConvEnergy(num_classes=(10,))
    with pytest.raises(ConfigError, match=r"image_size must be two multiples of 4.*\[30, 30\]"):
        SphereAutoencoder(image_size=(30, 30))
    model = make_mpdr()
    larger = ImageShape(1, 12, 12)
    with pytest.raises(
        ConfigError, match=r"image_size is 8 x 8, but images are 12 x 12; set ebm\."
    ):
        CDRLModel(model.ebm, model.initializer, model.schedule, larger)
    with pytest.raises(ConfigError, match="at least 0"):
        Autoencoding(latent_noise=-1)
