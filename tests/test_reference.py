"""Reference statistics: p-values that mean what they say, and a file that is not trusted."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import CLASSES, make_model, make_statistics
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cdrl_infer.errors import CDRLError, CheckpointError, ConfigError, InputError, NumericalError
from cdrl_infer.model import CDRLModel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.scoring import reference
from cdrl_infer.scoring.features import ScoredModel
from cdrl_infer.scoring.reference import STATISTICS, ReferenceStatistics, read_statistics
from cdrl_infer.scoring.scores import SCORES
from cdrl_infer.storage import hub
from cdrl_infer.storage.folder import load_model, model_files, save_model
from cdrl_train.calibrate import calibrate, choose

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
    return calibrate(tiny, noise(301, 0), data="noise", seed=3)


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
            tiny.model, statistics=calibrate(tiny, noise(36, 100 + k), data="few", seed=k)
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
    for name in ("energy", "complexity"):
        scores = tiny.score(held_out, name, seed=3).scores.sort().values
        torch.testing.assert_close(statistics.scores[name], scores, rtol=1e-4, atol=1e-4)


def test_calibrating_is_deterministic(tiny: CDRLPipeline) -> None:
    calls = [(0, 64), (0, 64), (0, 7), (1, 64)]
    a, again, batched, other = (
        calibrate(tiny, noise(40, 0), data="x", seed=seed, batch_size=size) for seed, size in calls
    )
    assert_same(a, again)
    assert not torch.equal(a.mean, other.mean)
    for name in SCORES:
        torch.testing.assert_close(a.scores[name], batched.scores[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (noise(40, 0).float(), {}, r"\(1, 8, 8\) in uint8, got \(1, 8, 8\) in torch.float32"),
        (noise(40, 0)[:, :, :7], {}, r"expected images .* of \(1, 8, 8\) .*, got \(1, 7, 8\)"),
        (noise(35, 0), {}, "calibrating needs at least 36 images, got 35"),
        (noise(40, 0), {"seed": 2**32}, "a seed must be"),
        (noise(40, 0), {"batch_size": 0}, "batch_size must be at least 1"),
        (noise(40, 0), {"data": "a\nb"}, "expected a printable name of the data"),
        (noise(40, 0), {"data": ""}, "expected a printable name of the data"),
        (noise(40, 0)[:1].expand(40, 1, 8, 8), {}, "not positive definite; calibrate with more"),
    ],
)
def test_what_cannot_be_calibrated_with(
    tiny: CDRLPipeline, images: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CDRLError, match=message):
        calibrate(tiny, images, **{"data": "x", **options})


def test_a_broken_model_is_not_calibrated() -> None:
    pipe = CDRLPipeline(make_model())
    with torch.no_grad():
        pipe.model.initializer.backbone.stem.bias[0] = torch.nan
    with pytest.raises(NumericalError, match="features of plain images are not finite"):
        calibrate(pipe, noise(40, 0), data="x")


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
    "'custom': the reference statistics are of other weights: expected features of a plain .* image "
    "within .* of those at the calibration, found them .* away; calibrate again, `cdrl-eval --calib"
)


@pytest.fixture
def own(tiny: CDRLPipeline, statistics: ReferenceStatistics) -> CDRLPipeline:
    """Calibrated, with networks of its own."""
    return CDRLPipeline(replace(copy.deepcopy(tiny.model), statistics=statistics))


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The models that were probed."""
    asked: list[object] = []
    work = reference.probe

    def counted(model: ScoredModel, seed: int) -> Tensor:
        asked.append(model)
        return work(model, seed)

    monkeypatch.setattr(reference, "probe", counted)
    return asked


def trained_on(pipe: CDRLPipeline) -> None:
    """A step of a training, of weights that stood still otherwise."""
    with torch.no_grad():
        for network in (pipe.model.ebm, pipe.model.initializer):
            for parameter in network.parameters():
                parameter.add_(0.1 * parameter.std() * torch.ones_like(parameter).bernoulli_())


def test_statistics_of_another_model_are_refused(
    own: CDRLPipeline, saved: Path, tmp_path: Path
) -> None:
    save_model(make_model(CLASSES, seed=1), tmp_path / "other")
    shutil.copy(saved / STATISTICS, tmp_path / "other")
    pipe = CDRLPipeline(load_model(tmp_path / "other"))
    for name in SCORES:  # those that are not fitted have p-values
        with pytest.raises(ConfigError, match=OTHER) as caught:
            pipe.score(noise(2, 0), name)
        assert str(caught.value).isprintable()
    for options in ({"level": 2}, {"seed": 4}):  # where statistics are not looked at
        assert pipe.score(noise(2, 0), "energy", **options).p_values is None


@pytest.mark.parametrize("network", ["ebm", "initializer"])
def test_each_network_counts(own: CDRLPipeline, network: str) -> None:
    other = make_model(CLASSES, seed=1)
    own.model = replace(own.model, **{network: getattr(other, network)})
    with pytest.raises(ConfigError, match=OTHER):
        own.score(noise(2, 0))


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_variants_of_the_same_weights_pass(own: CDRLPipeline, tmp_path: Path, variant: str) -> None:
    own.save_pretrained(tmp_path / "tiny", variant=variant)
    pipe = CDRLPipeline.from_pretrained(tmp_path / "tiny", variant=variant)
    weights = [p.model.ebm.state_dict().values() for p in (own, pipe)]
    assert not all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert pipe.score(noise(2, 0)).p_values is not None


def test_weights_are_probed_once(own: CDRLPipeline, saved: Path, probes: list[object]) -> None:
    pipe = CDRLPipeline.from_pretrained(saved)
    assert probes == []  # loading stays quick
    for name in SCORES:
        pipe.score(noise(2, 0), name)
    pipe.to("cpu").score(noise(2, 0))
    assert probes == [pipe.model]
    pickle.loads(pickle.dumps(pipe)).score(noise(2, 0))
    own.score(noise(2, 0))
    assert len(probes) == 3
    own.score(noise(2, 0), "energy", level=2)
    own.model.statistics = calibrate(own, noise(40, 1), data="x")
    own.score(noise(2, 0))
    assert len(probes) == 5


def test_weights_that_change_in_memory(own: CDRLPipeline) -> None:
    before = copy.deepcopy(own.model.ebm.state_dict())
    assert own.score(noise(2, 0)).p_values is not None
    trained_on(own)
    for _ in range(2):
        with pytest.raises(ConfigError, match=OTHER):
            own.score(noise(2, 0))
    own.model.ebm.load_state_dict(before)
    with pytest.raises(ConfigError, match=OTHER):
        own.score(noise(2, 0))
    own.model.statistics = calibrate(own, noise(40, 1), data="x")
    assert own.score(noise(2, 0)).p_values is not None


def test_weights_that_changed_are_saved_without_the_statistics(
    own: CDRLPipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A training is not lost for them, and what is written is true."""
    own.save_pretrained(tmp_path / "tiny")
    assert (tmp_path / "tiny" / STATISTICS).exists() and not caplog.records
    trained_on(own)
    own.save_pretrained(tmp_path / "tiny")
    assert not (tmp_path / "tiny" / STATISTICS).exists()
    (record,) = caplog.records
    assert f"{STATISTICS} is not written" in record.message
    assert "are of other weights" in record.message and "calibrate again" in record.message
    ebm = load_model(tmp_path / "tiny").ebm.state_dict()
    assert all(torch.equal(v, ebm[k]) for k, v in own.model.ebm.state_dict().items())

    pushed: list[str] = []

    def push(folder: Path, *_: object, **__: object) -> Any:
        pushed.extend(path.name for path in folder.iterdir())
        return SimpleNamespace(url="address")

    monkeypatch.setattr(hub, "push", push)
    own.push_to_hub("user/model")
    assert "config.json" in pushed and STATISTICS not in pushed


# -- the file -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(
    statistics: ReferenceStatistics, tiny: CDRLPipeline, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("calibrated") / "tiny"
    save_model(replace(tiny.model, statistics=statistics), folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def assert_same(a: ReferenceStatistics | None, b: ReferenceStatistics | None) -> None:
    assert a is not None and b is not None
    assert (a.seed, a.data, a.count) == (b.seed, b.data, b.count)
    assert a.tensors().keys() == b.tensors().keys()
    assert all(torch.equal(value, b.tensors()[name]) for name, value in a.tensors().items())


def test_round_trip(saved: Path, statistics: ReferenceStatistics, tmp_path: Path) -> None:
    assert STATISTICS in model_files() and (saved / STATISTICS).is_file()
    pipe = CDRLPipeline.from_pretrained(saved)
    assert_same(pipe.model.statistics, statistics)
    pipe.save_pretrained(tmp_path / "again")
    again = CDRLPipeline.from_pretrained(tmp_path / "again")
    assert_same(again.model.statistics, statistics)
    for name in SCORES:
        outs = [p.score(noise(5, 2), name, threshold_fpr=0.1) for p in (pipe, again)]
        assert torch.equal(outs[0].scores, outs[1].scores)
        assert outs[0].p_values is not None and outs[1].p_values is not None
        assert torch.equal(outs[0].p_values, outs[1].p_values)
        assert outs[0].threshold == outs[1].threshold and outs[0].seed == 3


def test_the_file_is_what_docs_format_says(saved: Path) -> None:
    with safe_open(saved / STATISTICS, "pt") as file:  # type: ignore[no-untyped-call]
        assert file.metadata() == {"version": "2", "data": "noise", "count": "301", "seed": "3"}
    tensors = load_file(saved / STATISTICS)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes.pop("mean") == (9,) and shapes.pop("covariance") == (9, 9)
    assert shapes.pop("probe") == (3, 9)
    assert shapes == {f"scores/{name}": (150,) for name in SCORES}
    text = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
    section = text.split("\n### statistics.safetensors")[1].split("\n## ")[0]
    assert all(f"`{name}`" in section for name in ("mean", "covariance", "probe", *SCORES))


def test_statistics_go_with_their_weights(copied: Path, tiny: CDRLPipeline) -> None:
    """And go where a model without them takes the place of one with them."""
    pipe = CDRLPipeline.from_pretrained(copied)
    pipe.save_pretrained(copied, variant="fp16")
    assert load_model(copied, variant="fp16").statistics is not None
    shutil.rmtree(copied)
    save_model(pipe.model, copied)
    save_model(replace(tiny.model, statistics=None), copied)
    assert not (copied / STATISTICS).exists() and load_model(copied).statistics is None


def rewrite(folder: Path, change: Callable[[Tensors, Metadata], object]) -> None:
    with safe_open(folder / STATISTICS, "pt") as file:  # type: ignore[no-untyped-call]
        metadata = dict(file.metadata())
    tensors = load_file(folder / STATISTICS)
    change(tensors, metadata)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / STATISTICS, metadata)


def put(name: str, at: tuple[int, ...], value: float) -> Callable[[Tensors, Metadata], object]:
    return lambda tensors, _: tensors[name].__setitem__(at, value)


def say(**metadata: str) -> Callable[[Tensors, Metadata], object]:
    return lambda _, there: there.update(metadata)


def cut(name: str) -> Callable[[Tensors, Metadata], object]:
    return lambda tensors, _: tensors.update({name: tensors[name][:-1]})


def four_levels(tensors: Tensors, _: Metadata) -> None:
    tensors["mean"], tensors["covariance"] = torch.zeros(12).double(), torch.eye(12).double()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("mean", (0,), torch.nan), "mean holds NaN or infinity"),
        (put("covariance", (8, 8), torch.inf), "covariance holds NaN or infinity"),
        (put("scores/energy", (0,), -torch.inf), "scores/energy holds NaN or infinity"),
        (put("scores/energy", (0,), 1e9), "scores/energy is not sorted"),
        (put("covariance", (0, 1), 1.0), "the covariance is not symmetric"),
        (put("covariance", (2, 2), -1.0), "covariance that is not positive definite"),
        (put("covariance", (2, 2), 0.0), "covariance that is not positive definite"),
        (put("covariance", (2, 2), 1e-300), "covariance that is not positive definite"),
        (four_levels, r"expected mean of shape \(9,\) in F64, found \(12,\)"),
        (cut("mean"), r"expected mean of shape \(9,\) in F64, found \(8,\) in F64"),
        (cut("covariance"), r"expected covariance of shape \(9, 9\) in F64, found \(8, 9\)"),
        (cut("scores/typicality"), r"scores/typicality of shape \(150,\) in F64, found \(149,\)"),
        (lambda t, _: t.pop("mean"), "lacks tensors mean"),
        (lambda t, _: t.pop("scores/energy"), "lacks tensors scores/energy"),
        (lambda t, _: t.update(more=torch.ones(1)), "has the unexpected tensors more"),
        (
            lambda t, _: t.update({"scores/oddness": torch.ones(150).double()}),
            "has the unexpected tensors scores/oddness",
        ),
        (lambda t, _: t.update(mean=t["mean"].float()), r"in F64, found \(9,\) in F32"),
        (lambda t, _: t.update(mean=t["mean"].long()), r"in F64, found \(9,\) in I64"),
        (put("probe", (2, 8), torch.nan), "probe holds NaN or infinity"),
        (cut("probe"), r"expected probe of shape \(3, 9\) in F64, found \(2, 9\) in F64"),
        (lambda t, _: t.pop("probe"), "lacks tensors probe"),
        (say(version="1"), "expected statistics of version 2, found '1'"),
        (lambda _, m: m.clear(), "expected statistics of version 2, found 'none'"),
        (say(count="-4"), "expected an integer count, found '-4'"),
        (say(count="1e3"), "expected an integer count, found '1e3'"),
        (say(count="٣٠١"), "expected an integer count"),
        (say(count="9" * 5000), "expected an integer count"),
        (say(count="303"), r"of shape \(151,\) in F64, found \(150,\)"),
        (say(count="9999999999"), r"shape \(4999999999,\) in F64, found \(150,\)"),
        (say(seed="4294967296"), r"expected a seed in 0 … 2\*\*32 - 1, got 4294967296"),
        (say(seed=""), "expected an integer seed, found ''"),
        (say(data=""), "expected a printable name of the data of at most 200 characters, got ''"),
        (say(data="\x1b[2J"), "expected a printable name of the data"),
        (say(data="x" * 201), "expected a printable name of the data"),
    ],
)
def test_hostile_files(
    copied: Path, change: Callable[[Tensors, Metadata], object], message: str
) -> None:
    rewrite(copied, change)
    with pytest.raises((CheckpointError, ConfigError), match=message) as caught:
        load_model(copied)
    text = str(caught.value)
    assert STATISTICS in text and text.isprintable() and len(text) < 600
    assert "delete the file and calibrate the model again" in text


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:30], lambda b: b"", lambda b: b"\x80\x02}q\x00." * 9]
)
def test_what_is_no_safetensors_file(copied: Path, damage: Callable[[bytes], bytes]) -> None:
    file = copied / STATISTICS
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"{STATISTICS}: not a whole safetensors file"):
        load_model(copied)


@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_does_not_lead_out_of_the_folder(
    copied: Path, tmp_path: Path, absolute: bool
) -> None:
    secret = (copied / STATISTICS).rename(tmp_path / "secret")
    (copied / STATISTICS).symlink_to(secret if absolute else os.path.relpath(secret, copied))
    with pytest.raises(CheckpointError, match="found a link out of it; put a copy in its place"):
        load_model(copied)


def test_a_folder_without_the_file(folder: Path) -> None:
    assert read_statistics(folder, 3) is None and load_model(folder).statistics is None


def test_statistics_must_fit_the_model(model: CDRLModel, statistics: ReferenceStatistics) -> None:
    with pytest.raises(ConfigError, match="is of a model of 3 levels, this one has 4"):
        replace(model, statistics=statistics, schedule=NoiseSchedule(num_levels=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": {}}, "expected the scores combined, energy, "),
        ({"count": 10}, r"expected scores/combined of shape \(5,\) in torch.float64, got \(150,\)"),
        ({"count": 1}, "expected 2 to 2,097,152 images, got 1"),
        ({"mean": torch.zeros(0).double()}, r"expected mean of shape \(3,\)"),
        ({"mean": torch.zeros(8).double()}, r"expected mean of shape \(6,\)"),
        ({"mean": torch.zeros(9)}, "in torch.float64, got .* in torch.float32"),
    ],
)
def test_parts_must_fit(
    statistics: ReferenceStatistics, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(statistics, **change)
