"""What a run's options leave to the data: the name, the variance of the pixels, and whether to mirror."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cdrl_infer.model import CDRLModel
from cdrl_train.config import AUTO, TrainConfig
from cdrl_train.data.fit import USUAL, guessed_size
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import data_name, split_source
from cdrl_train.presets import is_preset, preset

SAMPLE = 1_000  # images that are looked at
SYMMETRIC = 0.01  # most of the mean square of x - mirrored(x) that may be its squared mean


def for_data(config: TrainConfig, source: str) -> TrainConfig:
    """The options of a run on these data, without the folders of this machine.

    A preset for other data gets their name: the card of a model must not call it "fashion-mnist" if it
    never saw Fashion-MNIST.
    """
    usual = preset(config.name).data.source if is_preset(config.name) else None
    if source == usual:
        return config
    shown = data_name(source)
    if usual is not None and not (split_source(source)[0] == split_source(usual)[0] != ""):
        name = re.sub(r"[^\w.-]+", "-", shown.removesuffix(".npz")).strip("-.") or "my-images"
        config = replace(config, name=name)
    return replace(config, data=replace(config.data, source=shown))


def sized(
    config: TrainConfig, source: str, model: CDRLModel | None, tell: Callable[[str], object]
) -> TrainConfig:
    """The options with a size for the pictures of a folder that are large or of several sizes.

    Args:
        config: the options.
        source: the data.
        model: the model that the run starts with, whose size such pictures get; None: `USUAL`.
        tell: called with what was decided.
    """
    if config.data.image_size is not None:
        return config
    usual = (model.image.height, model.image.width) if model else USUAL
    size, found = guessed_size(source, usual)
    if size is not None:
        done = {"crop": "cropped", "pad": "padded"}[config.data.resize]
        height, width = size
        tell(
            f"{found} are {done} and scaled to {height} x {width}; --image-size and --resize change that"
        )
    return replace(config, data=replace(config.data, image_size=size))


def settled(config: TrainConfig, data: ImageSet, tell: Callable[[str], object]) -> TrainConfig:
    """The options with what they leave to the data; of a set without images, with stand-ins.

    Args:
        config: the options.
        data: the images.
        tell: called with what was decided.
    """
    x = data.scaled(slice(None, None, max(1, len(data) // SAMPLE)))
    if config.ebm.get("data_variance") == AUTO:
        variance = round(float(x.square().mean()), 3) if len(x) else 0.5
        config = replace(config, ebm={**config.ebm, "data_variance": max(variance, 1e-3)})
        tell(f"ebm.data_variance is {variance:g}, the mean square of the pixels in [-1, 1]")
    if config.data.flip is None:
        # If mirrored images were as likely, the mean of x - mirrored(x) would be 0 up to 1/N.
        difference = x - x.flip(-1)
        spread = difference.square().mean() + 1e-12
        share = float(difference.mean(0).square().mean() / spread) if len(x) else 1.0
        flip = share < max(SYMMETRIC, 3 / max(1, len(x)))
        config = replace(config, data=replace(config.data, flip=flip))
        so = "is symmetric, so images are" if flip else "is not symmetric, so images are not"
        other = str(not flip).lower()
        tell(f"the mean image {so} mirrored at random; --set data.flip={other} changes that")
    return config


def absolute(source: str) -> str:
    """The same data or model, also from another folder."""
    name, rest = split_source(source)
    path = Path(rest)
    return ":".join(filter(None, [name, str(path.absolute()) if rest and path.exists() else rest]))
