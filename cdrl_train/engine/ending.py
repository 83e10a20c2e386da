"""How a process ends that is one of several.

Where an interpreter shuts down while PyTorch's gloo threads still live, they can abort it ("terminate
called without an active exception": PyTorch's pull request 179291), and a launcher takes a run for failed
whose work is done. Such a process therefore ends without that shutdown.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

from cdrl_infer.cli.command import OneLineErrors


def one_of_several() -> bool:
    """Whether `torchrun` or `accelerate launch` has started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def end_process(code: int) -> NoReturn:
    """End at once with that exit code; whatever has to be closed must have been."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class OneOfSeveral(OneLineErrors):
    """`OneLineErrors` for a command that `torchrun` or `accelerate launch` may start."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run, and exit."""
        try:
            return super().main(*args, **kwargs)
        except SystemExit as ended:
            if one_of_several() and isinstance(ended.code, int):
                end_process(ended.code)
            raise
