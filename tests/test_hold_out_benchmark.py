"""benchmarks/hold_out.py: what it reads, that it goes on where it stopped, and its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hold_out
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hold_out import METHODS, PUBLISHED, TRAININGS, SmallVAE, rows, validation_data

from cdrl_train.data.sources import load_for, load_images
from cdrl_train.presets import preset


@pytest.fixture
def digits(tmp_path: Path) -> str:
    """Sixty training and thirty test images of three digits; a pixel says which image it is."""
    images = np.zeros((90, 8, 8), np.uint8)
    images[:, 0, 0] = np.arange(90)
    labels = np.arange(90) % 3
    np.savez(
        tmp_path / "digits.npz",
        train_images=images[:60],
        train_labels=labels[:60],
        test_images=images[60:],
        test_labels=labels[60:],
    )
    return str(tmp_path / "digits.npz")


def test_validation_never_has_a_test_image(digits: str, tmp_path: Path) -> None:
    file = str(validation_data(digits, tmp_path / "out"))
    seen = [load_images(file, split).images[:, 0, 0, 0].tolist() for split in ("train", "test")]
    assert seen == [[*range(50)], [*range(50, 60)]]


def test_all_test_images_are_scored_and_a_run_is_not_repeated(
    digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    def fake(setting: Any, method: str, digit: str, seed: int, sets: Any) -> list[Any]:
        inside, outside = (images[:, 0, 0, 0].double().numpy() for images in sets)
        calls.append((method, digit, seed, sorted(inside), sorted(outside)))
        return [-inside, outside]  # perfect

    monkeypatch.setattr(hold_out, "scores", fake)

    def run(*more: str) -> str:
        given = ["--data", digits, "--out", str(tmp_path / "out"), "--methods", "mpdr-s,vae", *more]
        result = CliRunner().invoke(hold_out.main, given)
        assert result.exit_code == 0, result.output
        return result.stdout

    run("--digits", "1", "--seeds", "0,1")
    assert len(calls) == 4
    images = [*range(60, 90)]
    assert all(c[3] == [k for k in images if k % 3 != 1] for c in calls)
    assert all(c[4] == [k for k in images if k % 3 == 1] for c in calls)
    table = run("--digits", "1,2", "--seeds", "0,1")
    assert len(calls) == 8 and {c[1] for c in calls[4:]} == {"2"}
    assert "1.000 ± 0.000 (2)" in table and "VAE, published" in table
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert len(lines) == 8 and json.loads(lines[0])["inside"] == 20
    run("--digits", "1", "--seeds", "0", "--minutes", "3")
    assert len(calls) == 10  # another time is another run


@pytest.mark.parametrize("method", METHODS)
def test_models_are_trained_with_gradients(
    method: str, digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trained(Exception): ...

    def train(*_: Any) -> Any:
        assert torch.is_grad_enabled()
        raise Trained

    monkeypatch.setattr(hold_out, "trained", train)
    monkeypatch.setattr(hold_out, "trained_vae", train)
    setting = hold_out.Setting(digits, tmp_path, None, False, None, ())
    with pytest.raises(Trained):
        hold_out.measured(setting, method, "1", 0)


def test_the_table_has_the_published_figures_beside_ours() -> None:
    results = [{"method": "mpdr-s", "digit": "9", "aupr": value} for value in (0.4, 0.6)]
    found = {row[0]: row[1:] for row in rows(results, ["9", "3"])}
    assert found["mpdr-s"] == ["0.500 ± 0.141 (2)", ""]
    assert found["VAE, published"] == ["0.104", ""]
    assert all(len(values) == 5 for values in PUBLISHED.values())
    areas = [{"method": "vae", "digit": "9", "auroc": 0.75}]
    assert rows(areas, ["9"], "auroc") == [["vae", "0.750"]]


def test_other_classes_have_no_published_figures() -> None:
    results = [{"method": "vae", "digit": "Bag", "aupr": 0.5}]
    assert rows(results, ["Bag", "Coat"]) == [["vae", "0.500", ""]]


@pytest.mark.parametrize("validate", [False, True])
def test_a_class_is_held_out_by_its_name(validate: bool, tmp_path: Path) -> None:
    """Training, test and validation images know the classes of Fashion-MNIST."""
    images, labels = np.zeros((60, 8, 8), np.uint8), np.arange(60) % 10
    images[:, 0, 0] = labels
    source, splits = str(tmp_path / "fashion_mnist.npz"), ("train", "test")
    arrays = {f"{s}_{k}": v for s in splits for k, v in (("images", images), ("labels", labels))}
    np.savez(source, **arrays)
    if validate:
        source = str(validation_data(source, tmp_path / "out"))
    setting = hold_out.Setting(source, tmp_path, None, validate, None, ())
    kept = load_for(source, hold_out.options(setting, "mpdr-s", "Bag", 0).data)
    assert kept.held_out == ("Bag",) and 8 not in kept.images[:, 0, 0, 0]
    assert len(kept) == (45 if validate else 54)
    _, gone = load_images(source, "test").split_off(["Bag"])
    assert (gone.images[:, 0, 0, 0] == 8).all() and len(gone) == (1 if validate else 6)


def test_every_method_has_a_training_and_a_preset() -> None:
    for training, _ in METHODS.values():
        name = TRAININGS[training]
        assert name == "" or preset(name).override(["data.hold_out=9", "data.attributes=[]"])


def test_the_bound_is_that_of_its_gaussians() -> None:
    """With a decoder that ignores z, -ELBO is the Gaussian's cost of the pixels plus the divergence."""
    vae, u = SmallVAE(1, (8, 8), width=4, latent=3), torch.rand(5, 1, 8, 8) * 2 - 1
    for parameter in vae.decoder.up3.parameters():
        torch.nn.init.zeros_(parameter)
    mean, log_std = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([0.0, -0.5, 0.3])
    torch.nn.init.zeros_(vae.leave.weight)
    vae.leave.bias.data = torch.cat([mean, log_std])
    q = torch.distributions.Normal(mean, log_std.exp())
    p = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
    kl = torch.distributions.kl_divergence(q, p).sum()
    width = vae.log_width.exp()
    pixels = -torch.distributions.Normal(0.0, width).log_prob(u).flatten(1).sum(1)
    half_log_2pi = 64 * 0.5 * np.log(2 * np.pi)
    torch.testing.assert_close(vae.bound(u, torch.randn(5, 3)), pixels - half_log_2pi + kl)
