"""The sizes and costs of the presets, counted once."""

from __future__ import annotations

from typing import NamedTuple


class Counted(NamedTuple):
    """What `cdrl_train.cost.count` says of a preset on its data; counting all takes a minute or more."""

    values: float  # of both networks
    flops: float  # of the whole run


COUNTED = {
    "celeba64": Counted(42.6e6, 1.44e20),
    "cifar10": Counted(38.6e6, 5.24e19),
    "cifar10-compact": Counted(11.1e6, 2.88e16),
    "cifar10-cond": Counted(38.6e6, 5.24e19),
    "cifar10-large": Counted(154e6, 2.10e20),
    "cifar10-small": Counted(2.49e6, 7.02e15),
    "coloured-fashion-mnist": Counted(2.47e6, 3.25e15),
    "drl": Counted(34.8e6, 9.45e19),
    "fashion-mnist": Counted(1.57e6, 1.88e15),
    "imagenet32-cond": Counted(38.5e6, 1.04e20),
    "mnist": Counted(1.57e6, 7.25e14),
    "mpdr-mnist": Counted(0.889e6, 8.06e13),
    "mpdr-r-mnist": Counted(1.07e6, 1.658e14),
    "snl-2d": Counted(0.0285e6, 3.97e11),
    "snl-regression": Counted(0.0562e6, 3.54e11),
    "snl-vae-mnist": Counted(0.425e6, 2.11e12),
    "toy-2d": Counted(0.0489e6, 7.33e11),
}
