"""Normalisers made by hand, and images for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from cdrl_infer.likelihood.decoder import BINS, Decoder
from cdrl_infer.likelihood.normalisers import Normaliser, Normalisers, TransitionResult
from cdrl_infer.likelihood.stationary import Drift
from cdrl_infer.model import CDRLModel
from cdrl_infer.scoring.weights import weights_digests

DECODER = Decoder((4.0,) * BINS, (0.1,) * BINS, (0.01,) * BINS)
SETTLED = Drift(0.1, 0.1, 0.2, 0.1, -0.3, 0.1)


def entry(labels: tuple[int, ...], log_z: float, **changes: Any) -> Normaliser:
    """A normaliser made by hand, of three levels."""
    results = tuple(
        TransitionResult(
            t=t,
            temperatures=1,
            particles=32,
            delta=1.0,
            error=0.5,
            lower=0.5,
            upper=1.5,
            jeffreys=2.0,
            jeffreys_error=0.1,
            overlap=0.6,
            ess_forward=20.0,
            ess_reverse=20.0,
            pareto_k=0.4,
            chains=SETTLED,
        )
        for t in (1, 2, 3)
    )
    first = replace(results[0], **changes)
    return Normaliser(
        labels=labels,
        log_z=(log_z, 1.0, 2.0),
        error=(3.0, 1.0, 1.0),
        lower=(log_z - 4, 0.0, 1.0),
        upper=(log_z + 6, 2.0, 3.0),
        transitions=(first, *results[1:]),
    )


def by_hand(model: CDRLModel, *entries: Normaliser) -> Normalisers:
    return Normalisers(entries, weights_digests(model), model.schedule.config(), "by hand", 0)


def images(n: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8), np.uint8)
