"""The results of an evaluation as text, as JSON, and for the model-index of a model card."""

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
class Result:
    """One result.

    Args:
        metric: the name for programs: "fid", "precision", "ood-auroc" …
        name: the name for readers.
        values: one value per repeat; the result is their mean.
        error: one standard error of the mean; None if it is unknown.
        error_is: how the error was estimated.
        n: the number of images.
        by: the extractor, classifier or score, for a model card.
        depends_on: names in `Report.conditions`.
        floor: one value per repeat, measured on real images in place of the samples.
        floor_name: the name of these real images.
        args: settings of this result only.
        in_card: whether a model card shows the result.
    """

    metric: str
    name: str
    values: tuple[float, ...]
    error: float | None
    error_is: str | None
    n: int
    by: str
    depends_on: tuple[str, ...]
    floor: tuple[float, ...] = ()
    floor_name: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    in_card: bool = True

    @property
    def value(self) -> float:
        """The mean over the repeats."""
        return statistics.fmean(self.values)


def over_repeats(values: Sequence[float]) -> tuple[float | None, str | None]:
    """The standard error of the mean over repeats, and its name; (None, None) for one repeat."""
    if len(values) < 2:
        return None, None
    error = statistics.stdev(values) / math.sqrt(len(values))
    return error, OVER_REPEATS.format(len(values))


def binomial_error(right: int, count: int) -> float:
    """The standard error of a share k/n: ``√(p (1 - p) / (n + 3))`` with ``p = (k + 1) / (n + 2)``.

    This is the posterior standard deviation for a uniform prior. It is near ``√(k/n (1 - k/n) / n)``, but
    not 0 for k = 0 or k = n.
    """
    p = (right + 1) / (count + 2)
    return math.sqrt(p * (1 - p) / (count + 3))


def plus_minus(value: float, error: float | None = None) -> str:
    """``"305.9 ± 9.6"``: the error has two digits, and the value as many decimals; without an error, the
    value has four digits."""
    if error is None or not error > 0:
        return f"{value:.4g}" + ("" if error is None else " ± 0")
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


@dataclass(frozen=True)
class Report:
    """The results of an evaluation.

    Args:
        model: the name and the digest of the model, and the versions of the software.
        results: the results in the order of the request.
        conditions: what the results depend on (samples, reference, extractor …), for readers.
        settings: what the results depend on, for programs.
        skipped: the reasons for metrics that were not measured, by metric.
        dataset: the type, the name and the split of the data, for a model card.
        variant: differences from the model's defaults, such as ", K = 15", for a model card.
        detail: a text for a terminal, with what the results leave out.
    """

    model: dict[str, str]
    results: tuple[Result, ...]
    conditions: dict[str, str]
    settings: dict[str, Any]
    skipped: dict[str, str]
    dataset: dict[str, str]
    variant: str = ""
    detail: str = ""

    def text(self) -> str:
        """The report as text for a terminal."""
        width = max(len(result.name) for result in self.results)
        values = [plus_minus(result.value, result.error) for result in self.results]
        longest = max(map(len, values))
        lines = [", ".join(self.model.values()), ""]
        for result, value in zip(self.results, values, strict=True):
            line = f"{result.name:{width}}  {value:>{longest}}"
            if result.floor:
                floor = plus_minus(statistics.fmean(result.floor), over_repeats(result.floor)[0])
                line += f"   {result.floor_name}: {floor}"
            lines.append(line)
        if self.detail:
            lines += ["", self.detail]
        conditions = {**self.conditions, **self._errors()}
        label = max(map(len, conditions))
        lines += ["", *(f"{name:{label}}  {words}" for name, words in conditions.items())]
        lines += [f"{'skipped':{label}}  {name}: {why}" for name, why in self.skipped.items()]
        return "\n".join(lines)

    def _errors(self) -> dict[str, str]:
        """A line that names the kinds of error, and the results with each kind."""
        named: dict[str, list[str]] = {}
        for result in self.results:
            if result.error_is is not None:
                names = named.setdefault(result.error_is, [])
                names += [result.name.strip()] if result.in_card else []
        if not named:
            return {}
        return {"±": "; ".join(f"{kind}: {listing(names)}" for kind, names in named.items())}

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON; each result includes everything that it depends on."""
        return {
            "model": self.model,
            "data": self.dataset,
            "settings": self.settings,
            "results": [
                {
                    "metric": result.metric,
                    "name": result.name,
                    "value": result.value,
                    "error": result.error,
                    "error_is": result.error_is,
                    "values": list(result.values),
                    "floor": list(result.floor) or None,
                    "floor_is": result.floor_name or None,
                    "n": result.n,
                    "by": result.by,
                    "args": {**self._depends(result), **result.args},
                }
                for result in self.results
            ],
            "skipped": self.skipped,
        }

    def card_entries(self) -> list[dict[str, Any]]:
        """The ``metrics`` of a model-index. The args are flat, because readers of cards expect that."""
        entries = []
        for result in self.results:
            if not result.in_card:
                continue
            args: dict[str, Any] = {"n": result.n, **self._depends(result), **result.args}
            if result.error is not None:
                args["error"] = f"{_rounded(result.error)} ({result.error_is})"
            if result.floor:
                args["floor"] = f"{_rounded(statistics.fmean(result.floor))} ({result.floor_name})"
            args["model"] = f"{self.model['digest']}, {self.model['cdrl']}"
            name = f"{result.name} ({result.by}, n = {result.n:,}{self.variant})"
            entries.append(
                {"type": result.metric, "name": name, "value": _rounded(result.value), "args": args}
            )
        return entries

    def _depends(self, result: Result) -> dict[str, str]:
        return {name: self.conditions[name] for name in result.depends_on}


def slug(name: str) -> str:
    """Convert a name to an identifier of a data set: ``"Fashion-MNIST.npz"`` -> ``"fashion_mnist"``."""
    stem = re.sub(r"\.npz$", "", name)
    return re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_") or "data"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
