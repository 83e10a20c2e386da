"""The scores by name; `cdrl_infer.scoring.scores.Score` shows how to add a score."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdrl_infer.registry import Registry

if TYPE_CHECKING:
    from cdrl_infer.scoring.scores import Score

_HOME = "cdrl_infer.scoring.scores"
SCORES: Registry[Score] = Registry(
    "score",
    {
        "combined": f"{_HOME}:COMBINED",
        "combined-half": f"{_HOME}:COMBINED_HALF",
        "combined-energy": f"{_HOME}:COMBINED_ENERGY",
        "energy": f"{_HOME}:ENERGY",
        "score-norm": f"{_HOME}:SCORE_NORM",
        "multi-level": f"{_HOME}:MULTI_LEVEL",
        "typicality": f"{_HOME}:TYPICALITY",
        "complexity": f"{_HOME}:COMPLEXITY",
        "initializer": f"{_HOME}:INITIALIZER",
    },
)
