"""A Gaussian of in-distribution features; several scores are distances from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cdrl_infer.errors import InputError

RIDGE = 1e-6  # this share of each variance is added to it


class Gaussian:
    """``N(μ, C)``, fitted to features of in-distribution images.

    Args:
        mean: (F,) float64.
        covariance: (F, F) float64.

    Raises:
        InputError: the covariance is not positive definite.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean = mean
        self.covariance = covariance
        self.deviation = covariance.diagonal().sqrt()
        scaled = covariance / self.deviation / self.deviation[:, None]
        ridge = RIDGE * torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
        self._root, failed = torch.linalg.cholesky_ex(scaled + ridge)
        if failed or not bool(self._root.isfinite().all()):
            raise InputError(
                "expected features that vary independently of each other, got a covariance that is "
                "not positive definite; calibrate with more images, or with others"
            )

    @classmethod
    def of(cls, rows: Tensor) -> Gaussian:
        """The mean and the covariance of rows (N, F).

        Raises:
            InputError: there are too few rows, or the rows are too similar.
        """
        covariance = rows.T.cov()
        return cls(rows.mean(0), (covariance + covariance.T) / 2)  # torch's is not quite symmetric

    def part(self, features: Sequence[int]) -> Gaussian:
        """The marginal distribution of some of the features, by their places 0 … F - 1."""
        # A list would become an index on the default device, which may be another.
        chosen = torch.tensor([*features], device=self.mean.device)
        return Gaussian(self.mean[chosen], self.covariance[chosen][:, chosen])

    def distance(self, features: Tensor) -> Tensor:
        """``√((f - μ)ᵀ C⁻¹ (f - μ))`` (Mahalanobis 1936), (B, F) -> (B,)."""
        scaled = (features - self.mean) / self.deviation
        white: Tensor = torch.linalg.solve_triangular(self._root, scaled.T, upper=False)
        return white.square().sum(0).sqrt()
