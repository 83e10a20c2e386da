"""Two processes train as one does: the same losses and weights, one writer of files, one decision."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import ddp_worker
import pytest
import torch
from runs import SMALL, TINY, differing, lines_of, tensors, write_data

from cdrl_infer.pipeline import CDRLPipeline

HERE = Path(__file__).parent
WEIGHTS = ("networks", "averages")


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    path = f"{HERE.parent}{os.pathsep}{HERE}"
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have run every case."""
    folder = tmp_path_factory.mktemp("two")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "ddp_worker", str(folder)],
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE="2",
                LOCAL_WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT="1",  # of use to nobody: they meet by a file
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=900)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return folder


def ended(folder: Path, case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = (torch.load(folder / f"{case}-{rank}.pt", weights_only=True) for rank in (0, 1))
    return first, second


def assert_equal_weights(a: dict[str, Any], b: dict[str, Any]) -> None:
    """To the bit."""
    for name in WEIGHTS:
        assert differing(a[name], b[name]) == []


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """To float tolerance: losses and weights of runs that added up in another order."""
    for a, b in zip(found["losses"], expected["losses"], strict=True):
        assert a == pytest.approx(b, rel=2e-5)
    for name in WEIGHTS:
        values = tensors(expected[name])
        for key, value in tensors(found[name]).items():
            torch.testing.assert_close(value, values[key], rtol=1e-4, atol=2e-6, msg=f"{name}{key}")


@pytest.mark.parametrize("case", ["plain", "spectral_norm"])
def test_two_processes_equal_one_to_float_tolerance(two: Path, tmp_path: Path, case: str) -> None:
    alone = ddp_worker.CASES[case](tmp_path)
    first, second = ended(two, case)
    assert_equal_weights(first, second)
    assert_close(first, alone)


def test_accumulating_changes_nothing_but_rounding(tmp_path: Path) -> None:
    for changes in ({}, {"spectral_norm": True, "ebm": SMALL}):
        whole, parts = (
            ddp_worker.trained(ddp_worker.make(tmp_path, accumulate=n, **changes)) for n in (1, 4)
        )
        assert_close(parts, whole)


def test_the_averages_move_on_every_process(two: Path, tmp_path: Path) -> None:
    fresh = ddp_worker.make(tmp_path).state_dict()
    for state in ended(two, "plain"):
        for name in ("ebm", "initializer"):
            after = state["averages"][name]
            moved = differing(fresh["averages"][name], after)
            assert len(moved) > len(after) / 2
            live = state["networks"][name]
            assert any(not torch.equal(after[f"module.{key}"], live[key]) for key in live)


def test_the_main_process_alone_writes_and_calls_back(two: Path) -> None:
    first, second = ended(two, "plain")
    assert second["called"] == [] and not (two / "own-1").exists()
    assert first["called"].count("step") == 8 and first["called"].count("sample") == 2
    found = {path.name for path in (two / "own-0").iterdir()}
    assert found == {"metrics.jsonl", "checkpoints"}
    rows = (two / "own-0" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["step"] for row in rows] == [3, 4, 6, 8]
    assert len(rows) == first["called"].count("log")
    # Of all images: two processes with 4 of 8 images each.
    last = json.loads(rows[-1])
    mean = sum(last[f"imitation/{t}"] for t in (1, 2, 3) if f"imitation/{t}" in last)
    assert mean > 0 and first["images_seen"] == second["images_seen"] == 64


def test_a_stop_asked_of_one_process_stops_both_and_resuming_is_exact(two: Path) -> None:
    whole, again = ended(two, "dropped_out"), ended(two, "resumed")
    for before, after in zip(whole, again, strict=True):
        assert after["stopped"] == 3 and after["resumed"] == 8
        assert_equal_weights(before, after)
    # Each process drops out units of its own, and gets its own draws back.
    (mine,), (theirs,) = (state["global_generators"] for state in again)
    assert not torch.equal(mine, theirs)


def test_both_processes_go_back_and_give_up_together(two: Path) -> None:
    first, second = ended(two, "diverged")
    assert first["error"] == second["error"] and "displacement" in first["error"]
    assert first["halvings"] == second["halvings"] == 1


def test_where_the_main_process_cannot_save_all_end(two: Path) -> None:
    first, second = ended(two, "full")
    assert first["error"] == "cannot save step 0"
    assert second["error"] == "process 1 ends because the main process failed; see its message"


def test_checkpoints_that_not_all_processes_see_are_refused(two: Path) -> None:
    for rank, state in enumerate(ended(two, "apart")):
        assert f"apart-{rank}/checkpoints, of steps 4, -1 (-1: none); choose" in state["error"]


def test_checkpoints_that_are_damaged_are_so_for_all(two: Path) -> None:
    for state in ended(two, "damaged"):
        assert "no undamaged checkpoint (1 damaged)" in state["error"]


def test_a_batch_that_cannot_be_split_is_refused(two: Path) -> None:
    for state in ended(two, "unequal"):
        assert "score_matching.batch_size must be a multiple of 6 (2 processes" in state["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--nproc_per_node", "2"],
        ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--mixed_precision", "no"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_the_command_on_two_processes(launcher: list[str], tmp_path: Path) -> None:
    data = write_data(tmp_path)
    port = ["--master_port" if "torch" in launcher[0] else "--main_process_port", str(free_port())]
    for out, start in (("two", [*launcher, *port, "-m"]), ("one", [])):
        options = ["--device", "cpu", "--data", data, "--out", str(tmp_path / out), *TINY]
        result = subprocess.run(
            [
                sys.executable,
                "-m",
                *start,
                "cdrl_train.cli",
                *options,
                *("--set", "precision=float32", "--resume", "auto"),
            ],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("model written to") == 1
    one, two = (lines_of(tmp_path / out) for out in ("one", "two"))
    for mine, theirs in zip(one, two, strict=True):
        assert theirs.pop("phase") == mine.pop("phase")
        assert theirs == pytest.approx(mine, rel=1e-3, abs=1e-4)
    pipe = CDRLPipeline.from_pretrained(tmp_path / "two" / "model")
    assert len(pipe(num_images=1, class_labels=["1"], seeds=[0]).images) == 1
    assert len(list((tmp_path / "two" / "logs").rglob("events.out.*"))) == 1
