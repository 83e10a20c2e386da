"""How one of several processes ends.

If an interpreter shuts down while PyTorch's gloo threads are alive, they can abort it ("terminate called
without an active exception": PyTorch's pull request 179291). A launcher then reports a failure although
the work is done. So such a process ends without that shutdown.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

from cdrl_infer.cli.command import OneLineErrors

RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")


def launched() -> bool:
    """Whether a launcher started this process; others may leave some of its variables behind."""
    return (
        all(os.environ.get(name, "").isdecimal() for name in RANKS) and "MASTER_ADDR" in os.environ
    )


def one_of_several() -> bool:
    """Whether `torchrun` or `accelerate launch` started this process together with others."""
    return launched() and os.environ["WORLD_SIZE"] != "1"


def end_process(code: int) -> NoReturn:
    """End at once with that exit code. Files and connections must be closed before."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class OneOfSeveral(OneLineErrors):
    """`OneLineErrors` for a command that `torchrun` or `accelerate launch` may start."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command, and exit."""
        try:
            return super().main(*args, **kwargs)
        except SystemExit as ended:
            if one_of_several() and isinstance(ended.code, int):
                end_process(ended.code)
            raise
