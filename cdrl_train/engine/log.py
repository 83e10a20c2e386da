"""``metrics.jsonl``: the results of a run, one JSON object a line, appended while it trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cdrl_infer.files import replaced_file

NAME = "metrics.jsonl"


class Log:
    """The log in a run's folder.

    Args:
        run: the folder; it need not exist to be read.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / NAME

    def append(self, line: dict[str, Any]) -> None:
        """Add a line.

        Raises:
            OSError: the disk is full or refuses it.
        """
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def rows(self) -> list[str]:
        """The lines, without a last one that a kill cut short."""
        if not self.path.is_file():
            return []
        rows = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [row for row in rows if row.endswith("\n")]

    def cut(self, count: int) -> None:
        """Keep only the first lines; the steps of the others will be done again.

        Raises:
            OSError: the disk is full or refuses it. The log is then unchanged.
        """
        if self.path.is_file():
            with replaced_file(self.path) as new:
                new.write_text("".join(self.rows()[:count]), encoding="utf-8")
