"""When are chains stationary? One definition for all commands that judge the Markov chains of a level.

Three figures, each a difference of mean energies along chains whose kernel leaves ``exp(-E)`` unchanged:

* *leak*: from the start to the last quarter, chains begun at the data. They begin in equilibrium if the
  energy is the density of the data, and then nothing moves;
* *drift*: from the third quarter to the last, of the chains begun at the data or at samples, those that
  move more. It says whether chains have come to rest, wherever they began;
* *starts*: from the last quarter of the chains begun at the data to that of those begun at samples.

A figure counts against the chains if it is beyond its limit **and** beyond `ERRORS` standard errors. If
it is beyond its limit alone, the chains are too few to tell: that is a doubt, not a fault.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

LIMIT = 0.5  # standard deviations of the data's energies, for leak and drift
STARTS_LIMIT = 1.0  # the same, for the two starts: chains of images mix slowly
ERRORS = 3.0  # standard errors
SMALLEST = 1e-6  # nats, the least standard deviation to divide by


@dataclass(frozen=True)
class Drift:
    """How far the mean energy of a level's chains moves, in standard deviations of the data's energies.

    Args:
        drift, drift_error: from the third quarter of the chains to the last; of the chains begun at the
            data or at samples, those that move more. The errors are standard errors over the chains.
        starts, starts_error: from the ends of chains begun at the data to those begun at samples; 0
            without both.
        leak, leak_error: from the starts at the data to the ends of these chains; 0 without data.
    """

    drift: float
    drift_error: float
    starts: float
    starts_error: float
    leak: float
    leak_error: float

    @property
    def fault(self) -> str:
        """Why the chains are not stationary draws of a density of the data; "" if nothing shows it."""
        return next((text for text, sure in self._beyond() if sure), "")

    @property
    def doubt(self) -> str:
        """What the chains are too few to tell; "" if there is a fault, or no figure beyond its limit."""
        return "" if self.fault else next((text for text, _ in self._beyond()), "")

    def _beyond(self) -> Iterator[tuple[str, bool]]:
        """The figures beyond their limits, in words, and whether they are so by enough errors."""
        moved = "the chains are not stationary: their mean energy moves by"
        of_data = (
            "the energy is lower off the data than on it: chains begun at the data end"
            if self.leak < 0
            else "the energy is not the density of the data: chains begun at the data end"
        )
        side = "lower" if self.leak < 0 else "higher"
        apart = "the chains are not stationary: those begun at samples end"
        for value, error, limit, text in (
            (
                self.leak,
                self.leak_error,
                LIMIT,
                f"{of_data} {abs(self.leak):.1f} ± {self.leak_error:.1f} standard deviations {side}",
            ),
            (
                self.drift,
                self.drift_error,
                LIMIT,
                f"{moved} {self.drift:+.1f} ± {self.drift_error:.1f} standard deviations in a quarter "
                "of their moves",
            ),
            (
                self.starts,
                self.starts_error,
                STARTS_LIMIT,
                f"{apart} {self.starts:+.1f} ± {self.starts_error:.1f} standard deviations from those "
                "begun at the data",
            ),
        ):
            if not abs(value) <= limit:
                yield text, not abs(value) <= ERRORS * error


def judge(
    energies: Tensor, from_data: Tensor, *, unit: float | None = None, same_law: bool = True
) -> Drift:
    """Measure the chains of one level.

    Args:
        energies: (moves + 1, N) float64, along the chains, nats; at least one move.
        from_data: (N,) bool, whether a chain began at the data.
        unit: the standard deviation of the data's energies, nats; None for that of the first energies of
            the chains from data, or without these, of all chains in their third quarter.
        same_law: whether chains begun at data and at samples have the same law in the end. Recovery
            chains have not: each is near an image of its own. They are not compared.
    """
    quarter = max(1, (len(energies) - 1) // 4)
    third, last = energies[-2 * quarter : -quarter].mean(0), energies[-quarter:].mean(0)
    if unit is None:
        unit = float((energies[0, from_data] if from_data.any() else third).std())
    unit = max(unit, SMALLEST)
    begun = [group for group in (from_data, ~from_data) if group.any()]
    moved = [_mean((last - third)[group], unit) for group in begun]
    most, error = max(moved, key=lambda pair: abs(pair[0]))
    leak, leak_error, starts, starts_error = 0.0, 0.0, 0.0, 0.0
    if from_data.any():
        leak, leak_error = _mean((last - energies[0])[from_data], unit)
    if len(begun) == 2 and same_law:
        theirs, mine = (_mean(last[group], unit) for group in begun)
        starts, starts_error = mine[0] - theirs[0], math.hypot(mine[1], theirs[1])
    return Drift(most, error, starts, starts_error, leak, leak_error)


def _mean(values: Tensor, unit: float) -> tuple[float, float]:
    """The mean and its standard error, in this unit."""
    error = float(values.std()) / math.sqrt(len(values))
    return float(values.mean()) / unit, error / unit
