"""The energies of given images and their gradients, batch by batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdrl_infer.arguments import Progress, check_seed, flag, integer, positive, progress_bar
from cdrl_infer.conditions.labels import read_labels
from cdrl_infer.device import default_switches
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import InputError, NumericalError, listing
from cdrl_infer.images import as_tensor, layout, read_images
from cdrl_infer.model import CDRLModel
from cdrl_infer.scoring.features import draw_noise


@default_switches()
@torch.no_grad()
def evaluate(
    model: CDRLModel,
    images: Any,
    labels: Any,
    *,
    level: Any = 1,
    noised: bool = False,
    seed: Any = 0,
    resize: bool = False,
    grey: bool = False,
    batch_size: int = 64,
    progress: Progress = None,
) -> tuple[Tensor, Tensor]:
    """``E(y | c)`` and its gradient in the images as they were given.

    Clean images v in [0, 1] become ``y = m (α (2v - 1) + σ̄ ε)`` with ε of the seed, the same for all
    images. Noised images x become ``y = m x``. So the gradients are ``2 α m ∇_y E`` and ``m ∇_y E``.

    Args:
        model: the networks, on any device.
        images: see `CDRLPipeline.energy`, like all other arguments.
        labels: one for each image or one for all.

    Returns:
        (N,) nats and (N, C, H, W) nats per unit of the given values, float32, on the CPU.

    Raises:
        InputError: an argument is not valid.
        NumericalError: an energy is not finite.
    """
    t, last = integer("level", level), model.schedule.num_levels
    if not 1 <= t <= last:
        raise InputError(f"level must lie in 1 … {last}, got {t}")
    batch_size, shape = positive("batch_size", batch_size), model.image.shape
    if flag("noised", noised):
        given = _read_noised(images, shape)
    else:
        given = read_images(images, shape, resize=resize, grey=grey)
    device = model.device
    here = model.schedule.level(t, device)
    noise = draw_noise(model.schedule, shape, check_seed(seed))[t - 1].to(device)
    asked = read_labels(labels, model.labels, len(given))
    energies, gradients = torch.empty(len(given)), torch.empty_like(given)
    with progress_bar(progress, total=len(given), unit="image") as bar:
        for first in range(0, len(given), batch_size):
            part = slice(first, first + batch_size)
            x, slope = given[part].to(device), here.scale
            if not noised:
                x, slope = here.diffused(2 * x - 1, noise), 2 * here.alpha * slope
            own = None if asked is None else asked[part].to(device)
            potential = NeuralEnergy(model.ebm, own).at(here)
            value, gradient = potential.value_and_grad(here.scale * x)
            energies[part], gradients[part] = value.cpu(), (slope * gradient).cpu()
            bar.update(len(x))
    bad = (~energies.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise NumericalError(f"the energy of images {listing(bad)} is not finite; check the model")
    return energies, gradients


def _read_noised(images: Any, shape: tuple[int, int, int]) -> Tensor:
    """(N, C, H, W) float32, finite."""
    if not isinstance(images, (np.ndarray, Tensor)):
        raise InputError(
            f"expected a tensor or an array of noised images, got {type(images).__name__}; "
            "pictures are clean images, leave noised out"
        )
    found = as_tensor(layout(images, shape))
    if not found.is_floating_point() or tuple(found.shape[1:]) != shape or not len(found):
        raise InputError(
            f"expected noised images (N, C, H, W) of {shape} in floats, got shape "
            f"{tuple(images.shape)} in {found.dtype}"
        )
    found = found.float()
    if not bool(found.isfinite().all()):
        raise InputError("expected finite noised images, got NaN or infinity")
    return found.contiguous()
