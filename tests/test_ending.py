"""Processes of several end with their own exit code, also where a shutdown would abort."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cdrl_infer.processes import one_of_several
from cdrl_train.engine.distributed import make_accelerator

PROGRAM = """
import atexit, os, click
from cdrl_infer.errors import InputError
from cdrl_infer.cli.command import OneOfSeveral

atexit.register(os.abort)  # as gloo's threads do

@click.command("run", cls=OneOfSeveral)
@click.option("--bad", is_flag=True)
def run(bad):
    click.echo("done")
    if bad:
        raise InputError("expected good, got bad")

run()
"""


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--bad"], 2)])
def test_one_of_several_ends_with_its_code(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(world: str) -> subprocess.CompletedProcess[str]:
        for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.setenv(name, "0")
        monkeypatch.setenv("WORLD_SIZE", world)
        command = [sys.executable, "-c", PROGRAM, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)

    several = ended("2")
    assert (several.returncode, several.stdout) == (code, "done\n")
    assert ("run: error: expected good, got bad" in several.stderr) == (code == 2)
    assert ended("1").returncode < 0  # which shuts down as always


@pytest.mark.parametrize(
    "left", [{"LOCAL_RANK": "0"}, {"RANK": "0", "WORLD_SIZE": "4"}, {"WORLD_SIZE": "x"}]
)
def test_leftovers_of_launchers_are_ignored(
    monkeypatch: pytest.MonkeyPatch, left: dict[str, str]
) -> None:
    for name, value in {**left, "ACCELERATE_USE_DEEPSPEED": "true"}.items():
        monkeypatch.setenv(name, value)
    assert make_accelerator().num_processes == 1
    assert not one_of_several()
