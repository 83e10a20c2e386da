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
            OSError: the file cannot be written.
        """
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def rows(self) -> list[str]:
        """The lines, without a last one that a kill cut short."""
        if not self.path.is_file():
            return []
        # Other line ends than "\n" may occur in a damaged line.
        with open(self.path, encoding="utf-8", errors="replace", newline="\n") as file:
            return [row for row in file if row.endswith("\n")]

    def entries(self) -> list[dict[str, Any]]:
        """What the lines hold, in order; damaged lines are passed over."""
        found = []
        for row in self.rows():
            try:
                entry = json.loads(row)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict) and ("event" in entry or _is_result(entry)):
                found.append(entry)
        return found

    def cut(self, count: int) -> None:
        """Keep the first ``count`` lines; the run repeats the steps after them.

        Raises:
            OSError: the file cannot be written. The log is then unchanged.
        """
        if self.path.is_file():
            with replaced_file(self.path) as new:
                new.write_text("".join(self.rows()[:count]), encoding="utf-8")


def _is_result(entry: dict[str, Any]) -> bool:
    """Whether a line has what every line of results has."""
    numbers = [entry.get(name) for name in ("step", "images", "hours")]
    return isinstance(entry.get("phase"), str) and all(isinstance(n, int | float) for n in numbers)
