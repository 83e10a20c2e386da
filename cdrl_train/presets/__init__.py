"""Named runs: one JSON file each, and variations of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cdrl_infer.errors import ConfigError, did_you_mean, listing
from cdrl_train.config import TrainConfig
from cdrl_train.presets.variations import VARIATIONS

FOLDER = Path(__file__).parent
FINE_TUNING = ("fine-tune", "manifold")  # for a trained model, whose networks they take
NAMES = tuple(sorted(file.stem for file in FOLDER.glob("*.json")))


def preset(name: str) -> TrainConfig:
    """The preset of that name, as ``"cifar10"``, or a variation, as ``"cifar10+no-shared-noise"``.

    Raises:
        ConfigError: no such preset or variation, or nothing in the preset to vary.
    """
    first, *variations = name.split("+")
    if first not in NAMES:
        raise ConfigError(
            f"unknown preset {first!r:.60}, expected one of {listing(NAMES)}"
            f"{did_you_mean(first, NAMES)}; --config takes a file of your own options"
        )
    config = TrainConfig.read(FOLDER / f"{first}.json")
    for variation in variations:
        if variation not in VARIATIONS:
            raise ConfigError(
                f"unknown variation {variation!r:.60} of {first}, expected one of "
                f"{listing(VARIATIONS)}{did_you_mean(variation, VARIATIONS)}"
            )
        config = VARIATIONS[variation](config)
    return dataclasses.replace(config, name=name)


def is_preset(name: str) -> bool:
    """Whether `preset` knows the name."""
    try:
        preset(name)
    except ConfigError:
        return False
    return True
