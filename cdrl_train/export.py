"""From a training state to a model that `cdrl_infer` opens: averaged weights, norms folded in."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cdrl_infer.checkpoint import CDRLModel, ImageShape
from cdrl_train.spectral import folded_state
from cdrl_train.trainer import Trainer

STORED_TYPES = {"float32": torch.float32, "float16": torch.float16}


def to_model(trainer: Trainer) -> CDRLModel:
    """The EMA networks of a run as a `CDRLModel`; the trainer is left as it is."""
    channels, height, width = trainer.stream.images.shape[1:]
    with torch.random.fork_rng(devices=[]):  # initial weights that nobody sees must not cost draws
        ebm, initializer = trainer.build()
    return CDRLModel(
        ebm=_plain(ebm, trainer.ebm_ema.module),
        initializer=_plain(initializer, trainer.initializer_ema.module),
        schedule=trainer.schedule,
        image=ImageShape(channels, height, width),
        labels=trainer.stream.data.attributes,
        sampler=trainer.config.sampler,
        training=training_record(trainer),
    )


def training_record(trainer: Trainer) -> dict[str, Any]:
    """How the model was made: options, steps, images and hours."""
    return {
        "config": trainer.config.to_dict(),
        "steps": trainer.step,
        "images": trainer.images_seen,
        "hours": round(trainer.seconds / 3600, 3),
    }


def _plain(fresh: nn.Module, trained: nn.Module) -> nn.Module:
    fresh.load_state_dict(folded_state(trained), strict=True)
    return fresh.eval()
