"""Bennett's acceptance ratio: the ratio of two normalisers from log-weights in both directions.

``a`` and ``b`` are densities without normalisers, ``A = ∫ a`` and ``B = ∫ b``. A draw has the log-weight
``w = log(b/a)``, or that of a path from one density to the other (annealed importance sampling).
Forward draws are of a, reverse draws are of b. Then ``Δ = log(B/A)`` obeys

    E_a[e^w] = e^Δ,   E_b[e^-w] = e^-Δ,   E_a[w] ≤ Δ ≤ E_b[w]

The gap between the two means is the Jeffreys divergence. Sources: Bennett 1976; Crooks 1999; Shirts et
al. 2003.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cdrl_infer.optional import needed

RESAMPLINGS = 200
FEWEST = 25  # log-weights, of which a fifth make the tail
HALVINGS = 70  # of the interval that holds the root, in float64
LEAST_OVERLAP = (
    0.03  # with less, the spread of resamplings does not measure the error (Klimovich 2015)
)


class Works(NamedTuple):
    """Log-weights ``w = log(b/a)`` in nats, float64: (..., N) of draws of a, (..., M) of draws of b."""

    forward: Tensor
    reverse: Tensor


class Estimate(NamedTuple):
    """Estimates of ``Δ = log(B/A)``, each (...) float64, in nats where there is a unit."""

    delta: Tensor  # Bennett's acceptance ratio
    lower: Tensor  # log-mean-exp of the forward weights: at most Δ in expectation
    upper: Tensor  # the same of the reverse weights: at least Δ in expectation
    jeffreys: (
        Tensor  # mean reverse w - mean forward w: how far the two densities contradict each other
    )
    overlap: Tensor  # 2∫ab/(a + b) of the normalised densities: 1 if they are the same, 0 if apart


def bar(works: Works) -> Tensor:
    """The root Δ of ``Σ_forward σ(w - Δ - M) = Σ_reverse σ(Δ + M - w)``, ``M = log(N/M)``, (...) nats.

    Of all estimates that use one function of w it has the least variance (Bennett 1976, eq. 12).
    """
    forward, reverse = works
    shift = math.log(forward.shape[-1] / reverse.shape[-1])
    both = torch.cat([forward, reverse], -1)
    low, high = both.amin(-1) - abs(shift), both.amax(-1) + abs(shift)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        offset = middle[..., None] + shift
        excess = (forward - offset).sigmoid().sum(-1) - (offset - reverse).sigmoid().sum(-1)
        low, high = torch.where(excess > 0, middle, low), torch.where(excess > 0, high, middle)
    return (low + high) / 2


def estimate(works: Works) -> Estimate:
    """All estimates of Δ from the same works."""
    forward, reverse = works
    delta = bar(works)
    shared = (forward - delta[..., None]).sigmoid().mean(-1)
    return Estimate(
        delta=delta,
        lower=log_mean_exp(forward),
        upper=-log_mean_exp(-reverse),
        jeffreys=reverse.mean(-1) - forward.mean(-1),
        overlap=shared + (delta[..., None] - reverse).sigmoid().mean(-1),
    )


def resampled(works: Works, seed: int) -> Tensor:
    """`bar` for resamplings of the chains, (RESAMPLINGS, L) for works of L transitions.

    Column j of all transitions is one chain. It is drawn as a whole, so the estimates of different
    transitions keep their correlation.

    Args:
        works: (L, N) and (L, M).
        seed: of the resamplings.
    """
    generator = torch.Generator("cpu").manual_seed(seed)

    def drawn(table: Tensor) -> Tensor:
        count = table.shape[1]
        rows = torch.randint(count, (RESAMPLINGS, count), generator=generator, device="cpu")
        return table[:, rows].transpose(0, 1)

    return bar(Works(drawn(works.forward), drawn(works.reverse)))


def log_mean_exp(values: Tensor) -> Tensor:
    """``log(mean(exp(values)))`` over the last axis."""
    return values.logsumexp(-1) - math.log(values.shape[-1])


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """``(Σ e^w)² / Σ e^2w`` over the last axis: how many equal weights say as much."""
    return (2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1)).exp()


def pareto_k(log_weights: Tensor) -> float:
    """The Pareto k̂ of log-weights (N,): above 0.7 their mean is not to be trusted (Vehtari et al. 2024).

    NaN or infinite if there are too few different weights.

    Raises:
        InputError: the package arviz-stats is missing.
    """
    if len(log_weights) < FEWEST:
        return math.nan
    with needed("arviz-stats", "the Pareto k̂ of importance weights needs", "eval"):
        from arviz_stats.base import array_stats
    try:
        weights = (log_weights - log_weights.max()).exp().numpy()
        with np.errstate(divide="ignore", invalid="ignore"):  # of weights that are nearly the same
            found = array_stats.pareto_khat(weights, chain_axis=None, r_eff=1, tail="right")
    except ValueError:  # the largest weights are all the same
        return math.nan
    return float(found)
