"""Figures with all that they depend on: as text, as JSON, and as a model card's model-index has them."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cdrl_infer.errors import listing

OVER_REPEATS = "standard error over {} repeats"
BINOMIAL = "binomial standard error, all repeats together"
BOOTSTRAP = "standard error by {:,} bootstrap resamplings of the images"


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        metric: for programs: "fid", "precision", "ood-auroc" …
        name: for readers.
        values: of each repeat; the figure is their mean.
        error: one standard error of it; None where nothing tells.
        error_is: what kind.
        floor: the same of other real images in the samples' place, for each repeat.
        floor_name: what these are.
        n: images it is of.
        by: what has judged them, for a model card.
        of: the conditions it depends on, names of `Report.conditions`.
        args: what this figure alone depends on.
        in_card: whether a model card has it.
    """

    metric: str
    name: str
    values: tuple[float, ...]
    error: float | None
    error_is: str | None
    n: int
    by: str
    of: tuple[str, ...]
    floor: tuple[float, ...] = ()
    floor_name: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    in_card: bool = True

    @property
    def value(self) -> float:
        """The mean."""
        return statistics.fmean(self.values)


def over_repeats(values: Sequence[float]) -> tuple[float | None, str | None]:
    """The standard error of a mean of repeats and what to call it; of a single one nothing is known."""
    if len(values) < 2:
        return None, None
    error = statistics.stdev(values) / math.sqrt(len(values))
    return error, OVER_REPEATS.format(len(values))


def binomial_error(right: int, count: int) -> float:
    """The standard deviation of a share of which k of n were seen, all shares being as likely before.

    ``√(p (1 - p) / (n + 3))`` with ``p = (k + 1) / (n + 2)``: near to the usual one, and not 0 for none.
    """
    p = (right + 1) / (count + 2)
    return math.sqrt(p * (1 - p) / (count + 3))


def plus_minus(value: float, error: float | None = None) -> str:
    """``"305.9 ± 9.6"``: as many digits as the error has sense for, two of it; four without one."""
    if error is None or not error > 0:
        return f"{value:.4g}" + ("" if error is None else " ± 0")
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
        model: its name, digest …
        figures: in the order asked.
        conditions: what all figures share: samples, reference, extractor …, in words by subject.
        settings: the same for programs.
        skipped: metrics that were not taken, and why.
        dataset: type, name and split, for a model card.
        variant: what is not the model's default, as ", K = 15", for a model card.
    """

    model: dict[str, str]
    figures: tuple[Figure, ...]
    conditions: dict[str, str]
    settings: dict[str, Any]
    skipped: dict[str, str]
    dataset: dict[str, str]
    variant: str = ""

    def text(self) -> str:
        """For a terminal."""
        width = max(len(figure.name) for figure in self.figures)
        values = [plus_minus(figure.value, figure.error) for figure in self.figures]
        longest = max(map(len, values))
        lines = [", ".join(self.model.values()), ""]
        for figure, value in zip(self.figures, values, strict=True):
            line = f"{figure.name:{width}}  {value:>{longest}}"
            if figure.floor:
                error = over_repeats(figure.floor)[0]
                floor = plus_minus(statistics.fmean(figure.floor), error)
                line += f"   {figure.floor_name}: {floor}"
            lines.append(line)
        kinds = dict.fromkeys(f.error_is for f in self.figures if f.error_is is not None)
        conditions = dict(self.conditions)
        if kinds:
            named = {
                kind: [f.name.strip() for f in self.figures if f.error_is == kind and f.in_card]
                for kind in kinds
            }
            conditions["±"] = "; ".join(f"{kind}: {listing(named[kind])}" for kind in kinds)
        label = max(map(len, conditions))
        lines += ["", *(f"{name:{label}}  {words}" for name, words in conditions.items())]
        lines += [f"{'skipped':{label}}  {name}: {why}" for name, why in self.skipped.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; each figure has all that it depends on."""
        return {
            "model": self.model,
            "data": self.dataset,
            "settings": self.settings,
            "figures": [
                {
                    "metric": figure.metric,
                    "name": figure.name,
                    "value": figure.value,
                    "error": figure.error,
                    "error_is": figure.error_is,
                    "values": list(figure.values),
                    "floor": list(figure.floor) or None,
                    "floor_is": figure.floor_name or None,
                    "n": figure.n,
                    "by": figure.by,
                    "args": {**self._depends(figure), **figure.args},
                }
                for figure in self.figures
            ],
            "skipped": self.skipped,
        }

    def card_entries(self) -> list[dict[str, Any]]:
        """The ``metrics`` of a model-index; args are flat, as readers of cards expect."""
        entries = []
        for figure in self.figures:
            if not figure.in_card:
                continue
            args: dict[str, Any] = {"n": figure.n, **self._depends(figure), **figure.args}
            if figure.error is not None:
                args["error"] = f"{_rounded(figure.error)} ({figure.error_is})"
            if figure.floor:
                args["floor"] = f"{_rounded(statistics.fmean(figure.floor))} ({figure.floor_name})"
            args["model"] = f"{self.model['digest']}, {self.model['cdrl']}"
            name = f"{figure.name} ({figure.by}, n = {figure.n:,}{self.variant})"
            entries.append(
                {"type": figure.metric, "name": name, "value": _rounded(figure.value), "args": args}
            )
        return entries

    def _depends(self, figure: Figure) -> dict[str, str]:
        return {name: self.conditions[name] for name in figure.of}


def slug(name: str) -> str:
    """A name as an identifier of a data set: ``"Fashion-MNIST.npz"`` -> ``"fashion_mnist"``."""
    stem = re.sub(r"\.npz$", "", name)
    return re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_") or "data"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
