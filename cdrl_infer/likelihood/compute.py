"""The normalisers of a model, for one set of labels or for each class, and the decoders of its levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.likelihood.decoder import Decoder, fit
from cdrl_infer.likelihood.normalisers import Normaliser, Normalisers, refuse_bounds
from cdrl_infer.likelihood.telescope import Effort, normalise
from cdrl_infer.model import CDRLModel
from cdrl_infer.proposals import proposal_of
from cdrl_infer.scoring.weights import weights_digests


def label_sets(model: CDRLModel, per_class: bool) -> list[tuple[int, ...]]:
    """The labels to normalise: none given, and with ``per_class`` each single value of an attribute."""
    none = (0,) * len(model.labels)
    found = [none]
    if per_class:
        for k, attribute in enumerate(model.labels):
            for value in range(1, len(attribute.values) + 1):
                found.append((*none[:k], value, *none[k + 1 :]))
    return found


def compute(
    model: CDRLModel,
    sets: Sequence[tuple[int, ...]],
    data: Callable[[tuple[int, ...]], Tensor | None],
    *,
    name: str,
    seed: int = 0,
    effort: Effort | None = None,
    on_step: Callable[[], object] = lambda: None,
) -> Normalisers:
    """Compute the normalisers of a model; see `cdrl_infer.likelihood.telescope.normalise`.

    The decoders are fitted to the data of the first labels that have some.

    Args:
        model: the networks, in eval mode, on any device.
        sets: the labels, see `label_sets`.
        data: clean images (M, C, H, W) in [-1, 1] with these labels; None for none.
        name: of the data.
        seed: of the noise.
        effort: how much to compute.
        on_step: called 2T times for each set of labels.

    Raises:
        InputError: the package arviz-stats is missing, or the energy is the bound of a VAE.
        NumericalError: a chain or a weight is not finite.
    """
    refuse_bounds(model)
    effort = Effort() if effort is None else effort
    entries: list[Normaliser] = []
    decoders: tuple[Decoder, ...] = ()
    for labels in sets:
        row = torch.tensor([labels], device=model.device) if model.labels else None
        energy, begun = NeuralEnergy(model.ebm, row), data(labels)
        entries.append(
            normalise(
                energy,
                proposal_of(model, row),
                model.schedule,
                model.image.shape,
                torch.Generator(model.device).manual_seed(seed),
                data=begun,
                labels=labels,
                effort=effort,
                on_step=on_step,
            )
        )
        if begun is not None and not decoders:
            some = begun[: effort.points].to(model.device)
            decoders = fit(energy, model.schedule, some, seed, effort.batch_size)
    return Normalisers(
        entries=tuple(entries),
        weights=weights_digests(model),
        schedule=model.schedule.config(),
        data=name,
        seed=seed,
        decoders=decoders,
    )
