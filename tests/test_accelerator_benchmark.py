"""The script for minutes of an accelerator, from end to end on the CPU at a tiny size."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import accelerator
import pytest
import torch
from accelerator_speed import Speed
from click.testing import CliRunner, Result
from runs import images, options, tiny, trainer
from test_packed import packed, write
from torch import nn
from transcription import Transcription

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import InputError
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.model import ImageShape
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.proposals import make_proposal
from cdrl_infer.random import BatchRandom
from cdrl_infer.sampler import CooperativeSampler
from cdrl_train.data.stream import BatchStream
from cdrl_train.engine.checkpoints import all_of


def test_the_plain_sampler_is_the_packages_algorithm() -> None:
    config = tiny()
    config = replace(config, phases=config.phases[-1:])
    plain = Transcription(config, BatchStream(images(), config.data, 0, "cpu"))
    generator = torch.Generator().manual_seed(1)
    for network in plain.networks:
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1, generator=generator)
    labels = torch.tensor([[1], [0], [3]])
    with torch.no_grad():
        expected = CooperativeSampler(config.schedule, 2, Langevin(), 1.0, 1.0).sample(
            NeuralEnergy(plain.ebm, labels),
            make_proposal(plain.initializer, labels),
            BatchRandom(3, torch.Generator().manual_seed(config.seed)),
            (1, 8, 8),
        )
    found = plain.sample((3, 1, 8, 8), labels)
    torch.testing.assert_close(found, expected.samples, rtol=1e-4, atol=1e-4)


def test_speed_compares_and_says_where_the_time_goes() -> None:
    config = replace(tiny(), phases=tiny().phases[-1:])
    speed = Speed(config, ImageShape(1, 8, 8), (3,), 4, torch.device("cpu"), matmul=64)
    for found in (speed.training(1, 2), speed.sampling(2)):
        ours, plain = found["images per second"].values()
        assert found["faster by"]["min"] <= found["faster by"]["max"]
        assert ours["min"] > 0 and plain["min"] > 0
        share = [*found["share of the rate"].values()]
        rate = ours["median"] * found["GFLOP an image"] * 1e9 / speed.rate
        assert share[0] == pytest.approx(rate, rel=1e-6)
    assert all("conv" in text for text in speed.profiles.values())


def test_a_run_is_fitted_to_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.5, 2.0])
    monkeypatch.setattr(
        accelerator, "time_steps", lambda *_: type("Timing", (), {"seconds": next(seconds)})
    )
    config = tiny("phases.0.steps=40", "cooperative.steps=10")  # 20 s and 20 s
    found = accelerator.fitted(config, 10.0, images(), torch.device("cpu"))
    assert [phase.steps for phase in found.phases] == [10, 3]


def test_what_is_left_of_a_run() -> None:
    config = tiny("phases.0.steps=10", "cooperative.steps=4")
    within = accelerator.remaining(config, 6)
    assert [phase.steps for phase in within.phases] == [4, 4]
    assert within.phases[0].ebm_lr == config.phases[0].learning_rates(6)["ebm"]
    assert within.phases[1] == config.phases[1]
    assert [phase.steps for phase in accelerator.remaining(config, 10).phases] == [0, 4]


def test_a_program_that_takes_too_long_is_asked_to_end(tmp_path: Path) -> None:
    asked = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit('asked'))\n"
    program = f"{asked}print('begun', flush=True)\ntime.sleep(100)"
    assert accelerator.run(["-c", program], 5, tmp_path / "a", ask=True) is None
    assert (tmp_path / "a").read_text() == "begun\nasked\n"
    assert accelerator.run(["-c", "raise SystemExit(3)"], 100, tmp_path / "a") == 3


def test_a_folder_in_parts_is_the_folder(tmp_path: Path) -> None:
    (tmp_path / "model" / "inner").mkdir(parents=True)
    (tmp_path / "model" / "inner" / "weights").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "out").mkdir()
    names = accelerator.packed(tmp_path / "model", tmp_path / "out", 10_000)
    assert names == [f"model.tar.{k:02d}" for k in range(math.ceil(len(names)))] and len(names) > 2
    assert max((tmp_path / "out" / name).stat().st_size for name in names) <= 10_000
    again = accelerator.joined(tmp_path / "out", tmp_path / "again")
    assert (again / "inner" / "weights").read_bytes() == bytes(range(256)) * 100
    with pytest.raises(InputError, match=r"expected model.tar.00, …, found none"):
        accelerator.joined(tmp_path / "model", tmp_path / "b")


def test_from_end_to_end_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpack, train, export, draw; then go on from a checkpoint, and from the results alone."""
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / "cifar10_jpeg_packed.npz", packed(20), packed(4, seed=1))
    small = options("warm_start.steps=3", "cooperative.steps=2", "persistent.steps=0")
    paper = ["--paper-set" if part == "--set" else part for part in options()]

    def call(*arguments: str) -> Result:
        given = ["--data", source, "--preset", "cifar10-compact", *small, "--device", "cpu"]
        given += ["--minutes", "9", "--part-mib", "0.02", *arguments]
        return CliRunner().invoke(accelerator.main, given, catch_exceptions=False)

    speeds = ["--paper", "mnist", *paper, "--batch-size", "4", "--matmul", "64"]
    first = call("--set", "checkpoint_every=2", "--out", "one", *speeds)
    assert first.exit_code == 0, first.output
    found = json.loads(Path("one/results.json").read_text(encoding="utf-8"))
    assert "SKIPPED" in found["tests"]["summary"] or torch.cuda.is_available()
    assert found["speed"]["training"]["faster by"]["min"] > 0
    assert found["train"]["done"] and found["train"]["steps done"] == 5
    assert found["model"]["exit codes"] == {"export": 0, "draw": 0}
    for path in Path("one").iterdir():
        assert path.stat().st_size <= max(0.02 * 2**20, 0 if "model" in path.name else 1e6)

    states = all_of(Path("runs/accelerator/checkpoints"))
    assert [state.name for state in states] == ["step-00000004.pt", "step-00000005.pt"]
    states[-1].unlink()
    assert call("--stage", "train", "--out", "two").exit_code == 0
    assert "resumed at step 4 of 5" in Path("two/log.txt").read_text(encoding="utf-8")
    found = json.loads(Path("two/results.json").read_text(encoding="utf-8"))
    assert found["train"]["steps done"] == 5

    found["train"] |= {"steps of the run": 4, "steps done": 4}  # as if it had been cut
    Path("two/results.json").write_text(json.dumps(found), encoding="utf-8")
    third = call("--stage", "train", "--out", "three", "--run", "lost", "--continue-from", "two")
    assert third.exit_code == 0, third.output
    found = json.loads(Path("three/results.json").read_text(encoding="utf-8"))
    assert (found["train"]["steps of the run"], found["train"]["steps done"]) == (1, 5)
    model = accelerator.joined(Path("three"), tmp_path / "model")
    assert len(CDRLPipeline.from_pretrained(model)(num_images=1).images) == 1

    begun = call("--stage", "train", "--out", "four", "--run", "begun", "--init-from", str(model))
    assert begun.exit_code == 0, begun.output
    assert "tensors are the model's" in Path("four/log.txt").read_text(encoding="utf-8")


def test_trainers_take_what_is_left(tmp_path: Path) -> None:
    """A phase without steps before one with steps, as `remaining` leaves it."""
    run = trainer(accelerator.remaining(tiny(), 5), tmp_path)
    assert run.state.label == "cooperative" and run.config.total_steps == 3
