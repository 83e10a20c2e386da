"""`cdrl-eval`'s figures: closed cases, what is cached, whole runs of a tiny model, two processes."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard
from numpy.typing import NDArray
from test_ddp import environment, free_port
from torch import Tensor, nn

from cdrl_infer.errors import CheckpointError, InputError, NumericalError
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.card import with_figures
from cdrl_train.cli_eval import main
from cdrl_train.evaluation import evaluate, fidelity, sampling
from cdrl_train.evaluation.cache import FeatureCache
from cdrl_train.evaluation.classifier import load_classifier
from cdrl_train.evaluation.efficientnet import EfficientNetLite0
from cdrl_train.evaluation.report import binomial_error, over_repeats, plus_minus, slug

Rows = NDArray[np.float32]
CPU = torch.device("cpu")
SHAPE = (1, 8, 8)


class ByBrightness(nn.Module):
    """Three classes: the darkest third of the grey levels, the middle, the brightest."""

    def forward(self, x: Tensor) -> Tensor:
        return -(x.mean((1, 2, 3))[:, None] - torch.tensor([0.2, 0.5, 0.8])).abs()


def export(network: nn.Module, file: Path, batch: bool = True, shape: Any = SHAPE) -> Path:
    dims = ({0: torch.export.Dim("batch")},) if batch else None
    program = torch.export.export(network.eval(), (torch.rand(2, *shape),), dynamic_shapes=dims)
    torch.export.save(program, file)
    return file


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(ByBrightness(), tmp_path_factory.mktemp("classifier") / "c.pt2")


@pytest.fixture
def model(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "tiny"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images of one grey level each, by class."""
    labels = np.arange(60) % 3
    levels = np.array([51, 127, 204], np.uint8)[labels]
    images = np.broadcast_to(levels[:, None, None], (60, 8, 8))
    path = tmp_path / "grey.npz"
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return path


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    path = tmp_path / "noise.npz"
    np.savez(path, test_images=np.random.default_rng(0).integers(0, 256, (50, 8, 8), np.uint8))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


# Figures of features, by torch-fidelity


def gaussian(mean: float, count: int = 400, dim: int = 4, seed: int = 0) -> Rows:
    x = np.random.default_rng(seed).standard_normal((count, dim))
    q, _ = np.linalg.qr(x - x.mean(0))
    return (mean + np.sqrt(count - 1) * q).astype(np.float32)


def test_frechet_distance_of_gaussians() -> None:
    pytest.importorskip("torch_fidelity")
    assert fidelity.frechet(gaussian(0), gaussian(0, seed=1)) == pytest.approx(0, abs=1e-5)
    assert fidelity.frechet(gaussian(0), gaussian(3)) == pytest.approx(4 * 9, rel=1e-5)
    assert fidelity.frechet(gaussian(0), 3 * gaussian(0)) == pytest.approx(4 * 4, rel=1e-5)


def test_frechet_distance_of_few_images_agrees_with_the_benchmarks() -> None:
    pytest.importorskip("torch_fidelity")
    from frechet import frechet_distance

    a, b = np.random.default_rng(0).standard_normal((2, 20, 60)).astype(np.float32)
    assert fidelity.frechet(a, b) == pytest.approx(frechet_distance(a, b), rel=1e-4)


def test_kernel_distance_of_all_images_is_the_unbiased_formula() -> None:
    pytest.importorskip("torch_fidelity")
    a, b = gaussian(0, 30), gaussian(0.5, 30, seed=1)

    def kernel(x: Rows, y: Rows) -> NDArray[np.float64]:
        result: NDArray[np.float64] = (x.astype(float) @ y.T.astype(float) / 4 + 1) ** 3
        return result

    inner = [(k.sum() - k.trace()) / (30 * 29) for k in (kernel(a, a), kernel(b, b))]
    expected = sum(inner) - 2 * kernel(a, b).mean()
    assert fidelity.kernel_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_inception_score_is_the_number_of_classes_that_are_told_apart() -> None:
    pytest.importorskip("torch_fidelity")
    sure = 100 * np.eye(5, dtype=np.float32)[np.random.default_rng(0).integers(0, 5, 5000)]
    assert fidelity.inception_score(sure) == pytest.approx(5, rel=0.01)
    assert fidelity.inception_score(np.zeros((50, 5), np.float32)) == pytest.approx(1)


def test_precision_is_of_the_samples_and_recall_of_the_real_images() -> None:
    pytest.importorskip("torch_fidelity")
    real = np.concatenate([gaussian(0, 40), gaussian(50, 40)])
    half = gaussian(0, 40, seed=2) * 0.5
    precision, recall = fidelity.precision_recall(half, real)
    assert precision == 1 and 0.2 < recall <= 0.5
    assert fidelity.precision_recall(real, real) == (1, 1)


def test_features_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(NumericalError, match="not finite"):
        fidelity._finite(np.array([[np.nan]], np.float32))


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random ones in the right form."""
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    place = tmp_path_factory.mktemp("inception")
    torch.save({}, place / "none.pth")
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3(
            "x", ["2048"], feature_extractor_weights_path=str(place / "none.pth")
        )
    torch.save(network.state_dict(), place / "random.pth")
    return place / "random.pth"


def test_inception_with_weights_of_ones_own(inception_weights: Path) -> None:
    from cdrl_train.evaluation.extractors import load_extractor

    extractor = load_extractor("inception-v3-compat", inception_weights, CPU)
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), np.uint8)
    rows = extractor(images)
    assert rows.shape == (3, extractor.feature_dim + extractor.logits) == (3, 3056)
    np.testing.assert_allclose(extractor(images.repeat(3, axis=1)), rows, rtol=1e-4, atol=1e-4)
    state = torch.load(inception_weights, weights_only=True)
    state["fc.bias"][0] += 1
    torch.save(state, inception_weights.with_name("other.pth"))
    other = load_extractor("inception-v3-compat", inception_weights.with_name("other.pth"), CPU)
    assert other.digest != extractor.digest


class Evil:
    """Runs code where it is unpickled without limits."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_a_file_of_weights_is_not_run(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")
    from cdrl_train.evaluation.inception import load_inception

    file = tmp_path / "weights.pth"
    for content in (pickle.dumps(Evil(tmp_path / "ran")), b"", b"junk"):
        file.write_bytes(content)
        with pytest.raises(InputError, match="expected torch-fidelity's weights of Inception v3"):
            load_inception(file, CPU)
    torch.save({"a": Evil(tmp_path / "ran")}, file)
    with pytest.raises(InputError, match="expected torch-fidelity's weights of Inception v3"):
        load_inception(file, CPU)
    assert not (tmp_path / "ran").exists()


# The cache


@dataclasses.dataclass
class Counting:
    """Two features and a logit, and how often it was asked."""

    name: str = "counting"
    title: str = "Counting"
    digest: str = "d"
    convention: str = "none"
    feature_dim: int = 2
    logits: int = 1
    calls: int = 0

    def __call__(self, images: NDArray[np.uint8]) -> Rows:
        self.calls += 1
        x = images.reshape(len(images), -1).astype(np.float32)
        return np.stack([x.mean(1), x.std(1), x.max(1)], axis=1)


def test_features_are_made_once_for_each_content_and_extractor(tmp_path: Path) -> None:
    cache, extractor = FeatureCache(tmp_path / "new" / "cache"), Counting()
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 4, 4), np.uint8)
    rows = cache(extractor, images)
    assert (cache(extractor, images.copy()) == rows).all() and extractor.calls == 1
    cache(extractor, images[::-1].copy())
    assert extractor.calls == 2
    other = Counting(digest="e")
    cache(other, images)
    assert other.calls == 1 and len(list(cache.folder.iterdir())) == 3


@pytest.mark.parametrize("damage", ["cut", "turned", "empty", "shape", "npy"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    cache, extractor = FeatureCache(tmp_path), Counting()
    images = np.random.default_rng(0).integers(0, 256, (50, 1, 4, 4), np.uint8)
    rows = cache(extractor, images)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "turned":
        content[len(content) // 2] ^= 1
    file.write_bytes(content[: {"cut": 200, "empty": 0}.get(damage, len(content))])
    if damage == "shape":
        with file.open("wb") as stream:
            np.savez(stream, rows=rows[:-1])
    if damage == "npy":
        with file.open("wb") as stream:
            np.save(stream, rows)
    assert (cache(extractor, images) == rows).all() and extractor.calls == 2
    assert (cache(extractor, images) == rows).all() and extractor.calls == 2


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another with --cache"):
        FeatureCache(tmp_path / "file")


# The classifier


def test_a_classifier_sees_images_in_0_to_1_in_batches_of_any_size(classifier: Path) -> None:
    found = load_classifier(classifier, SHAPE, [3])
    images = np.broadcast_to(
        np.array([51, 127, 204, 0], np.uint8)[:, None, None, None], (4, *SHAPE)
    )
    assert found(images.copy())[:, 0].tolist() == [0, 1, 2, 0]
    assert found(images[2:3].copy()).tolist() == [[2]]
    two = load_classifier(classifier, SHAPE, [1, 2])
    assert two(images[:3].copy()).tolist() == [[0, 0], [0, 0], [0, 1]]


def test_classifiers_that_do_not_fit(classifier: Path, tmp_path: Path) -> None:
    one_size = export(ByBrightness(), tmp_path / "one.pt2", batch=False)
    junk = tmp_path / "junk.pt2"
    junk.write_bytes(b"junk")
    archive = tmp_path / "archive.pt2"
    np.savez(archive.with_suffix(".npz"), a=1)
    archive.with_suffix(".npz").rename(archive)
    for file, shape, classes, message in (
        (tmp_path / "nowhere", SHAPE, [3], "expected a file, found none"),
        (junk, SHAPE, [3], "found another file"),
        (archive, SHAPE, [3], "expected a .pt2 file of torch.export.save"),
        (one_size, SHAPE, [3], "in batches of any size"),
        (classifier, (3, 8, 8), [3], r"expected a network of 3 images \(3, 8, 8\)"),
        (classifier, SHAPE, [4], r"expected logits \(3, 4\) for 3 images"),
    ):
        with pytest.raises(InputError, match=message) as found:
            load_classifier(file, shape, classes)
        assert "\n" not in str(found.value)


# What is told


def test_errors_have_two_digits_and_figures_as_many() -> None:
    assert plus_minus(305.94, 9.62) == "305.9 ± 9.6"
    assert plus_minus(305.94, 13.5) == "306 ± 14"
    assert plus_minus(0.012351, 0.00012) == "0.01235 ± 0.00012"
    assert plus_minus(0.5) == "0.5" and plus_minus(1, 0) == "1 ± 0"
    assert over_repeats([3.0]) == (None, None)
    error, kind = over_repeats([1.0, 2.0, 3.0])
    assert error == pytest.approx(1 / np.sqrt(3)) and kind == "standard error over 3 repeats"
    assert binomial_error(1816, 2000) == pytest.approx(0.0065, abs=5e-5)
    assert binomial_error(0, 1) == pytest.approx(np.sqrt(1 / 18))  # of the density 2 (1 - p)
    assert slug("Fashion-MNIST.npz") == "fashion_mnist" and slug("…") == "data"


CARD = """---
library_name: cdrl  # by hand
model-index:
- name: mine
  results:
  - task: {type: unconditional-image-generation}
    dataset: {type: grey, name: Grey, split: test}
    metrics:
    - {type: fid, name: "FID (Inception v3, n = 20)", value: 9.0, args: {n: 20}}
    - {type: fid, name: "FID (Inception v3, n = 50)", value: 5.0, args: {n: 50}}
  - task: {type: unconditional-image-generation}
    dataset: {type: grey, name: Grey, split: train}
    metrics:
    - {type: fid, name: "FID (Inception v3, n = 20)", value: 8.0}
# a remark
license: mit
---

# Mine\r
---
by hand
"""
FID = {"type": "fid", "name": "FID (Inception v3, n = 20)", "value": 3.5, "args": {"n": 20}}
DATASET = {"type": "grey", "name": "grey.npz", "split": "test"}


def figures_of(card: str) -> list[tuple[Any, ...]]:
    results: Any = ModelCard(card).data.eval_results
    return [(r.dataset_split, r.metric_name, r.metric_value) for r in results]


def test_a_figure_takes_the_place_of_the_same_one_alone() -> None:
    new = {**FID, "name": "KID", "type": "kid"}
    card = with_figures(CARD, [FID, new], dataset=DATASET, model="other")
    assert figures_of(card) == [
        ("test", "FID (Inception v3, n = 20)", 3.5),
        ("test", "FID (Inception v3, n = 50)", 5.0),
        ("test", "KID", 3.5),
        ("train", "FID (Inception v3, n = 20)", 8.0),
    ]
    assert card.startswith("---\nlibrary_name: cdrl  # by hand\nmodel-index:\n- name: mine\n")
    assert card.endswith(CARD[CARD.index("license: mit") :])
    assert with_figures(card, [FID, new], dataset=DATASET, model="other") == card


@pytest.mark.parametrize(
    "card", ["", "# Mine\n", "---\nlicense: mit\n---\n# Mine\n", "---\n---\n# Mine\n"]
)
def test_cards_without_figures(card: str) -> None:
    found = with_figures(card, [FID], dataset=DATASET, model="mine")
    assert figures_of(found) == [("test", FID["name"], 3.5)]
    assert found.endswith(card.split("---\n")[-1]) and found.count("---\n") == 2
    assert ModelCard(found).data.to_dict().get("license") == ("mit" if "mit" in card else None)


@pytest.mark.parametrize("front", ["a: [", "- a", "model-index: 3", "model-index: [{results: 1}]"])
def test_front_matter_that_cannot_be_edited(front: str) -> None:
    with pytest.raises(CheckpointError, match="the card's front matter cannot be edited") as found:
        with_figures(f"---\n{front}\n---\n", [FID], dataset=DATASET, model="mine")
    assert "\n" not in str(found.value)


# Whole runs


def test_accuracy_and_scores_of_a_tiny_model(
    model: Path, data: Path, noise: Path, classifier: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    out = tmp_path / "figures.json"
    (model / "README.md").write_text("---\nlicense: mit\n---\n# By hand\n", encoding="utf-8")
    result = run(
        *("--model", model, "--data", data, "-n", 30, "--repeats", 2, "--seed", 7),
        *("--metrics", "accuracy,ood", "--classifier", classifier, "--score", "energy"),
        *("--outside", f"noise={noise}", "--out", out, "--update-card"),
        *("--cache", tmp_path / "cache", "--langevin-steps", 1, "--guidance-scale", 1.5),
        *("--batch-size", 7),
    )
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text(encoding="utf-8"))
    figures = {figure["name"].strip(): figure for figure in found["figures"]}
    assert set(figures) == {
        "accuracy, %",
        *(f"attribute 0 {name}" for name in ("Shirt", "Sneaker", "Bag")),
        *(f"{metric} against noise" for metric in ("AUROC", "AUPR", "FPR95")),
    }
    whole = figures["accuracy, %"]
    assert whole["floor"] == [100] and whole["n"] == 60 and len(whole["values"]) == 2
    parts = [figures[f"attribute 0 {name}"] for name in ("Shirt", "Sneaker", "Bag")]
    assert [part["n"] for part in parts] == [20, 20, 20]
    assert np.mean([part["value"] for part in parts]) == pytest.approx(whole["value"])

    pipe = CDRLPipeline.from_pretrained(model)
    judge = load_classifier(classifier, SHAPE, [3])
    rights = []
    for seed in (7, 1_000_007):
        asked = [k % 3 for k in range(30)]
        drawn = pipe(
            class_labels=asked,
            seeds=seed,
            langevin_steps=1,
            guidance_scale=1.5,
            output_type="pt",
        )
        rights.append(100 * (judge(sampling.pixels(drawn))[:, 0] == asked).mean())
    assert whole["values"] == pytest.approx(rights)

    said = result.stdout
    for words in (
        "n = 30, 2 repeats, seeds 7 … 36, 1000007 … 1000036; K = 1, guidance 1.5",
        "30 of the 60 images of grey.npz, test, chosen by seed 7; 2 sets for 2 repeats",
        "energy (higher = more anomalous), seed of the noise 0, not calibrated",
        "noise: 30 images",
    ):
        assert words in said
    assert whole["args"]["samples"] in said and whole["args"]["reference"] in said

    card = ModelCard.load(model / "README.md")
    assert card.content.endswith("# By hand\n") and card.data.to_dict()["license"] == "mit"
    entries: Any = card.data.eval_results
    assert [entry.metric_type for entry in entries] == [
        "class-accuracy",
        *("ood-auroc", "ood-aupr", "ood-fpr95"),
    ]
    first = entries[0]
    assert first.metric_value == pytest.approx(whole["value"], rel=1e-5)
    assert "n = 60, K = 1, guidance 1.5)" in first.metric_name and first.metric_args["n"] == 60
    assert (first.dataset_type, first.dataset_split) == ("grey", "test")


def test_higher_scores_are_more_anomalous(model: Path, data: Path, tmp_path: Path) -> None:
    """Images that score higher than all of the data by construction are told apart, AUROC 1."""
    pytest.importorskip("sklearn")
    pipe = CDRLPipeline.from_pretrained(model)
    pool = np.random.default_rng(3).integers(0, 256, (400, 8, 8), np.uint8)
    order = pipe.score(pool[..., None], "energy", progress=False).scores.argsort().numpy()
    inside, outside = tmp_path / "inside.npz", tmp_path / "outside.npz"
    np.savez(inside, test_images=pool[order[:100]])
    np.savez(outside, test_images=pool[order[-100:]])
    out = tmp_path / "figures.json"
    for ours, others, expected in ((inside, outside, 1), (outside, inside, 0)):
        result = run(
            *("--model", model, "--data", ours, "--outside", f"others={others}", "--out", out),
            *("--metrics", "ood", "--score", "energy", "-n", 50, "--cache", tmp_path),
        )
        assert result.exit_code == 0, result.output
        auroc = json.loads(out.read_text(encoding="utf-8"))["figures"][0]
        assert (auroc["metric"], auroc["value"]) == ("ood-auroc", expected)


def test_figures_of_features(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_fidelity")

    def network(x: Tensor) -> Tensor:
        return torch.cat([x, x.square()], dim=1)[:, :, ::16, ::16]

    stub = EfficientNetLite0(network, "stub", CPU, feature_dim=6)
    monkeypatch.setattr(evaluate, "load_extractor", lambda name, weights, device: stub)
    arguments = (
        *("--model", model, "--data", data, "-n", 20, "--repeats", 2),
        *("--extractor", "efficientnet-lite0", "--cache", tmp_path / "cache"),
        *("--out", tmp_path / "figures.json"),
    )
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    figures = {figure["metric"]: figure for figure in found["figures"]}
    assert set(figures) == {
        "frechet-efficientnet-lite0",
        "kernel-efficientnet-lite0",
        "precision",
        "recall",
    }
    for figure in figures.values():
        assert len(figure["values"]) == len(figure["floor"]) == 2
        assert "standard error over 2 repeats" in figure["error_is"]
        assert {"samples", "reference", "extractor"} <= set(figure["args"])
    for name in ("is", "accuracy", "ood"):
        assert f"skipped    {name}: " in result.stdout
    pipe = CDRLPipeline.from_pretrained(model)
    samples = stub(
        sampling.pixels(pipe(class_labels=[k % 3 for k in range(20)], seeds=0, output_type="pt"))
    )
    order = evaluate.random_order(60, 0)[:20]
    real = stub(np.load(data)["test_images"][order][:, None])
    assert figures["frechet-efficientnet-lite0"]["values"][0] == pytest.approx(
        fidelity.frechet(samples, real), rel=1e-3
    )
    monkeypatch.setattr(
        EfficientNetLite0, "__call__", lambda self, images: np.zeros((len(images), 6), np.float32)
    )
    again = run(*arguments, "--metrics", "fid")
    assert again.exit_code == 0, again.output
    known = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["figures"][0]
    assert known["floor"] == figures["frechet-efficientnet-lite0"]["floor"]  # from the cache


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--metrics fid,fud", "got 'fud'; did you mean 'fid'?"),
        ("--metrics ood", "--outside NAME=DATA gives a set"),
        ("--metrics accuracy", "--classifier FILE.pt2 gives one"),
        ("--metrics is --extractor efficientnet-lite0", "efficientnet-lite0 has no logits"),
        ("--metrics fid --extractor inceptoin-v3", "did you mean 'inception-v3-compat'?"),
        ("--metrics ood --outside a=NOISE --classifier C", "add it to --metrics"),
        ("--metrics accuracy --classifier C -n 61", "-n must lie in 20 … 60"),
        ("--metrics accuracy --classifier C -n 5", "-n must lie in 20 … 60"),
        ("--metrics accuracy --classifier C --repeats 0", "--repeats must be at least 1"),
        ("--metrics accuracy --classifier C --seed 4294967290", "a seed must be an integer in 0"),
        ("--metrics accuracy --classifier C --langevin-steps 1,2", "one number or 3"),
        ("--metrics accuracy --classifier C --data LARGE", "expected data of images (1, 8, 8)"),
        ("--metrics accuracy --classifier C --data NOISE -n 20", "needs data with labels"),
        ("--metrics accuracy --classifier DATA", "expected a .pt2 file"),
        ("--metrics ood --outside noise", "--outside must be NAME=DATA"),
        ("--metrics ood --outside a=LARGE --score energy", "expected images (1, 8, 8)"),
        ("--metrics ood --outside a=NOISE", "was not calibrated"),
        ("--metrics ood --outside a=NOISE --score enrgy", "'enrgy' is not one of"),
        ("--metrics accuracy --classifier C --out figures.txt", "expected a .json file"),
        ("--metrics accuracy --classifier C --out no/where.json", "cannot write to"),
        ("--metrics accuracy --classifier C --cache DATA", "cannot write to the cache"),
        ("--metrics accuracy --classifier C --model fashion-mnist --update-card", "of yours"),
        ("--metrics accuracy --classifier C --device toaster", "device 'toaster' cannot be used"),
        ("--calibrate --update-card", "--update-card is not for it"),
    ],
)
def test_bad_input_is_refused_before_anything_is_drawn(
    arguments: str,
    message: str,
    model: Path,
    data: Path,
    noise: Path,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(CDRLPipeline, "_draw", lambda *a, **k: pytest.fail("drawn"))
    large = tmp_path / "large.npz"
    np.savez(large, test_images=np.zeros((60, 10, 10), np.uint8))
    words = {"DATA": data, "NOISE": noise, "LARGE": large, "C": classifier}
    given = arguments.split()
    for k, word in enumerate(given):
        head, _, last = word.rpartition("=")
        given[k] = f"{head}{'=' if head else ''}{words.get(last, last)}"
    defaults = {"--model": model, "--data": data, "--cache": tmp_path / "cache"}
    for option, value in defaults.items():
        if option not in given and not ("--calibrate" in given and option == "--cache"):
            given += [option, str(value)]
    before = sorted(tmp_path.rglob("*"))
    result = run(*given)
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert result.stderr.startswith("cdrl-eval: error: ") and result.stderr.count("\n") == 1
    assert [p for p in sorted(tmp_path.rglob("*")) if p.name != "cache"] == before


def test_what_is_not_installed_is_named(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    result = run("--model", model, "--data", data)
    assert result.exit_code == 2 and "pip install 'cdrl[eval]'" in result.stderr


def test_a_full_disk_leaves_the_old_files(
    model: Path, data: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "figures.json"
    out.write_text("old", encoding="utf-8")

    def full_disk(self: Path, *given: Any, **options: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    result = run(
        *("--model", model, "--data", data, "--metrics", "accuracy", "--classifier", classifier),
        *("-n", 20, "--cache", tmp_path / "cache", "--out", out, "--update-card"),
    )
    assert result.exit_code == 5 and "No space left" in result.stderr
    assert out.read_text(encoding="utf-8") == "old" and not (model / "README.md").exists()


# Two processes

WORKER = """
import dataclasses, sys
from pathlib import Path
import numpy as np
from cdrl_infer.errors import InputError
from cdrl_train.engine.ending import end_process
from cdrl_train.evaluation.evaluate import Evaluation, Request
from cdrl_train.evaluation.together import Processes

model, data, classifier, out = map(Path, sys.argv[1:])
processes = Processes.join("cpu")
request = Request(source=str(data), cache=out / "cache", model=str(model), count=23, batch_size=4,
                  metrics=("accuracy",), classifier=classifier)
evaluation = processes.alike(lambda: Evaluation.prepare(request, processes.device))
images = dataclasses.replace(evaluation, classifier=lambda x: x.astype(np.int64))
np.save(out / f"{processes.count}-{processes.rank}.npy", images._samples(processes, 0)["shown"])

def fail(start, stop):
    if start == 4:
        raise InputError("images 4 to 8")
    return {"a": np.zeros(stop - start)}

try:
    processes.each_batch(23, 4, fail, "")
except InputError as error:
    assert str(error) == "images 4 to 8", error
else:
    raise SystemExit("no error")
processes.leave()
end_process(0)
"""


def test_images_are_the_same_to_the_bit_however_many_processes_draw_them(
    model: Path, data: Path, classifier: Path, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    given = [str(path) for path in (model, data, classifier, tmp_path)]
    port = str(free_port())
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, *given],
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(world),
                LOCAL_WORLD_SIZE=str(world),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for world, rank in ((1, 0), (2, 0), (2, 1))
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0, 0], "\n".join(said)
    alone, first, second = (np.load(tmp_path / f"{name}.npy") for name in ("1-0", "2-0", "2-1"))
    assert alone.shape == (23, *SHAPE) and alone.std() > 0
    assert (first == alone).all() and (second == alone).all()
    labels = [k % 3 for k in range(23)]
    drawn = CDRLPipeline.from_pretrained(model)(class_labels=labels, seeds=0, output_type="pt")
    assert abs(sampling.pixels(drawn).astype(int) - alone).max() <= 1  # in one batch


@pytest.mark.slow
def test_the_command_on_two_processes(
    model: Path, data: Path, classifier: Path, tmp_path: Path
) -> None:
    launcher = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
    for out, start in (("two", [*launcher, str(free_port()), "-m"]), ("one", [])):
        result = subprocess.run(
            [
                *(sys.executable, "-m", *start, "cdrl_train.cli_eval", "--model", str(model)),
                *("--data", str(data), "--metrics", "accuracy", "--classifier", str(classifier)),
                *("-n", "25", "--batch-size", "4", "--device", "cpu", "--update-card"),
                *("--out", str(tmp_path / f"{out}.json"), "--cache", str(tmp_path / "cache")),
            ],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("accuracy, %") == 2, result.stdout  # the figure, and its error
    one, two = (json.loads((tmp_path / f"{out}.json").read_text()) for out in ("one", "two"))
    assert one["figures"] == two["figures"]
    assert (one["settings"].pop("processes"), two["settings"].pop("processes")) == (1, 2)
    assert one["settings"] == two["settings"]
