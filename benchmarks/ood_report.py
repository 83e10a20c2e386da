"""Tables of the results of detectors on sets of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from ood_baselines import EXPLAINED, RIDGE, Detector
from ood_sets import Bytes, OutSet, generator
from report import table

from cdrl_train.evaluation.ood_metrics import (
    METRICS,
    Floats,
    Interval,
    interval,
    resampled_separation,
    resamplings,
    separation,
)

WANTED = 0.95  # AUROC of the default score on these, where they are given
WANTED_ON = ("mnist", "notmnist")
SEES = {"score": "images (the model)", "unsupervised": "images", "labels": "images and labels"}


class Row(NamedTuple):
    """The results of one detector."""

    detector: Detector
    results: list[list[Interval]]  # for each set, one result per metric
    draws: Floats  # (sets, R) AUROC of the resamplings

    def mean(self, sets: Sequence[OutSet], additional: bool = False) -> Interval:
        """Mean AUROC over the sets that were chosen beforehand, or over all sets."""
        chosen = [k for k, s in enumerate(sets) if s.named or additional]
        value = np.mean([self.results[k][0].value for k in chosen])
        return interval(float(value), self.draws[chosen].mean(0))

    def less(self, other: Row, sets: Sequence[OutSet]) -> Interval:
        """The difference of this mean and another mean, over the same sets and resamplings."""
        chosen = [k for k, s in enumerate(sets) if s.named]
        difference = self.mean(sets).value - other.mean(sets).value
        return interval(difference, (self.draws - other.draws)[chosen].mean(0))

    def worst(self) -> int:
        """The set with the smallest AUROC."""
        return int(np.argmin([each[0].value for each in self.results]))


def measure(
    detectors: Sequence[Detector], inside: Bytes, sets: Sequence[OutSet], repeats: int, seed: int
) -> Iterator[Row]:
    """Measure each detector on each set, with the same resamplings of the images for all detectors."""
    ours = resamplings(len(inside), repeats, generator(seed, "inside"))
    theirs = [
        resamplings(len(s.images), repeats, generator(seed, f"resampled {s.name}")) for s in sets
    ]
    for detector in detectors:
        low, results, draws = detector.score(inside), [], []
        for other, weights in zip(sets, theirs, strict=True):
            high = detector.score(other.images)
            resampled = resampled_separation(low, high, ours, weights)
            values = separation(low, high)
            results.append([interval(values[k], resampled[:, k]) for k in range(len(METRICS))])
            draws.append(resampled[:, 0])
        yield Row(detector, results, np.stack(draws))


def set_names(sets: Sequence[OutSet]) -> list[str]:
    """The names of the sets; additional sets have a plus."""
    return [s.name if s.named else f"{s.name} +" for s in sets]


def overview_table(rows: Sequence[Row], sets: Sequence[OutSet]) -> str:
    """AUROC of every detector on every set."""
    body = []
    for row in rows:
        cells = [f"{each[0].value:.3f}" for each in row.results]
        means = [f"{row.mean(sets, additional).value:.3f}" for additional in (False, True)]
        body.append([row.detector.name, *cells, *means])
    return table(["AUROC", *set_names(sets), "mean", "mean with +"], body)


def summary_table(rows: Sequence[Row], sets: Sequence[OutSet], default: Row) -> str:
    """Means with intervals, the worst set, and the default score's lead."""
    body = []
    for row in rows:
        worst = row.worst()
        lead = "" if row is default else default.less(row, sets)
        body.append(
            [
                row.detector.name,
                SEES[row.detector.kind],
                row.mean(sets),
                row.mean(sets, additional=True),
                f"{row.results[worst][0].value:.3f} ({sets[worst].name})",
                lead,
            ]
        )
    means = ["mean AUROC", "mean with +", "worst set"]
    return table(["detector", "has seen", *means, f"{default.detector.name} less it"], body)


def details_table(row: Row, best: Row, sets: Sequence[OutSet], count: int) -> str:
    """All metrics of one detector, and the AUROC of another detector to compare with."""
    body = [
        [name, len(s.images), *ours, f"{len(s.images) / (len(s.images) + count):.3f}", theirs[0]]
        for name, s, ours, theirs in zip(
            set_names(sets), sets, row.results, best.results, strict=True
        )
    ]
    chance = "chance of AUPR"
    return table([row.detector.name, "n", *METRICS, chance, f"AUROC, {best.detector.name}"], body)


def metric_table(metric: int, rows: Sequence[Row], sets: Sequence[OutSet]) -> str:
    """One metric of every detector on every set, with intervals; a line per set."""
    body = [
        [name, *(row.results[k][metric] for row in rows)] for k, name in enumerate(set_names(sets))
    ]
    return table([METRICS[metric], *(row.detector.name for row in rows)], body)


def aims(default: Row, best: Row, sets: Sequence[OutSet]) -> list[tuple[str, bool]]:
    """The aims of the default score, and whether it reaches them."""
    found = []
    for k, other in enumerate(sets):
        if other.name in WANTED_ON:
            value = default.results[k][0].value
            found.append(
                (f"AUROC at least {WANTED} on {other.name}: {value:.3f}", bool(value >= WANTED))
            )
    worst = default.worst()
    least = default.results[worst][0].value
    found.append(
        (f"never below 0.5: at worst {least:.3f} ({sets[worst].name})", bool(least >= 0.5))
    )
    lead = default.less(best, sets)
    text = f"mean not below that of {best.detector.name}, the best unsupervised baseline: {lead}"
    return [*found, (text, bool(lead.value >= 0))]


def row_as_json(row: Row, sets: Sequence[OutSet]) -> dict[str, Any]:
    """Every result with its interval."""
    return {
        "name": row.detector.name,
        "kind": row.detector.kind,
        "mean_auroc": row.mean(sets)._asdict(),
        "mean_auroc_with_additional": row.mean(sets, additional=True)._asdict(),
        "sets": {
            s.name: {
                metric: found._asdict() for metric, found in zip(METRICS, results, strict=True)
            }
            for s, results in zip(sets, row.results, strict=True)
        },
    }


def baselines_in_words(
    images: int, components: int, autoencoder: str, real: float | None, pytorch_ood: bool
) -> str:
    """A description of the baselines.

    Args:
        images: number of training images.
        components: number of components of the PCA.
        autoencoder: a description of the autoencoder.
        real: the share of test images that the judge recognises; None without a judge.
        pytorch_ood: whether pytorch-ood's detectors ran.
    """
    knows = ""
    if real is not None:
        knows = f" Classifier: trained on the labels too, knows {100 * real:.1f} % of test images."
        if not pytorch_ood:
            knows += " pytorch-ood's detectors are left out: it is not installed or does not work."
    return (
        f"Baselines are fitted to the {images} training images. Compressed size: of the PNG. "
        f"Pixel Gaussian: full covariance, ridge {RIDGE:g} of the mean variance. PCA residual: "
        f"without {components} components, {100 * EXPLAINED:.0f} % of the variance. "
        f"{autoencoder}.{knows}"
    )
