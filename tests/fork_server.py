"""`cdrl-train` in processes of its own that cost no import: started with ``python -m``, told what to do.

Reads a JSON object a line from stdin, ``{"code": …}`` or ``{"arguments": […]}``, runs it in a fork and
answers with the fork's process id; a second line waits for it and answers with its exit status. Where
none comes, since the tests have ended, the fork is killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import accelerate
import torch

from cdrl_train import cli, export, preview, tracking, upload
from cdrl_train.engine import checkpoints, trainer

LOADED = (accelerate, torch, checkpoints, export, preview, tracking, trainer, upload)


def run(order: dict[str, object]) -> None:
    """In the fork: what was ordered, with the output in a file."""
    output = os.open(str(order["output"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        if "code" in order:
            exec(
                str(order["code"]),
                {"torch": torch, "checkpoints": checkpoints, "os": os, "Path": Path},
            )
            code = 0
        else:
            cli.main(order["arguments"])
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Serve until stdin ends."""
    torch.optim.Adam([torch.zeros(1, requires_grad=True)]).step()  # imports much, the first time
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run(json.loads(line))
        print(child, flush=True)
        if not sys.stdin.readline():
            os.kill(child, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
