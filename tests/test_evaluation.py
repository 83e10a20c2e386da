"""`cdrl-eval`: whole runs of a tiny model, bad input, two processes."""

from __future__ import annotations

import json
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
from test_eval_classifier import SHAPE, ByBrightness, export
from torch import Tensor

from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring.reference import random_order
from cdrl_train.cli_eval import main
from cdrl_train.evaluation import fidelity, sampling
from cdrl_train.evaluation.classifier import load_classifier
from cdrl_train.evaluation.efficientnet import EfficientNetLite0

Rows = NDArray[np.float32]
CPU = torch.device("cpu")


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


def test_accuracy_and_scores_of_a_tiny_model(
    model: Path, data: Path, noise: Path, classifier: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    out = tmp_path / "results.json"
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
    results = {each["name"].strip(): each for each in found["results"]}
    assert set(results) == {
        "accuracy, %",
        *(f"attribute 0 {name}" for name in ("Shirt", "Sneaker", "Bag")),
        *(f"{metric} against noise" for metric in ("AUROC", "AUPR", "FPR95")),
    }
    whole = results["accuracy, %"]
    assert whole["floor"] == [100] and whole["n"] == 60 and len(whole["values"]) == 2
    parts = [results[f"attribute 0 {name}"] for name in ("Shirt", "Sneaker", "Bag")]
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
    out = tmp_path / "results.json"
    for ours, others, expected in ((inside, outside, 1), (outside, inside, 0)):
        result = run(
            *("--model", model, "--data", ours, "--outside", f"others={others}", "--out", out),
            *("--metrics", "ood", "--score", "energy", "-n", 50, "--cache", tmp_path),
        )
        assert result.exit_code == 0, result.output
        auroc = json.loads(out.read_text(encoding="utf-8"))["results"][0]
        assert (auroc["metric"], auroc["value"]) == ("ood-auroc", expected)


def test_distances_of_features(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def network(x: Tensor) -> Tensor:
        return torch.cat([x, x.square()], dim=1)[:, :, ::16, ::16]

    stub = EfficientNetLite0(network, "stub", CPU)
    monkeypatch.setattr(EfficientNetLite0, "feature_dim", 6)
    monkeypatch.setattr(EfficientNetLite0, "load", lambda weights, device: stub)
    monkeypatch.setattr("cdrl_train.evaluation.request.check_torch_fidelity", lambda: None)
    monkeypatch.setattr(fidelity, "kernel_distance", lambda a, b: 0.5)
    arguments = (
        *("--model", model, "--data", data, "-n", 20, "--repeats", 2),
        *("--extractor", "efficientnet-lite0", "--cache", tmp_path / "cache"),
        *("--out", tmp_path / "results.json"),
    )
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    results = {each["metric"]: each for each in found["results"]}
    assert set(results) == {
        "frechet-efficientnet-lite0",
        "kernel-efficientnet-lite0",
        "precision",
        "recall",
    }
    for each in results.values():
        assert len(each["values"]) == len(each["floor"]) == 2
        assert "standard error over 2 repeats" in each["error_is"]
        assert {"samples", "reference", "extractor"} <= set(each["args"])
    for name in ("is", "accuracy", "ood"):
        assert f"skipped    {name}: " in result.stdout
    pipe = CDRLPipeline.from_pretrained(model)
    samples = stub(
        sampling.pixels(pipe(class_labels=[k % 3 for k in range(20)], seeds=0, output_type="pt"))
    )
    order = random_order(60, 0)[:20]
    real = stub(np.load(data)["test_images"][order][:, None])
    assert results["frechet-efficientnet-lite0"]["values"][0] == pytest.approx(
        fidelity.frechet(samples, real), rel=1e-3
    )
    monkeypatch.setattr(
        EfficientNetLite0, "__call__", lambda self, images: np.zeros((len(images), 6), np.float32)
    )
    again = run(*arguments, "--metrics", "fid")
    assert again.exit_code == 0, again.output
    known = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["results"][0]
    assert known["floor"] == results["frechet-efficientnet-lite0"]["floor"]  # from the cache


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--metrics fid,fud", "got 'fud'; did you mean 'fid'?"),
        ("--metrics ood", "add --outside NAME=DATA"),
        ("--metrics accuracy", "add --classifier FILE.pt2"),
        ("--metrics is --extractor efficientnet-lite0", "efficientnet-lite0 has no logits"),
        ("--metrics fid --extractor inceptoin-v3", "did you mean 'inception-v3-compat'?"),
        ("--metrics ood --outside a=NOISE --classifier C", "add it to --metrics"),
        ("--metrics accuracy --classifier C -n 61", "-n must lie in 20 … 60"),
        ("--metrics accuracy --classifier C -n 5", "-n must lie in 20 … 60"),
        ("--metrics accuracy --classifier C --repeats 0", "--repeats must be at least 1"),
        ("--metrics accuracy --classifier C --seed 4294967290", "a seed must be an integer in 0"),
        ("--metrics accuracy --classifier C --langevin-steps 1,2", "one number or 3"),
        (
            "--metrics accuracy --classifier C --data LARGE",
            "expected images of the shape (1, 8, 8)",
        ),
        ("--metrics accuracy --classifier C --data NOISE -n 20", "needs data with labels"),
        ("--metrics accuracy --classifier DATA", "expected a .pt2 file"),
        ("--metrics ood --outside noise", "--outside must be NAME=DATA"),
        ("--metrics ood --outside a=LARGE --score energy", "images of the model's shape (1, 8, 8)"),
        ("--metrics ood --outside a=NOISE", "is not calibrated"),
        ("--metrics ood --outside a=NOISE --score enrgy", "unknown score 'enrgy'"),
        ("--metrics accuracy --classifier C --out results.txt", "expected a .json file"),
        ("--metrics accuracy --classifier C --out no/where.json", "cannot write to"),
        ("--metrics accuracy --classifier C --cache DATA", "cannot write to the cache"),
        ("--metrics accuracy --classifier C --model fashion-mnist --update-card", "of your own"),
        ("--metrics accuracy --classifier C --device toaster", "device 'toaster' cannot be used"),
        ("--calibrate --update-card", "measures nothing: leave --update-card out"),
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
    monkeypatch.setattr(CDRLPipeline, "__call__", lambda *a, **k: pytest.fail("drawn"))
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
    out = tmp_path / "results.json"
    out.write_text("old", encoding="utf-8")

    def full_disk(self: Path, *given: Any, **options: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
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
from cdrl_infer.processes import end_process
from cdrl_train.evaluation.evaluate import Evaluation
from cdrl_train.evaluation.request import Request
from cdrl_infer.processes import Processes

model, data, classifier, out = map(Path, sys.argv[1:])
processes = Processes.join()
request = Request(source=str(data), cache=out / "cache", model=str(model), count=23, batch_size=4,
                  metrics=("accuracy",), classifier=classifier)
evaluation = processes.alike(lambda: Evaluation.prepare(request, processes.device("cpu")))
accuracy = dataclasses.replace(evaluation.accuracy, classifier=lambda x: x.astype(np.int64))
images = dataclasses.replace(evaluation, accuracy=accuracy)
np.save(out / f"{processes.count}-{processes.rank}.npy", images.draw(processes, 0)["shown"])

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
        assert result.stdout.count("accuracy, %") == 2, result.stdout  # the result, and its error
    one, two = (json.loads((tmp_path / f"{out}.json").read_text()) for out in ("one", "two"))
    assert one["results"] == two["results"]
    assert (one["settings"].pop("processes"), two["settings"].pop("processes")) == (1, 2)
    assert one["settings"] == two["settings"]
