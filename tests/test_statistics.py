"""``statistics.safetensors``: written, read again, and not trusted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, make_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cdrl_infer.errors import CheckpointError, ConfigError, InputError
from cdrl_infer.model import CDRLModel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.scoring import SCORES
from cdrl_infer.scoring.calibration import calibrate
from cdrl_infer.scoring.detector import CDRLDetector
from cdrl_infer.scoring.reference import STATISTICS, ReferenceStatistics, read_statistics
from cdrl_infer.scoring.weights import RECOGNISED, weights_digest
from cdrl_infer.storage.folder import load_model, model_files, save_model
from cdrl_infer.untrusted import DIGEST

Metadata = dict[str, str]
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def tiny() -> CDRLPipeline:
    return CDRLPipeline(make_model(CLASSES))


def images(count: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, 8, 8), generator=random).byte()


@pytest.fixture(scope="module")
def statistics(tiny: CDRLPipeline) -> ReferenceStatistics:
    return calibrate(tiny.model, images(301, 0), data="noise", seed=3)


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
    assert (a.seed, a.data, a.count, a.weights) == (b.seed, b.data, b.count, b.weights)
    assert a.score == b.score
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
        outs = [p.score(images(5, 2), name, threshold_fpr=0.1) for p in (pipe, again)]
        assert torch.equal(outs[0].scores, outs[1].scores)
        assert outs[0].p_values is not None and outs[1].p_values is not None
        assert torch.equal(outs[0].p_values, outs[1].p_values)
        assert outs[0].threshold == outs[1].threshold and outs[0].seed == 3


def test_a_calibration_may_name_the_models_own_score(
    statistics: ReferenceStatistics, tiny: CDRLPipeline, tmp_path: Path
) -> None:
    """It is stored, taken where a user names none, and kept by a later calibration."""
    own = replace(statistics, score="typicality")
    save_model(replace(tiny.model, statistics=own), tmp_path / "own")
    pipe = CDRLPipeline.from_pretrained(tmp_path / "own")
    assert_same(pipe.model.statistics, own)
    pixels = images(5, 2)
    assert pipe.score(pixels).score == "typicality"
    assert pipe.score(pixels, "combined").score == "combined"
    detector = CDRLDetector(pipe).fit(images(80, 7))
    expected = -pipe.calibrate(images(80, 7)).score(pixels).scores
    assert pipe.score(pixels).score == "typicality"
    np.testing.assert_allclose(detector.score_samples(pixels), expected, rtol=1e-6)
    assert pipe.calibrate(images(80, 7), score="energy").score(pixels).score == "energy"
    with pytest.raises(InputError, match=r"score must be one of combined, .*, got 'x'"):
        pipe.calibrate(images(80, 7), score="x")
    pipe.model.statistics = replace(own, score="theirs")
    with pytest.raises(
        ConfigError, match=r"calibrated for the score 'theirs', .* import the module"
    ):
        pipe.score(pixels)
    for name in ("", "two\nlines", "x" * 101):
        with pytest.raises(ConfigError, match="expected the name of a score"):
            replace(own, score=name)


def test_the_file_is_what_docs_format_says(saved: Path, tiny: CDRLPipeline) -> None:
    weights = " ".join(weights_digest(tiny.model, dtype) for dtype in RECOGNISED)
    with safe_open(saved / STATISTICS, "pt") as file:  # type: ignore[no-untyped-call]
        assert (
            file.metadata().items()
            >= {
                "version": "3",
                "data": "noise",
                "count": "301",
                "seed": "3",
                "weights": weights,
            }.items()
        )
    tensors = load_file(saved / STATISTICS)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes.pop("mean") == (9,) and shapes.pop("covariance") == (9, 9)
    columns = ["energies", "score_norms", "log_score_errors", "log_initializer_errors"]
    for half, rows in (("fitted", 151), ("held_out", 150)):
        assert shapes.pop(f"{half}/compressed_size") == (rows,)
        assert all(shapes.pop(f"{half}/{column}") == (rows, 3) for column in columns)
    assert not shapes
    text = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
    section = text.split("\n### statistics.safetensors")[1].split("\n## ")[0]
    named = ["mean", "covariance", "fitted/", "held_out/", "compressed_size", "weights", *columns]
    assert all(f"`{name}`" in section for name in named)


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
        metadata = {name: text for name, text in file.metadata().items() if name != DIGEST}
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
        (put("held_out/energies", (0, 1), -torch.inf), "held_out/energies holds NaN or infinity"),
        (put("fitted/compressed_size", (3,), torch.nan), "fitted/compressed_size holds NaN"),
        (put("covariance", (0, 1), 1.0), "the covariance is not symmetric"),
        (put("covariance", (2, 2), -1.0), "covariance that is not positive definite"),
        (put("covariance", (2, 2), 0.0), "covariance that is not positive definite"),
        (put("covariance", (2, 2), 1e-300), "covariance that is not positive definite"),
        (four_levels, r"expected mean of shape \(9,\) in F64, found \(12,\)"),
        (cut("mean"), r"expected mean of shape \(9,\) in F64, found \(8,\) in F64"),
        (cut("covariance"), r"expected covariance of shape \(9, 9\) in F64, found \(8, 9\)"),
        (
            cut("held_out/energies"),
            r"held_out/energies of shape \(150, 3\) in F64, found \(149, 3\)",
        ),
        (lambda t, _: t.pop("mean"), "lacks tensors mean"),
        (lambda t, _: t.pop("fitted/energies"), "lacks tensors fitted/energies"),
        (lambda t, _: t.update(more=torch.ones(1)), "has the unexpected tensors more"),
        (lambda t, _: t.update(mean=t["mean"].float()), r"in F64, found \(9,\) in F32"),
        (lambda t, _: t.update(mean=t["mean"].long()), r"in F64, found \(9,\) in I64"),
        (say(version="2"), "expected statistics of version 3, found '2'"),
        (lambda _, m: m.clear(), "expected statistics of version 3, found 'none'"),
        (say(weights=""), "expected sha256 digests as weights, found ''"),
        (say(weights="0" * 63), "expected sha256 digests as weights, found '000"),
        (say(weights=" ".join(["0" * 64] * 4)), "expected sha256 digests as weights, found '000"),
        (say(count="-4"), "expected an integer count, found '-4'"),
        (say(count="1e3"), "expected an integer count, found '1e3'"),
        (say(count="٣٠١"), "expected an integer count"),
        (say(count="9" * 5000), "expected an integer count"),
        (say(count="303"), r"of shape \(152, 3\) in F64, found \(151, 3\)"),
        (say(count="9999999999"), r"shape \(5000000000, 3\) in F64, found \(151, 3\)"),
        (say(seed="4294967296"), r"expected a seed in 0 … 2\*\*32 - 1, got 4294967296"),
        (say(seed=""), "expected an integer seed, found ''"),
        (say(data=""), "the name of the data must have 1 to 200 printable characters, got ''"),
        (say(data="\x1b[2J"), "the name of the data must have 1 to 200 printable"),
        (say(data="x" * 201), "the name of the data must have 1 to 200 printable"),
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
    with pytest.raises(ConfigError, match="is for a model of 3 levels, this one has 4"):
        replace(model, statistics=statistics, schedule=NoiseSchedule(num_levels=4))
