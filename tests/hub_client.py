"""The real client of the Hub, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_protocol import Call

from cdrl_infer.pipeline import CDRLPipeline

ROOT = Path(__file__).parents[1]
LIMIT = 300  # seconds for one command of a client
# Each line of its input is code, as JSON; it answers with `result` of the code, and what was written.
DRIVER = """
import contextlib, io, json, os, sys

channel, sys.stdout = sys.stdout, sys.stderr
from click.testing import CliRunner
from cdrl_infer.storage import hub
from cdrl_infer.pipeline import CDRLPipeline

CDRLPipeline.from_pretrained()
LIGHT = [name for name in sys.modules if name.startswith("huggingface_hub")]

def pixels(*args, **options):
    pipe = CDRLPipeline.from_pretrained(*args, **options)
    return pipe(num_images=2, seeds=7, output_type="np", progress=False).images.tobytes().hex()

def cli(command, arguments):
    answer = CliRunner().invoke(command, arguments)
    if answer.exception and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    return answer.exit_code, answer.output

scope = globals()
for line in sys.stdin:
    written, scope["result"], error = io.StringIO(), None, None
    with contextlib.redirect_stderr(written):
        try:
            exec(json.loads(line), scope)
        except Exception as caught:
            error = [type(caught).__name__, str(caught)]
    answer = {"result": scope["result"], "error": error, "stderr": written.getvalue()}
    print(json.dumps(answer), file=channel, flush=True)
"""


class ClientError(Exception):
    """An error in the client's process."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Client:
    """A process with the real client; only its environment differs from a user's."""

    def __init__(self, endpoint: str, home: Path, **environment: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        settings = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")])),
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_ETAG_TIMEOUT": "60",
        }
        self.home = home
        self.stderr = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            env={**kept, **settings, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str, **names: Any) -> Any:
        """What the code leaves in ``result``; raises a `ClientError` if the code raises."""
        assert self.process.stdin and self.process.stdout
        given = "".join(f"{name} = {value!r}\n" for name, value in names.items())
        print(json.dumps(given + code), file=self.process.stdin, flush=True)
        watch = threading.Timer(LIMIT, self.process.kill)  # the pipe then ends, and the test fails
        watch.start()
        answer = json.loads(self.process.stdout.readline())
        watch.cancel()
        self.stderr = answer["stderr"]
        if answer["error"]:
            raise ClientError(*answer["error"])
        return answer["result"]

    def pixels(self, model: str, **options: Any) -> str:
        return str(self.run(f"result = pixels({model!r}, **{options!r})"))

    def fails(self, text: str, model: str, kind: str = "CheckpointError", **options: Any) -> None:
        """Loading must fail with an error of one line, which has the text (a regular expression)."""
        with pytest.raises(ClientError, match=text) as caught:
            self.pixels(model, **options)
        assert caught.value.kind == kind and "\n" not in str(caught.value)

    def push(self, folder: Path, repo_id: str, **options: Any) -> str:
        """Push the model of a folder with a card; the address that was returned."""
        code = f"pipe = CDRLPipeline.from_pretrained({str(folder)!r})\n"
        code += "pipe.model.model_card = '# Mine\\n'\n"
        return str(self.run(f"{code}result = pipe.push_to_hub({repo_id!r}, **{options!r})"))

    def cli(self, *arguments: str, module: str = "cdrl_infer.cli.hub") -> tuple[int, str]:
        """Exit code and output of a command."""
        code = f"from {module} import main\nresult = cli(main, arguments)"
        exit_code, output = self.run(code, arguments=arguments)
        return exit_code, output

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def drawn(pipe: CDRLPipeline) -> str:
    images = pipe(num_images=2, seeds=7, output_type="np", progress=False).images
    assert isinstance(images, np.ndarray)
    return images.tobytes().hex()


def weights(requests: list[Call]) -> list[Call]:
    """The downloads of weights among requests."""
    return [r for r in requests if r.method == "GET" and "/cdn/" in r.path]
