"""A tiny random model: 8x8 grey images, three classes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cdrl_infer.model import Attribute, CDRLModel, ImageShape, SamplerDefaults
from cdrl_infer.networks.heads import InnerProductEnergy, ResidualInitializer
from cdrl_infer.networks.patch_unet import PatchUNet
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.scoring.reference import PLAIN, ReferenceStatistics, probe
from cdrl_infer.scoring.scores import SCORES
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


def make_statistics(
    values: Sequence[float], num_levels: int = 3, model: CDRLModel | None = None
) -> ReferenceStatistics:
    """Statistics made by hand: standard normal features, and the same scores of every name.

    Of the model's weights, if one is given.
    """
    scores = {name: torch.tensor(values, dtype=torch.float64) for name in SCORES}
    mean = torch.zeros(3 * num_levels, dtype=torch.float64)
    covariance = torch.eye(len(mean), dtype=torch.float64)
    known_by = torch.zeros(len(PLAIN), len(mean), dtype=torch.float64)
    if model is not None:
        known_by = probe(model, 0)
    return ReferenceStatistics(mean, covariance, scores, 0, "by hand", 2 * len(values), known_by)


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
