"""Reference statistics: p-values, calibration, and the weights they belong to."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import CLASSES, make_model, make_statistics
from torch import Tensor

from cdrl_infer.errors import CDRLError, ConfigError, InputError, NumericalError
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring import SCORES
from cdrl_infer.scoring.calibration import calibrate
from cdrl_infer.scoring.reference import STATISTICS, ReferenceStatistics
from cdrl_infer.scoring.weights import weights_digest
from cdrl_infer.storage import hub
from cdrl_infer.storage.folder import load_model
from cdrl_train.calibrate import choose

Metadata = dict[str, str]
Tensors = dict[str, Tensor]


def noise(count: int, seed: int) -> Tensor:
    """In distribution here: pixels of one brightness and contrast an image, different in each."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.rand(2, count, 1, 1, 1, generator=generator).sort(0).values
    pixels = low + (high - low) * torch.rand(count, 1, 8, 8, generator=generator)
    return (255 * pixels).byte()


@pytest.fixture(scope="module")
def tiny() -> CDRLPipeline:
    return CDRLPipeline(make_model(CLASSES))


@pytest.fixture(scope="module")
def statistics(tiny: CDRLPipeline) -> ReferenceStatistics:
    return calibrate(tiny.model, noise(301, 0), data="noise", seed=3)


# -- reading a score ----------------------------------------------------------------------------


def test_p_values_count_who_scores_as_high_or_higher() -> None:
    reference = make_statistics([1.0, 2.0, 2.0, 5.0])
    values = torch.tensor([0.0, 1.0, 1.5, 2.0, 5.0, 6.0])
    expected = torch.tensor([5, 5, 4, 4, 2, 1]).double() / 5
    torch.testing.assert_close(reference.p_values("energy", values), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("fpr", "threshold"), [(0.2, 5.0), (0.39, 5.0), (0.4, 2.0), (0.6, 2.0), (0.8, 1.0), (0.99, 1.0)]
)
def test_thresholds_make_statistics(fpr: float, threshold: float) -> None:
    assert make_statistics([1.0, 2.0, 2.0, 5.0]).threshold("energy", fpr) == threshold


@pytest.mark.parametrize("fpr", [0.0, 0.19, 1.0, -0.5, 2.0])
def test_shares_that_so_few_images_cannot_tell(fpr: float) -> None:
    with pytest.raises(InputError, match=r"at least 0\.2 \(1 / \(images \+ 1\)\) and less than 1"):
        make_statistics([1.0, 2.0, 2.0, 5.0]).threshold("energy", fpr)


@pytest.mark.parametrize("name", SCORES)
def test_p_values_of_fresh_images_are_uniform(
    name: str, tiny: CDRLPipeline, statistics: ReferenceStatistics
) -> None:
    """Kolmogorov-Smirnov for two samples, at the level of one in a thousand."""
    pipe = CDRLPipeline(replace(tiny.model, statistics=statistics))
    p = pipe.score(noise(300, 1), name).p_values
    assert p is not None
    grid = torch.arange(1, 152) / 151
    share = (p[:, None] <= grid).double().mean(0)
    assert (share - grid).abs().max() < 1.95 * (1 / 300 + 1 / 150) ** 0.5


def test_half_of_the_images_is_held_out_from_the_fit(tiny: CDRLPipeline) -> None:
    """With few images the fit follows them; p-values of others stay uniform all the same."""
    means = []
    for k in range(10):
        pipe = CDRLPipeline(tiny.model)
        pipe.model = replace(
            tiny.model, statistics=calibrate(tiny.model, noise(36, 100 + k), data="few", seed=k)
        )
        p = pipe.score(noise(36, 200 + k), "combined").p_values
        assert p is not None
        means.append(p.mean())
    found = torch.stack(means)
    expected = 20 / 2 / 19  # of 1/19 … 19/19
    assert abs(found.mean() - expected) < 3 * found.std() / 10**0.5


# -- calibrating --------------------------------------------------------------------------------


def test_what_statistics_are_of(tiny: CDRLPipeline, statistics: ReferenceStatistics) -> None:
    images = noise(301, 0)
    order = torch.randperm(301, generator=torch.Generator().manual_seed(3))
    fitted, held_out = images[order[150:]], images[order[:150]]
    assert (statistics.seed, statistics.data, statistics.count) == (3, "noise", 301)
    energies = [tiny.score(fitted, "energy", level=t, seed=3).scores for t in (1, 2, 3)]
    torch.testing.assert_close(
        statistics.mean[:3], torch.stack(energies).mean(1), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        statistics.covariance[:3, :3], torch.stack(energies).cov(), rtol=1e-3, atol=1e-3
    )
    assert torch.equal(statistics.fitted.all.mean(0), statistics.mean)
    assert len(statistics.fitted) == 151 and len(statistics.held_out) == 150
    for name in ("energy", "complexity"):
        scores = tiny.score(held_out, name, seed=3).scores.sort().values
        torch.testing.assert_close(statistics.scores(name), scores, rtol=1e-4, atol=1e-4)


def test_calibrating_is_deterministic(tiny: CDRLPipeline) -> None:
    calls = [(0, 64), (0, 64), (0, 7), (1, 64)]
    a, again, batched, other = (
        calibrate(tiny.model, noise(40, 0), data="x", seed=seed, batch_size=size)
        for seed, size in calls
    )
    repeated = again.tensors()
    assert all(torch.equal(value, repeated[name]) for name, value in a.tensors().items())
    assert a.weights == again.weights
    assert not torch.equal(a.mean, other.mean)
    for name in SCORES:
        torch.testing.assert_close(a.scores(name), batched.scores(name), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (noise(40, 0).float(), {}, r"expected finite values in \[0, 1\]"),
        (
            noise(40, 0)[:, :, :7],
            {},
            r"expected images of 1 channels, 8 x 8, got shape \(40, 1, 7, 8\)",
        ),
        (noise(35, 0), {}, "calibrating needs at least 36 images, got 35"),
        (noise(40, 0), {"seed": 2**32}, "a seed must be"),
        (noise(40, 0), {"batch_size": 0}, "batch_size must be at least 1"),
        (noise(40, 0), {"data": "a\nb"}, "the name of the data must have 1 to 200 printable"),
        (noise(40, 0), {"data": ""}, "the name of the data must have 1 to 200 printable"),
        (noise(40, 0)[:1].expand(40, 1, 8, 8), {}, "not positive definite; calibrate with more"),
    ],
)
def test_what_cannot_be_calibrated_with(
    tiny: CDRLPipeline, images: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CDRLError, match=message):
        calibrate(tiny.model, images, **{"data": "x", **options})


def test_a_broken_model_is_not_calibrated() -> None:
    pipe = CDRLPipeline(make_model())
    with torch.no_grad():
        pipe.model.initializer.backbone.stem.bias[0] = torch.nan
    with pytest.raises(
        NumericalError, match="features of the images are not finite; check the model"
    ):
        calibrate(pipe.model, noise(40, 0), data="x")


def test_images_are_chosen_at_random() -> None:
    images = noise(50, 0)
    few = choose(images, 20, seed=1)
    assert torch.equal(few, choose(images, 20, seed=1))
    assert not torch.equal(few, choose(images, 20, seed=2))
    where = [int((images == image).flatten(1).all(1).nonzero()[0, 0]) for image in few]
    assert len(set(where)) == 20 and where != sorted(where) and max(where) >= 20
    assert len(choose(images, None, seed=1)) == 50
    assert len(choose(images[:1].expand(5001, 1, 8, 8), None, seed=1)) == 5000
    with pytest.raises(InputError, match="expected at most 50 images, all there are, got 51"):
        choose(images, 51, seed=1)


# -- the weights they belong to -----------------------------------------------------------------

OTHER = (
    "'custom': the reference statistics belong to other weights: expected the sha256 digest "
    "[0-9a-f]{12}… or .*, found [0-9a-f]{12}…; calibrate again: run `cdrl-eval --calib"
)


@pytest.fixture
def own(tiny: CDRLPipeline, statistics: ReferenceStatistics) -> CDRLPipeline:
    """Calibrated, with networks of its own."""
    return CDRLPipeline(replace(copy.deepcopy(tiny.model), statistics=statistics))


def change(pipe: CDRLPipeline, role: str) -> None:
    """Change the last bit of one weight."""
    weight = list(getattr(pipe.model, role).state_dict().values())[-1].view(-1)
    weight[0] = torch.nextafter(weight[0], torch.tensor(torch.inf))


def test_statistics_of_another_model_are_refused(
    statistics: ReferenceStatistics,
) -> None:
    pipe = CDRLPipeline(replace(make_model(CLASSES, seed=1), statistics=statistics))
    for name in SCORES:  # those that are not fitted have p-values
        with pytest.raises(ConfigError, match=OTHER) as caught:
            pipe.score(noise(2, 0), name)
        assert str(caught.value).isprintable()
    assert pipe.score(noise(2, 0), "energy", seed=4).p_values is None  # needs no statistics


@pytest.mark.parametrize("role", ["ebm", "initializer"])
def test_every_bit_of_each_network_counts_at_every_call(own: CDRLPipeline, role: str) -> None:
    before = copy.deepcopy(getattr(own.model, role).state_dict())
    assert own.score(noise(2, 0)).p_values is not None
    change(own, role)
    for _ in range(2):
        with pytest.raises(ConfigError, match=OTHER):
            own.score(noise(2, 0))
    getattr(own.model, role).load_state_dict(before)
    assert own.score(noise(2, 0)).p_values is not None
    change(own, role)
    own.model.statistics = calibrate(own.model, noise(40, 1), data="x")
    assert own.score(noise(2, 0)).p_values is not None


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_stored_variants_are_recognised(own: CDRLPipeline, tmp_path: Path, variant: str) -> None:
    own.save_pretrained(tmp_path / "tiny", variant=variant)
    pipe = CDRLPipeline.from_pretrained(tmp_path / "tiny", variant=variant)
    assert weights_digest(pipe.model) != weights_digest(own.model)
    assert pipe.score(noise(2, 0)).p_values is not None
    pipe.model.statistics = calibrate(pipe.model, noise(40, 1), data="x")
    own.model.statistics = pipe.model.statistics  # measured with fewer bits than these
    with pytest.raises(ConfigError, match=OTHER):
        own.score(noise(2, 0))


def test_a_digest_is_of_names_shapes_and_values(own: CDRLPipeline) -> None:
    before = weights_digest(own.model)
    own.model.ebm.to(memory_format=torch.contiguous_format)
    assert weights_digest(pickle.loads(pickle.dumps(own)).model) == before
    network = torch.nn.Linear(2, 3, bias=False)
    digests = set()
    for name, shape in (("weight", (2, 3)), ("weight", (3, 2)), ("other", (3, 2))):
        network.__dict__["_parameters"] = {name: torch.ones(shape)}
        own.model.ebm = network
        digests.add(weights_digest(own.model))
    own.model.ebm, own.model.initializer = own.model.initializer, own.model.ebm
    digests.add(weights_digest(own.model))
    assert len(digests | {before}) == 5


def test_weights_that_changed_are_saved_without_the_statistics(
    own: CDRLPipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A training is not lost for them, and what is written is true."""
    own.save_pretrained(tmp_path / "tiny")
    assert (tmp_path / "tiny" / STATISTICS).exists() and not caplog.records
    change(own, "ebm")
    own.save_pretrained(tmp_path / "tiny")
    assert not (tmp_path / "tiny" / STATISTICS).exists()
    (record,) = caplog.records
    assert f"{STATISTICS} is not written" in record.message
    assert "belong to other weights" in record.message and "calibrate again" in record.message
    ebm = load_model(tmp_path / "tiny").ebm.state_dict()
    assert all(torch.equal(v, ebm[k]) for k, v in own.model.ebm.state_dict().items())

    pushed: list[str] = []

    def push(folder: Path, *_: object, **__: object) -> Any:
        pushed.extend(path.name for path in folder.iterdir())
        return SimpleNamespace(url="address")

    monkeypatch.setattr(hub, "push", push)
    own.push_to_hub("user/model")
    assert "config.json" in pushed and STATISTICS not in pushed
