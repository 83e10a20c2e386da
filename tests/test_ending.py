"""Processes of several end with their own exit code, also where a shutdown would abort."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, os, click
from cdrl_infer.errors import InputError
from cdrl_train.engine.ending import OneOfSeveral

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
        monkeypatch.setenv("WORLD_SIZE", world)
        command = [sys.executable, "-c", PROGRAM, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)

    several = ended("2")
    assert (several.returncode, several.stdout) == (code, "done\n")
    assert ("run: error: expected good, got bad" in several.stderr) == (code == 2)
    assert ended("1").returncode < 0  # which shuts down as always
