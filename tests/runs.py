"""Small training runs: their networks, options and data, and what they leave behind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdrl_infer.model import Attribute, SamplerDefaults
from cdrl_infer.schedule import NoiseSchedule
from cdrl_train.config import DataConfig, Phase, TrainConfig
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.stream import BatchStream
from cdrl_train.engine.log import Log
from cdrl_train.engine.loop import Callbacks, Loop
from cdrl_train.engine.trainer import Trainer

NETWORK: dict[str, Any] = {"widths": [8], "num_blocks": 1, "embedding_dim": 16}
RESIDUAL = {"class": "ResidualEBM", "width": 8, "num_blocks": 1, "width_multipliers": [1, 2]}
# Of few enough weights that none has a gradient of the size of rounding: Adam moves a weight by its
# learning rate whatever its gradient's size, and so would make such rounding large.
SMALL = {**RESIDUAL, "embedding_dim": 16, "frequencies": 4}


def energy(**options: Any) -> dict[str, Any]:
    """The energy network of the small presets, tiny."""
    return {"class": "InnerProductEnergy", "backbone": {"class": "PatchUNet", **NETWORK, **options}}


def initializer(**options: Any) -> dict[str, Any]:
    """The initializer of the small presets, tiny."""
    return {
        "class": "ResidualInitializer",
        "backbone": {"class": "PatchUNet", **NETWORK, **options},
    }


def unet(**options: Any) -> dict[str, Any]:
    """The paper's initializer, tiny; it has dropout."""
    sizes = {"attention_levels": [], "frequencies": 4, "groups": 4}
    return {
        "class": "ResidualInitializer",
        "backbone": {"class": "UNet", **NETWORK, **sizes, **options},
    }


def tiny(*assignments: str, **changes: Any) -> TrainConfig:
    """A run of four steps of each phase, with options changed as `TrainConfig.override` does it."""
    matching = {"name": "score_matching", "coupling": "markov"}
    cooperative = {"name": "cooperative", "langevin_steps": 2, "weight": "noise"}
    config = TrainConfig(
        name="tiny",
        ebm=energy(),
        initializer=initializer(),
        phases=(
            Phase(matching, 4, 8, 1e-3, 1e-3, lr_warmup_steps=2, final_lr=0.1),
            Phase({**cooperative, "score_matching": 0.5}, 4, 8, 1e-3, 1e-3),
        ),
        schedule=NoiseSchedule(num_levels=3, step_rule="curvature", step_size=0.4),
        sampler=SamplerDefaults(langevin_steps=2),
        data=DataConfig(flip=True),
        log_every=1,
        checkpoint_every=1000,
    )
    return dataclasses.replace(config, **changes).override([*assignments])


def images(n: int = 20) -> ImageSet:
    """Random grey images of 8 x 8 and three classes."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (n, 1), generator=generator)
    return ImageSet(pixels, labels, (Attribute("class", ("a", "b", "c")),))


def trainer(
    config: TrainConfig,
    folder: Path,
    kind: type[Trainer] = Trainer,
    *,
    data: ImageSet | None = None,
    tell: Callable[[str], object] = print,
    **arguments: Any,
) -> Any:
    """A trainer of these options, by default on `images`."""
    stream = BatchStream(data or images(), config.data, config.seed, "cpu")
    return kind(config, stream, folder, tell, **arguments)


def fit(run: Trainer, until: int | None = None, **callbacks: Any) -> None:
    """Train to the end, or to a step."""
    Loop(run, Callbacks(**callbacks)).run(until)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of the log without what the clock says."""
    timing = {"hours", "seconds_per_step", "images_per_second"}
    lines = [json.loads(row) for row in Log(folder).rows()]
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def tensors(state: Any, path: str = "") -> dict[str, Tensor]:
    """Copies of all tensors of a state, by their path in it."""
    if isinstance(state, Tensor):
        return {path: state.clone()}
    items = state.items() if isinstance(state, dict) else ()
    items = enumerate(state) if isinstance(state, list) else items
    return {k: v for key, item in items for k, v in tensors(item, f"{path}.{key}").items()}


def differing(a: Any, b: Any) -> list[str]:
    """The tensors that are not the same to the bit in two states of the same run."""
    one, other = tensors(a), tensors(b)
    assert one and one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def write_data(folder: Path) -> str:
    """``data.npz``: 16 random images of 8 x 8 and three classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8), dtype=np.uint8)
    labels = np.arange(16, dtype=np.uint8) % 3
    np.savez(folder / "data.npz", train_images=pixels, train_labels=labels)
    return str(folder / "data.npz")


def options(*assignments: str) -> list[str]:
    """Options of `cdrl-train`, or of a benchmark, which make the small presets tiny."""
    networks = {"ebm": energy(), "initializer": initializer()}
    small = [f"{role}={json.dumps(network)}" for role, network in networks.items()]
    small += ["phases.0.batch_size=4", "cooperative.batch_size=4"]
    small += ["schedule.num_levels=2", "sampler.langevin_steps=1"]
    return [part for text in (*small, *assignments) for part in ("--set", text)]


TINY = options(
    *("warm_start.steps=3", "cooperative.steps=2"),
    *("log_every=1", "checkpoint_every=2", "sample_every=100"),
)
