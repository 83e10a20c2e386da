"""Bits per dimension of real images, by the model's stored normalisers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cdrl_infer.likelihood.density import CLEAN, NOISED, LikelihoodOutput
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.processes import Arrays, Processes
from cdrl_train.evaluation.report import Result
from cdrl_train.evaluation.sampling import RealImages

DRAWS = 1  # of noise per image; the average over the images needs no more
ERROR_IS = "standard error over the images, with that of the normaliser"


@dataclass(frozen=True)
class Likelihood:
    """Bits per dimension, by the unconditional energy.

    Args:
        pipe: the model, with normalisers.
        inside: the real images.
        place: the name of these images in reports.
        batch_size: number of images at once.
        first: the likelihood of one image, for what all images share.
        repeats: the number of repeats, each with other images.
    """

    pipe: CDRLPipeline
    inside: RealImages
    place: str
    batch_size: int
    first: LikelihoodOutput
    repeats: int = 1

    @classmethod
    def prepare(
        cls, pipe: CDRLPipeline, inside: RealImages, place: str, batch_size: int, repeats: int
    ) -> Likelihood:
        """Check that the model's normalisers may be believed.

        Raises:
            InputError, ConfigError, NumericalError: see `CDRLPipeline.log_likelihood`.
        """
        first = pipe.log_likelihood(inside.data.images[:1], draws=DRAWS, progress=False)
        return cls(pipe, inside, place, batch_size, first, repeats)

    def results(self, processes: Processes) -> list[Result]:
        """One result for clean images, one for images with the noise of the lowest sound level."""
        noised = NOISED.format(self.first.level)
        return [
            self._result(processes, CLEAN, "bits-per-dim", "bound for clean 8-bit images"),
            self._result(
                processes, noised, f"bits-per-dim-{noised}", f"density of data plus noise, {noised}"
            ),
        ]

    def _result(self, processes: Processes, density: str, metric: str, name: str) -> Result:
        (normaliser,), level = self.first.normalisers, self.first.level
        unit = self.inside.data.images[0].numel() * math.log(2)
        values, variances = [], []
        for repeat in range(self.repeats):
            bits = self._bits(processes, repeat, density)
            values.append(float(bits.mean()))
            variances.append(float(bits.var(ddof=1)) / len(bits))
        shared = normaliser.error[level] / unit
        error = math.sqrt(math.fsum(variances) / self.repeats**2 + shared**2)
        mean, log_z = float(np.mean(values)), normaliser.log_z[level]
        tails = self.first.pareto_k
        return Result(
            metric,
            f"bits/dim, {name}",
            tuple(values),
            error,
            ERROR_IS,
            n=self.inside.count,
            by="unconditional energy",
            depends_on=("likelihood",),
            args={
                "level": level,
                "lower": round(mean - (log_z - normaliser.lower[level]) / unit, 6),
                "upper": round(mean + (normaliser.upper[level] - log_z) / unit, 6),
                "ess": round(self.first.ess, 2),
                "pareto_k": "unknown" if tails is None else round(tails, 3),
                "jeffreys": ", ".join(f"{value:.1f}" for value in self.first.jeffreys),
                "verdict": self.first.verdict,
            },
        )

    def _bits(self, processes: Processes, repeat: int, density: str) -> Any:
        images = self.inside.images(repeat)

        def measure(start: int, stop: int) -> Arrays:
            out = self.pipe.log_likelihood(
                torch.from_numpy(images[start:stop]),
                density=density,
                draws=DRAWS,
                seed=self.inside.seed + start,
                batch_size=stop - start,
                progress=False,
            )
            return {"bits": out.bits_per_dim.numpy()}

        rows = processes.each_batch(len(images), self.batch_size, measure, f"bits/dim, {density}")
        return rows["bits"].astype(np.float64)

    def conditions(self) -> dict[str, str]:
        """The images, the method and the verdict, for readers."""
        stored = self.pipe.model.normalisers
        assert stored is not None  # `prepare` has checked it
        return {
            "likelihood": (
                f"{self.inside.count:,} images of {self.place}, chosen by seed {self.inside.seed}; "
                f"{self.first.method}; chains begun at {stored.data}, seed {stored.seed}, "
                f"{'decoder fitted there' if stored.decoders else 'no fitted decoder'}; "
                f"{self.first.verdict}"
            )
        }

    def settings(self) -> dict[str, Any]:
        """The draws of noise, for programs."""
        return {"likelihood_draws": DRAWS}
