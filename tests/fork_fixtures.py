"""Fixtures of the tests that stop or kill runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fork_client import Starter

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    server = subprocess.Popen(
        [sys.executable, "-m", "fork_server"],
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        yield Starter(server, tmp_path_factory.mktemp("runs"))
        assert server.stdin is not None
        server.stdin.close()


@pytest.fixture(scope="session")
def whole(start: Starter) -> Path:
    """The folder of a run that nothing disturbed."""
    process = start.train(start.folder / "whole")
    assert process.wait() == 0, process.said()
    return start.folder / "whole"
