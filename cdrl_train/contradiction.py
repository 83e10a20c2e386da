"""How far the levels of a run contradict each other, as a curve of the run."""

from __future__ import annotations

import torch

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.likelihood.contradiction import contradictions
from cdrl_infer.proposals import proposal_of
from cdrl_infer.scoring.reference import random_order
from cdrl_train.engine.trainer import Trainer
from cdrl_train.export import to_model

IMAGES = 64  # the same in all estimates of a run, with the same noise
NAME = "contradiction"


def contradiction_curve(trainer: Trainer) -> dict[str, float]:
    """``contradiction/t`` for t = 1 … T, in nats, of the averaged networks without labels.

    It draws from generators of its own, so the run goes on as if it had not been asked. It is empty for
    a model with labels that training never hides: such a model has no density without labels.

    Raises:
        NumericalError: a weight is not finite.
    """
    config, data = trainer.config, trainer.stream.data
    model = to_model(trainer)
    if model.labels and config.data.label_dropout == 0:
        return {}
    for network in model.networks.values():
        network.to(trainer.device)
    none = torch.zeros(1, len(model.labels), dtype=torch.int64, device=trainer.device)
    row = none if model.labels else None
    found = contradictions(
        NeuralEnergy(model.ebm, row),
        proposal_of(model, row),
        model.schedule,
        data.scaled(random_order(len(data), config.seed)[:IMAGES]).to(trainer.device),
        torch.Generator(trainer.device).manual_seed(config.seed),
    )
    return {f"{NAME}/{t}": float(f"{value:.6g}") for t, value in enumerate(found.tolist(), 1)}
