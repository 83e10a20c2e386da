"""A tiny random model: 8x8 grey images, three classes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cdrl_infer.model import Attribute, CDRLModel, ImageShape, SamplerDefaults
from cdrl_infer.networks.autoencoder import (
    ConvEnergy,
    ReconstructionEnergy,
    SphereAutoencoder,
)
from cdrl_infer.networks.heads import InnerProductEnergy, ResidualInitializer
from cdrl_infer.networks.patch_unet import PatchUNet
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.scoring.features import FeatureTable
from cdrl_infer.scoring.reference import ReferenceStatistics
from cdrl_infer.scoring.weights import weights_digests
from cdrl_infer.storage.folder import save_model

CLASSES = ("Shirt", "Sneaker", "Bag")


def make_model(*attributes: tuple[str, ...], channels: int = 1, seed: int = 0) -> CDRLModel:
    """Random weights, also where networks start at zero, so that labels and inputs matter."""
    sizes = {
        "in_channels": channels,
        "widths": (8,),
        "num_blocks": 1,
        "embedding_dim": 16,
        "num_classes": tuple(map(len, attributes)),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = (
            InnerProductEnergy(PatchUNet(**sizes)),
            ResidualInitializer(PatchUNet(**sizes)),
        )
        for network in networks:
            for parameter in network.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.1)
    return CDRLModel(
        *networks,
        schedule=NoiseSchedule(num_levels=3),
        image=ImageShape(channels, 8, 8),
        labels=tuple(Attribute(f"attribute {k}", v) for k, v in enumerate(attributes)),
        sampler=SamplerDefaults(langevin_steps=2),
        training={"images": 1},
    )


def make_mpdr(kind: str = "ConvEnergy", seed: int = 0, **options: Any) -> CDRLModel:
    """A tiny model of MPDR with random weights: 8x8 grey images, one transition."""
    sizes: dict[str, Any] = {"width": 4, "hidden": 16, "image_size": (8, 8)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "ConvEnergy":
            ebm: Any = ConvEnergy(**sizes, **options)
        else:
            ebm = ReconstructionEnergy(**sizes, latent=6, **options)
        initializer = SphereAutoencoder(**sizes, latent=6)
    return CDRLModel(
        ebm,
        initializer,
        schedule=NoiseSchedule(num_levels=1, step_size=1e-4),
        image=ImageShape(1, 8, 8),
        sampler=SamplerDefaults(langevin_steps=2),
        training={"images": 1},
    )


def make_statistics(
    values: Sequence[float], num_levels: int = 3, model: CDRLModel | None = None
) -> ReferenceStatistics:
    """Statistics made by hand: standard normal features; half B has these energies at every level.

    They belong to the model's weights, if one is given.
    """
    energies = torch.tensor(values, dtype=torch.float64)[:, None].repeat(1, num_levels)
    table = FeatureTable(energies, energies, energies, energies, energies[:, 0])
    return ReferenceStatistics(
        mean=torch.zeros(3 * num_levels, dtype=torch.float64),
        covariance=torch.eye(3 * num_levels, dtype=torch.float64),
        fitted=table,
        held_out=table,
        weights=("0" * 64,) if model is None else weights_digests(model),
        seed=0,
        data="by hand",
    )


@pytest.fixture(scope="session")
def _model() -> CDRLModel:
    return make_model(CLASSES)


@pytest.fixture
def model(_model: CDRLModel) -> CDRLModel:
    return copy.deepcopy(_model)


@pytest.fixture(scope="session")
def folder(_model: CDRLModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model on disk; to be copied before it is damaged."""
    path = tmp_path_factory.mktemp("saved") / "tiny"
    save_model(_model, path)
    return path


@pytest.fixture(scope="session")
def pipe(folder: Path) -> CDRLPipeline:
    return CDRLPipeline.from_pretrained(folder)
