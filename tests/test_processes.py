"""Several processes share what `cdrl-sample` and `cdrl-score` do: the result is that of one process."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdrl_infer.errors import InputError, ProcessError
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.processes import Processes

pytest_plugins = ["score_fixtures"]
HERE = Path(__file__).parent


def start(
    folder: Path, count: int, *arguments: str, program: Sequence[str] = ("-m", "cdrl_infer")
) -> list[subprocess.Popen[str]]:
    """A command in as many processes, in a folder."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    path = f"{HERE.parent}{os.pathsep}{HERE}"
    return [
        subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": path,
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def ended(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Code, stdout and stderr of each."""
    try:
        said = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *texts) for p, texts in zip(processes, said, strict=True)]


def run(folder: Path, count: int, *arguments: str) -> list[tuple[int, str, str]]:
    folder.mkdir(exist_ok=True)
    return ended(start(folder, count, *arguments))


def written(folder: Path) -> dict[str, bytes]:
    """Every file, also hidden ones."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


SAMPLE = ["--seed", "5", "-n", "7", "--batch-size", "2", "--trajectory", "film.gif"]


def test_pictures_and_films_are_those_of_one_process(folder: Path, tmp_path: Path) -> None:
    call = ["sample", "--model", str(folder), *SAMPLE, "--out", "many/"]
    [(code, told, _)] = run(tmp_path / "1", 1, *call)
    assert code == 0
    assert run(tmp_path / "2", 2, *call) == [(0, told, ""), (0, "", "")]
    alone, shared = written(tmp_path / "1"), written(tmp_path / "2")
    assert alone.keys() == shared.keys() and len(alone) == 7 + 1
    assert [name for name in alone if alone[name] != shared[name]] == []


def test_new_seeds_are_the_main_processes(folder: Path, tmp_path: Path, pipe: CDRLPipeline) -> None:
    call = ["sample", "--model", str(folder), "-n", "3", "--batch-size", "1", "--out", "drawn/"]
    adapt = ["--kernel", "mala", "--step-scale", "adapt"]
    first, second = run(tmp_path, 2, *call, *adapt)
    assert (first[0], second) == (0, (0, "", "")) and first[2].startswith(
        "acceptance by transition"
    )
    for k in range(3):
        with Image.open(tmp_path / "drawn" / f"{k:05d}.png") as image:
            facts = image.text
            expected = pipe(
                seeds=[int(facts["seed"])],
                class_labels=facts["label"],
                kernel="mala",
                step_scale=json.loads(facts["step_scale"]),
            )
            assert np.array_equal(np.asarray(image), np.asarray(expected.images[0]))


def scores_of(table: Path) -> dict[str, float]:
    with table.open(encoding="utf-8") as file:
        return {row["file"]: float(row["score"]) for row in csv.DictReader(file)}


def test_the_table_is_that_of_one_process(
    calibrated: Path, pictures: list[Image.Image], tmp_path: Path
) -> None:
    """Also where a file of one process cannot be decoded, and where one process has no file at all."""
    data = Path("images/4.png").read_bytes()
    Path("images/4.png").write_bytes(data[:45] + b"\0" * 9 + data[54:])
    call = ["score", "--model", str(calibrated), "--threshold-fpr", "0.05", "--out", "table.csv"]
    call += [str(Path("images").absolute()), "--heatmap", "maps/", "--plot", "plot.png"]
    for count in (1, 2):
        results = run(tmp_path / str(count), count, *call, "--batch-size", "2")
        assert {code for code, _, _ in results} == {1}
        lines = "".join(error for _, _, error in results).splitlines()
        assert sum("skipped: " in line for line in lines) == 1
        assert sum("images are anomalous" in line for line in lines) == 1
    alone, shared = (written(tmp_path / str(count)) for count in (1, 2))
    assert alone.keys() == shared.keys() and len(alone) == 2 + 6
    assert [name for name in alone if alone[name] != shared[name]] == []
    first, second = run(tmp_path / "all", 2, *call)  # in one batch: the second process has none
    assert first[0] == second[0] == 1 and "skipped: " in first[2] and second[1:] == ("", "")
    tables = [scores_of(tmp_path / name / "table.csv") for name in ("1", "all")]
    assert tables[0] == pytest.approx(tables[1], rel=1e-4)


def test_a_mistake_is_one_line_of_the_main_process(folder: Path, tmp_path: Path) -> None:
    before = written(tmp_path)
    for arguments, message in (
        (["--out", "a.jpg"], "error: expected a .png file or a folder"),
        (["--out", "a.png", "--step-scale", "1e9", "-n", "4", "--batch-size", "2"], "finite"),
    ):
        results = run(tmp_path, 2, "sample", "--model", str(folder), *arguments)
        (code, _, told), (same, _, quiet) = results
        assert code == same and code == (3 if message == "finite" else 2)
        assert told.count("\n") == 1 and message in told and quiet == ""
        assert written(tmp_path) == before


DRAWING = """
import os, signal, time
from cdrl_infer import drawing
from cdrl_infer.cli.sample import main

def check(values, first, where):
    if os.environ["VICTIM"] == os.environ["RANK"]:
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ["VICTIM"] == "wait":
        print("draws", flush=True)
        time.sleep(100)

drawing.check_finite = check
main(prog_name="cdrl-sample")
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_others_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: int
) -> None:
    monkeypatch.setenv("VICTIM", str(victim))
    call = ["--model", str(folder), *SAMPLE, "--out", "grid.png"]
    results = ended(start(tmp_path, 2, *call, program=("-c", DRAWING)))
    assert results[victim][0] == -signal.SIGKILL
    reason = f"process {1 - victim} of 2 ends because another one has ended"
    assert results[1 - victim] == (2, "", f"cdrl-sample: error: {reason}\n")
    if victim == 1:
        assert written(tmp_path) == {}
    else:  # a process that is killed cannot clean up, but no file has its name
        assert not {"grid.png", "film.gif"} & written(tmp_path).keys()


def test_a_launcher_ends_a_process_that_works(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VICTIM", "wait")
    call = ["--model", str(folder), *SAMPLE, "--out", "grid.png"]
    processes = start(tmp_path, 2, *call, program=("-c", DRAWING))
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "draws\n"
        assert written(tmp_path) != {}
    for process in reversed(processes):
        process.terminate()
    for rank, (code, _, error) in enumerate(ended(processes)):
        assert code == 128 + signal.SIGTERM
        reason = f"process {rank} was told to end, because another one has ended"
        assert error == f"cdrl-sample: error: {reason}\n"
    assert written(tmp_path) == {}


def test_new_seeds_and_arguments_of_the_pipeline(pipe: CDRLPipeline) -> None:
    with pytest.raises(InputError, match="processes must be those of"):
        pipe(processes=2)
    assert len(pipe(num_images=2, processes=Processes()).images) == 2


def test_of_nested_work_an_error_is_told_once() -> None:
    """A group of one, in which every exchange is counted."""
    told = []

    class Group(Processes):
        def _exchange(self, mine: object) -> list[object]:
            told.append(mine)
            return [mine] * 2

    processes = Group(0, 2)

    def fail() -> None:
        raise InputError("expected good, got bad")

    with pytest.raises(InputError, match="got bad"), processes.one_fate():
        processes.alike(lambda: processes.together(fail))
    assert len(told) == 1 and isinstance(processes.failure, InputError)
    with pytest.raises(ProcessError), Group(0, 2).one_fate():
        raise ProcessError("lost")
    assert len(told) == 1
    assert processes.by_main(lambda: 7) == 7 and len(told) == 2


def test_an_error_that_others_cannot_read_keeps_its_text() -> None:
    class Unreadable(Exception):
        pass

    error = Processes(1, 2)._sendable(Unreadable("secret"))
    assert str(error) == "process 1: Unreadable('secret')"


def test_the_bar_of_the_main_process_moves_for_all() -> None:
    assert [Processes(0, 3).advance(2, left) for left in (9, 4, 0)] == [6, 4, 0]
    assert Processes().advance(2, -1) == 2
