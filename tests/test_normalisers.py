"""Normalisers in a model folder, `log_likelihood`, and both commands of `cdrl-eval`."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import CLASSES, make_model
from normaliser_parts import DECODER, SETTLED, by_hand, entry, images

from cdrl_infer.conditions.conditions import Composed
from cdrl_infer.config import from_config
from cdrl_infer.errors import CheckpointError, ConfigError, InputError, NumericalError
from cdrl_infer.likelihood.compute import compute, label_sets
from cdrl_infer.likelihood.decoder import PLAIN
from cdrl_infer.likelihood.normalisers import (
    NORMALISERS,
    Normalisers,
    concept_offsets,
)
from cdrl_infer.likelihood.stationary import Drift
from cdrl_infer.likelihood.telescope import Effort
from cdrl_infer.model import Attribute, CDRLModel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.random import PerImageRandom
from cdrl_infer.storage.folder import load_model, save_model
from cdrl_train import normalise as normalising
from cdrl_train import storing
from cdrl_train.cli_eval import main
from cdrl_train.data.image_set import ImageSet

FORMAT = Path(__file__).parents[1] / "docs" / "format.md"


@pytest.fixture
def normalised(model: CDRLModel) -> CDRLPipeline:
    model.normalisers = by_hand(model, entry((0,), 7.0), entry((2,), -5.0))
    return CDRLPipeline(model, name="tiny")


def test_level_0_is_the_energy_with_its_normaliser(normalised: CDRLPipeline) -> None:
    pixels, model = images(), normalised.model
    out = normalised.log_likelihood(pixels, density="level-0", draws=1, seed=4)
    level = model.schedule.level(1)
    noise = PerImageRandom.from_seeds([4, 5, 6], "cpu").normal((1, 8, 8))
    x_0 = level.diffused(torch.from_numpy(pixels)[:, None] / 127.5 - 1, noise)
    energy = normalised.energy(x_0, noised=True).double()
    expected = -energy - 7.0 + 64 * math.log(level.scale)
    torch.testing.assert_close(out.log_prob, expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(out.lower, expected - 6, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(out.upper, expected + 4, rtol=1e-5, atol=1e-3)
    assert out.standard_error.tolist() == out.normaliser_error.tolist() == [3.0] * 3
    bits = -(expected / 64 + math.log(2 / 255)) / math.log(2)
    torch.testing.assert_close(out.bits_per_dim, bits, rtol=1e-5, atol=1e-4)
    assert out.density == "level-0" and out.verdict == "sound"
    assert (out.ess, out.pareto_k, out.jeffreys) == (20.0, 0.4, (2.0, 2.0, 2.0))
    assert "Bennett's acceptance ratio" in out.method


def test_clean_images(normalised: CDRLPipeline) -> None:
    """More draws narrow the error; an image does not depend on its batch."""
    pixels = images(5)
    out = normalised.log_likelihood(pixels, draws=16)
    one = normalised.log_likelihood(pixels[2:3], draws=16, seed=2)
    torch.testing.assert_close(out.log_prob[2:3], one.log_prob, rtol=1e-5, atol=1e-3)
    parts = normalised.log_likelihood(pixels, draws=16, batch_size=2)
    torch.testing.assert_close(out.log_prob, parts.log_prob, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(out.bits_per_dim, -out.log_prob / (64 * math.log(2)))
    assert out.density == "8-bit" and bool((out.standard_error > 3.0).all())
    assert bool((out.lower < out.log_prob - 6).all() and (out.upper > out.log_prob + 4).all())


def test_labels_have_their_own_normalisers(normalised: CDRLPipeline) -> None:
    pixels = images()
    kwargs: dict[str, Any] = {"density": "level-0", "draws": 1}
    out = normalised.log_likelihood(pixels, labels=["Sneaker", None, 1], **kwargs)
    plain = normalised.log_likelihood(pixels, **kwargs)
    assert float(out.log_prob[1]) == pytest.approx(float(plain.log_prob[1]), abs=1e-3)
    assert {one.labels for one in out.normalisers} == {(0,), (2,)}
    with pytest.raises(InputError, match=r"labels \(0,\), \(2,\) .*, got \(1,\); .*--per-class"):
        normalised.log_likelihood(pixels, labels="Shirt")


def test_or_of_densities(model: CDRLModel) -> None:
    """log-mean-exp of normalised densities; a constant in a class's energy is taken out again."""
    entries = [entry((0,), 7.0), entry((1,), -5.0), entry((2,), 40.0)]
    model.normalisers = by_hand(model, *entries)
    pipe = CDRLPipeline(model, name="tiny")
    concepts = [pipe.concept("Shirt"), pipe.concept("Sneaker")]
    offsets = concept_offsets(model, concepts, "tiny")
    assert offsets.tolist() == [[-12.0, 0.0, 0.0], [33.0, 0.0, 0.0]]
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    none, *given = (
        pipe.energy(x, labels=label, noised=True) for label in (None, "Shirt", "Sneaker")
    )
    densities = [-e - one.log_z[0] for e, one in zip(given, entries[1:], strict=True)]
    expected = torch.stack(densities).logsumexp(0) - math.log(2) + entries[0].log_z[0]
    energy, _ = Composed(concepts[0] | concepts[1], offsets).bind(
        model, slice(0, 2), PerImageRandom.from_seeds([0, 1], "cpu")
    )
    level = model.schedule.level(1)
    torch.testing.assert_close(-energy(x * level.scale, level), expected, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(expected, -none)
    options: dict[str, Any] = {"seeds": [0, 1], "output_type": "pt"}
    plain = pipe.compose("Shirt | Sneaker", **options)
    ours = pipe.compose("Shirt | Sneaker", normalised=True, **options)
    assert not torch.equal(plain.energies, ours.energies)
    same = pipe.compose("Shirt & Sneaker", normalised=True, **options).images
    torch.testing.assert_close(same, pipe.compose("Shirt & Sneaker", **options).images)
    with pytest.raises(InputError, match=r"got \(3,\); .*--per-class"):
        pipe.compose("Shirt | Bag", normalised=True)


def test_refusals(normalised: CDRLPipeline) -> None:
    pixels, model = images(), normalised.model
    leaky = Drift(-1.0, 0.1, 0.0, 0.1, -16.0, 1.0)
    for changes, reason in (
        ({"chains": leaky}, "at level 0 the energy is lower off the data than on it: .* 16.0"),
        ({"lower": 9.0, "upper": 0.0}, "forward and reverse contradict each other at transition 1"),
    ):
        model.normalisers = by_hand(model, entry((0,), 0.0, **changes))
        with pytest.raises(NumericalError, match=f"the likelihood of 'tiny' is refused: {reason}"):
            normalised.log_likelihood(pixels)
    model.normalisers = by_hand(model, entry((0,), 0.0, overlap=0.001))
    assert normalised.log_likelihood(pixels).verdict.startswith(
        "bracketed: believe lower and upper"
    )
    unsure = replace(SETTLED, leak=-0.9, leak_error=0.4)
    model.normalisers = by_hand(model, entry((0,), 0.0, chains=unsure))
    verdict = normalised.log_likelihood(pixels).verdict
    assert verdict.startswith("undecided: at level 0 the energy is lower off the data than on it: ")
    other = make_model(CLASSES, seed=1)
    model.normalisers = by_hand(other, entry((0,), 0.0))
    with pytest.raises(ConfigError, match=r"normalisers belong to other weights.*--normalise"):
        normalised.log_likelihood(pixels)
    levels = replace(by_hand(model, entry((0,), 0.0)), schedule={"num_levels": 3})
    model.normalisers = levels
    with pytest.raises(ConfigError, match=r"belong to other noise levels.*--normalise"):
        normalised.log_likelihood(pixels)
    model.normalisers = None
    with pytest.raises(InputError, match=r"'tiny' has no normalisers.*cdrl-eval --normalise"):
        normalised.log_likelihood(pixels)
    with pytest.raises(InputError, match="one of 8-bit, level-0, level-1, level-2, got 'x'"):
        normalised.log_likelihood(pixels, density="x")
    with pytest.raises(InputError, match="there is no option 'class_labels': use labels="):
        normalised.log_likelihood(pixels, class_labels=["Shirt"])


def test_they_go_with_their_weights(
    normalised: CDRLPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = normalised.model
    save_model(model, tmp_path / "a")
    assert load_model(tmp_path / "a").normalisers == model.normalisers
    half = tmp_path / "half"
    save_model(model, half, dtype=torch.float16)
    CDRLPipeline.from_pretrained(half).log_likelihood(images())  # rounded weights are recognised
    with caplog.at_level(logging.WARNING):
        save_model(replace(make_model(CLASSES, seed=1), normalisers=model.normalisers), half)
    assert f"{NORMALISERS} is not written" in caplog.text and not (half / NORMALISERS).exists()


def test_damaged_files(normalised: CDRLPipeline, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    save_model(normalised.model, folder)
    file = folder / NORMALISERS
    whole = json.loads(file.read_text())
    decoder, plain = asdict(DECODER), asdict(PLAIN)
    for change, error, reason in (
        ({"version": 2}, CheckpointError, "expected normalisers of version 1, found 2"),
        ({"entries": 3}, ConfigError, "'entries' must be"),
        ({"more": 3}, ConfigError, "unknown key 'more'"),
        ({"decoders": [{**decoder, "widths": [1.0] * 15}] * 3}, ConfigError, "must have 16 values"),
        ({"decoders": [decoder, plain, decoder]}, ConfigError, "decoders, one per level"),
        (
            {"decoders": [decoder] * 2},
            ConfigError,
            "expected 3 normalisers and decoders, one per level",
        ),
    ):
        file.write_text(json.dumps({**whole, **change}))
        with pytest.raises(error, match=reason):
            load_model(folder)
    for row in whole["entries"]:
        for name in ("log_z", "error", "lower", "upper", "transitions"):
            row[name] = row[name][:2]
    file.write_text(json.dumps(whole))
    with pytest.raises(ConfigError, match="expected 3 normalisers and decoders, one per level"):
        load_model(folder)


def test_the_file_is_what_docs_format_says() -> None:
    section = FORMAT.read_text(encoding="utf-8").split(f"\n### {NORMALISERS}")[1]
    found = re.search(r"```json\n(.*?)```", section, re.DOTALL)
    assert found is not None
    config = json.loads(found[1])
    shown = from_config(Normalisers, config, "docs/format.md")
    assert json.loads(shown.to_bytes()) == config and not shown.entries[0].faults()


def test_network_sees_one_row_of_labels_as_many(model: CDRLModel) -> None:
    """Normalising binds one row of labels to batches of any size, and classes differ."""
    effort = Effort(chains=4, pilots=4, moves=8, leapfrog_steps=1, temperatures=4, particles=2)
    sets = label_sets(model, per_class=True)
    assert sets == [(0,), (1,), (2,), (3,)]
    asked = []

    def begin(labels: tuple[int, ...]) -> torch.Tensor:
        asked.append(labels)
        return torch.zeros(2, 1, 8, 8)

    CDRLPipeline(model)
    found = compute(model, sets[:2], begin, name="zeros", seed=1, effort=effort)
    assert asked == sets[:2] and [e.labels for e in found.entries] == sets[:2]
    assert found.entries[0].log_z != found.entries[1].log_z
    again = compute(model, sets[:1], begin, name="zeros", seed=1, effort=effort)
    assert again.entries[0] == found.entries[0]
    found.check_weights(model)
    assert [one.is_plain for one in found.decoders] == [True, False, False]
    without = compute(model, sets[:1], lambda _: None, name="none", effort=effort)
    assert without.decoders == ()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "clothes.npz"
    np.savez(path, test_images=images(40), test_labels=np.arange(40) % 3)
    return path


def test_normalise_command(
    folder: Path, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Path(shutil.copytree(folder, tmp_path / "mine"))
    few = partial(Effort, pilots=4, leapfrog_steps=1, temperatures=4)
    monkeypatch.setattr(storing, "Effort", few)
    result = run(
        *("--model", mine, "--data", data, "--normalise", "--seed", 3),
        *("--chains", 4, "--moves", 8),
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{mine / NORMALISERS}: begun at clothes.npz, test, seed 3\n")
    found = load_model(mine).normalisers
    assert found is not None and (found.data, found.seed) == ("clothes.npz, test", 3)
    assert [e.labels for e in found.entries] == [(0,)] and "3 -> 2" in result.stdout
    assert len(found.decoders) == 3
    wrong = run("--model", mine, "--data", data, "--normalise", "--repeats", 2)
    assert (
        wrong.exit_code == 2 and "--normalise measures nothing: leave --repeats out" in wrong.output
    )
    wrong = run("--model", mine, "--data", data, "--per-class")
    assert wrong.exit_code == 2 and "--per-class is for --normalise" in wrong.output
    wrong = run("--data", data, "--normalise")
    assert wrong.exit_code == 2 and "--normalise writes into the model's folder" in wrong.output


@pytest.mark.parametrize(
    ("values", "begins"), [(("0", "1", "2"), "data"), (("cat", "dog", "cow"), "samples")]
)
def test_classes_begin_at_their_own_images(
    model: CDRLModel, values: tuple[str, ...], begins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes are the model's by name or by number, as in an array file, which has no names."""
    labels = torch.arange(30)[:, None] % 3
    pixels = (80 * labels).to(torch.uint8)[..., None, None].expand(-1, -1, 8, 8)
    data = ImageSet(pixels, labels, (Attribute("label", values),))
    begun: dict[tuple[int, ...], torch.Tensor | None] = {}

    def compute_nothing(
        model: CDRLModel, sets: list[tuple[int, ...]], begin: Any, **kwargs: Any
    ) -> None:
        begun.update((labels, begin(labels)) for labels in sets)

    monkeypatch.setattr(normalising, "compute", compute_nothing)
    normalising.normalise(CDRLPipeline(model), data, name="greys", per_class=True)
    everything = begun.pop((0,))
    assert everything is not None and len(everything) == 30
    for (label,), pictures in begun.items():
        if begins == "samples":
            assert pictures is None
        else:
            assert pictures is not None and pictures.shape == (10, 1, 8, 8)
            grey = torch.full_like(pictures, 80 * (label - 1) / 127.5 - 1)
            torch.testing.assert_close(pictures, grey)


def test_metric(normalised: CDRLPipeline, tmp_path: Path, data: Path) -> None:
    mine, out = tmp_path / "mine", tmp_path / "results.json"
    save_model(normalised.model, mine)
    asked = ("--model", mine, "--data", data, "-n", 20, "--metrics", "likelihood")
    result = run(*asked, "--repeats", 2, "--out", out, "--update-card")
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text(encoding="utf-8"))
    clean, noised = report["results"]
    assert (clean["metric"], noised["metric"]) == ("bits-per-dim", "bits-per-dim-level-0")
    unit = 64 * math.log(2)
    for one in (clean, noised):
        assert one["args"]["verdict"] == "sound" and one["n"] == 20 and len(one["values"]) == 2
        assert one["error"] > 3.0 / unit  # the normaliser's part is shared by all images
        assert one["value"] - one["args"]["lower"] == pytest.approx(4 / unit, abs=1e-5)
        assert one["args"]["upper"] - one["value"] == pytest.approx(6 / unit, abs=1e-5)
    card = (mine / "README.md").read_text(encoding="utf-8")
    assert "bits/dim, bound for clean 8-bit images" in card and "verdict: sound" in card

    model = load_model(mine)
    model.normalisers = by_hand(model, entry((0,), 0.0, lower=9.0, upper=0.0))
    save_model(model, mine)
    by_level_1 = replace(model, normalisers=replace(model.normalisers, decoders=(DECODER,) * 3))
    save_model(by_level_1, tmp_path / "one")
    above = run("--model", tmp_path / "one", *asked[2:], "--out", out)
    assert above.exit_code == 0, above.output
    clean, noised = json.loads(out.read_text(encoding="utf-8"))["results"]
    assert (clean["metric"], noised["metric"]) == ("bits-per-dim", "bits-per-dim-level-1")
    for one in (clean, noised):
        assert one["args"]["level"] == 1 and one["args"]["verdict"] == "sound"
        assert one["value"] - one["args"]["lower"] == pytest.approx(1 / unit, abs=1e-5)
        assert one["args"]["upper"] - one["value"] == pytest.approx(1 / unit, abs=1e-5)
    refused = run(*asked)
    assert refused.exit_code == 3 and "is refused: forward and reverse contradict" in refused.output
    (mine / NORMALISERS).unlink()
    absent = run(*asked)
    assert absent.exit_code == 2 and "has no normalisers" in absent.output
