"""What images are asked to show -> energies and proposals: labels, guidance, composed concepts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl_infer.conditions.expressions import Expression, check_says_something
from cdrl_infer.energies.base import Energy
from cdrl_infer.energies.composed import ComposedEnergy
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.model import CDRLModel
from cdrl_infer.proposals import Proposal, make_proposal
from cdrl_infer.random import RandomSource


class Labelled:
    """``p(y | c)``, one set of labels per image.

    Args:
        labels: (N, A) integers, 0 = not given; None for an unconditional model.
    """

    def __init__(self, labels: Tensor | None) -> None:
        self.labels = labels

    def bind(self, model: CDRLModel, part: slice, random: RandomSource) -> tuple[Energy, Proposal]:
        """Energy and proposal of some of the images, on the networks' device."""
        chosen = None if self.labels is None else self.labels[part].to(_device(model))
        return NeuralEnergy(model.ebm, chosen), make_proposal(model.initializer, chosen)


class Guided(Labelled):
    """Classifier-free guidance: ``r = g r_c`` in the words of `ComposedEnergy`.

    Args:
        labels: (N, A) integers, 0 = not given.
        scale: g; 1 is plain `Labelled`, 0 unconditional.
    """

    def __init__(self, labels: Tensor, scale: float) -> None:
        super().__init__(labels)
        self.asked = labels
        self.scale = scale

    def bind(self, model: CDRLModel, part: slice, random: RandomSource) -> tuple[Energy, Proposal]:
        """As `Labelled.bind`."""
        chosen = self.asked[part].to(_device(model))
        labels = torch.stack([torch.zeros_like(chosen), chosen])
        weights = torch.full((1, len(chosen)), self.scale, device=chosen.device)
        return (
            ComposedEnergy(model.ebm, labels, lambda r: self.scale * r[0]),
            make_proposal(model.initializer, labels, weights),
        )


@dataclass(frozen=True)
class Composed:
    """An expression of concepts, the same for all images.

    The energy is the expression's. A proposal cannot be a mixture, so each image's is that of one
    alternative, drawn once with the alternatives' shares; the energy may still take it to another.

    Raises:
        InputError: an expression that cancels out, or has too many alternatives.
    """

    expression: Expression

    def __post_init__(self) -> None:
        check_says_something(self.expression)

    def bind(self, model: CDRLModel, part: slice, random: RandomSource) -> tuple[Energy, Proposal]:
        """As `Labelled.bind`; draws one uniform number per image if there are alternatives."""
        device = _device(model)
        concepts, branches = self.expression.concepts, self.expression.branches()
        rows = torch.zeros(1 + len(concepts), 1, len(model.labels), dtype=torch.int64)
        for k, concept in enumerate(concepts):
            rows[1 + k, 0, concept.attribute] = concept.label
        count = part.stop - part.start
        labels = rows.expand(-1, count, -1).to(device)
        table = torch.tensor([[b.weights.get(c, 0.0) for b in branches] for c in concepts])
        if len(branches) > 1:
            ends = torch.tensor([b.share for b in branches]).cumsum(0)[:-1].to(device)
            branch = torch.bucketize(random.uniform(), ends, right=True)
        else:
            branch = torch.zeros(count, dtype=torch.int64, device=device)

        def log_ratio(ratios: Tensor) -> Tensor:
            return self.expression.log_ratio(dict(zip(concepts, ratios, strict=True)))

        return (
            ComposedEnergy(model.ebm, labels, log_ratio),
            make_proposal(model.initializer, labels, table.to(device)[:, branch]),
        )


Conditioning = Labelled | Composed


def _device(model: CDRLModel) -> torch.device:
    parameter: Tensor = next(model.ebm.parameters())
    return parameter.device
