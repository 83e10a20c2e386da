"""FID, KID, inception score, precision and recall of samples, compared with real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdrl_infer.processes import Processes
from cdrl_train.evaluation.cache import FeatureCache
from cdrl_train.evaluation.extractors import Extractor
from cdrl_train.evaluation.fidelity import SETTINGS, compare, kid_subset
from cdrl_train.evaluation.report import Result, over_repeats
from cdrl_train.evaluation.sampling import RealImages

METRICS = ("fid", "kid", "is", "prc")


@dataclass(frozen=True)
class Distances:
    """Compares the samples of each repeat with its own real images.

    Args:
        extractor: computes the features.
        metrics: names in `METRICS`.
        cache: the cache for features of real images.
        reference: the real images.
        floor: other real images, also compared in place of the samples; None for no floor.
        data: the name of the data in reports.
    """

    extractor: Extractor
    metrics: Sequence[str]
    cache: FeatureCache
    reference: RealImages
    floor: RealImages | None
    data: str

    def results(self, processes: Processes, samples: Sequence[NDArray[Any]]) -> list[Result]:
        """One result for each value.

        Args:
            processes: the processes that share the work.
            samples: the rows of the extractor for the samples of each repeat.
        """
        found: list[dict[str, float]] = []
        floors: list[dict[str, float]] = []
        for repeat, rows in enumerate(samples):
            reference = self._rows(processes, self.reference, repeat, "reference")
            found.append(self._compared(rows, reference))
            if self.floor is not None:
                other = self._rows(processes, self.floor, repeat, "floor")
                floors.append(self._compared(other, reference))
        return [
            self._result(key, [one[key] for one in found], [one[key] for one in floors])
            for key in found[0]
        ]

    def _rows(
        self, processes: Processes, real: RealImages, repeat: int, name: str
    ) -> NDArray[np.float32]:
        title = f"{name}, repeat {repeat + 1}"
        return self.cache.rows(self.extractor, real.images(repeat), title, processes)

    def _compared(
        self, samples: NDArray[np.float32], reference: NDArray[np.float32]
    ) -> dict[str, float]:
        return compare(samples, reference, self.extractor.feature_dim, self.metrics)

    def _result(self, key: str, values: Sequence[float], floors: Sequence[float]) -> Result:
        error, error_is = over_repeats(values)
        name, metric = _named(key, self.extractor)
        n = self.reference.count
        return Result(
            metric,
            name,
            tuple(values),
            error,
            error_is,
            floor=tuple(floors),
            n=n,
            by=self.extractor.title,
            depends_on=("samples", "reference", "extractor"),
            floor_name=f"{self.floor.split} images" if self.floor else "",
            args={**SETTINGS[key], **({"subset_size": kid_subset(n)} if key == "kid" else {})},
        )

    def conditions(self) -> dict[str, str]:
        """The floor and the extractor, for readers."""
        found = {}
        if self.floor is not None:
            found["floor"] = (
                f"{self.floor.count:,} of the {len(self.floor.data):,} images of {self.data}, "
                f"{self.floor.split}, in place of the samples"
            )
        extractor = self.extractor
        found["extractor"] = f"{extractor.name}, weights {extractor.digest}: {extractor.convention}"
        return found

    def settings(self) -> dict[str, Any]:
        """The extractor, for programs."""
        names = ("name", "digest", "convention")
        return {"extractor": {name: getattr(self.extractor, name) for name in names}}


def _named(key: str, extractor: Extractor) -> tuple[str, str]:
    """The name and the type of a value. Only features of Inception give a FID or a KID."""
    inception = extractor.name == "inception-v3-compat"
    names: dict[str, tuple[str, str]] = {
        "fid": ("FID", "fid") if inception else ("Fréchet distance", f"frechet-{extractor.name}"),
        "kid": ("KID", "kid") if inception else ("kernel distance", f"kernel-{extractor.name}"),
        "is": ("inception score", "inception-score"),
        "precision": ("precision", "precision"),
        "recall": ("recall", "recall"),
    }
    return names[key]
