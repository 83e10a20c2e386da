"""A condition says what the images shall show, and gives the energy and the proposal for that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cdrl_infer.arguments import number
from cdrl_infer.conditions.expressions import Concept, Expression, check_says_something
from cdrl_infer.conditions.labels import classes_in_turn, read_labels
from cdrl_infer.conditions.parser import parse
from cdrl_infer.energies.base import Energy
from cdrl_infer.energies.composed import ComposedEnergy
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import InputError, quoted
from cdrl_infer.model import Attribute, CDRLModel
from cdrl_infer.proposals import Proposal, proposal_of
from cdrl_infer.random import RandomSource


class Condition(ABC):
    """What N images shall show.

    Attributes:
        labels: (N, A) integers, 0 = not given; None if there are none.
        expression: the expression of concepts; None if there is none.
    """

    labels: Tensor | None = None
    expression: Expression | None = None

    @abstractmethod
    def bind(self, model: CDRLModel, part: slice, random: RandomSource) -> tuple[Energy, Proposal]:
        """The energy and the proposal for some of the images, on the networks' device.

        Args:
            model: has the networks.
            part: selects these images among the N.
            random: one stream per image of the part.
        """


class Labelled(Condition):
    """``p(y | c)``, one set of labels per image.

    Args:
        labels: (N, A) integers, 0 = not given; None for an unconditional model.
    """

    def __init__(self, labels: Tensor | None) -> None:
        self.labels = labels

    def bind(self, model: CDRLModel, part: slice, random: RandomSource) -> tuple[Energy, Proposal]:
        """The energy and the proposal given the labels."""
        chosen = None if self.labels is None else self.labels[part].to(_device(model))
        return NeuralEnergy(model.ebm, chosen), proposal_of(model, chosen)


class Guided(Labelled):
    """Classifier-free guidance: a `ComposedEnergy` with ``r = g r_c``.

    Args:
        labels: (N, A) integers, 0 = not given.
        scale: g; 1 gives the same as `Labelled`, 0 ignores the labels.
    """

    def __init__(self, labels: Tensor, scale: float) -> None:
        super().__init__(labels)
        self.asked = labels
        self.scale = scale

    def bind(self, model: CDRLModel, part: slice, random: RandomSource) -> tuple[Energy, Proposal]:
        """The energy and the proposal, with the effect of the labels multiplied by g."""
        chosen = self.asked[part].to(_device(model))
        labels = torch.stack([torch.zeros_like(chosen), chosen])
        weights = torch.full(
            (1, len(chosen)), self.scale, dtype=torch.float32, device=chosen.device
        )
        return (
            ComposedEnergy(model.ebm, labels, lambda r: self.scale * r[0]),
            proposal_of(model, labels, weights),
        )


class Composed(Condition):
    """An expression of concepts, the same for all images.

    A proposal cannot be a mixture. So each image draws one alternative at random, by the shares, and all
    its proposals follow that alternative. The energy may still lead the image to another alternative.

    Args:
        expression: the expression.
        offsets: (k, T) float32, see `ComposedEnergy`, for the concepts in their order; None: 0.

    Raises:
        InputError: the expression cancels out or has too many alternatives.
    """

    expression: Expression

    def __init__(self, expression: Expression, offsets: Tensor | None = None) -> None:
        check_says_something(expression)
        self.expression = expression
        self.offsets = offsets

    def bind(self, model: CDRLModel, part: slice, random: RandomSource) -> tuple[Energy, Proposal]:
        """The energy and the proposal; draws one uniform number per image if there are alternatives."""
        device = _device(model)
        concepts, branches = self.expression.concepts, self.expression.branches()
        rows = torch.zeros(1 + len(concepts), 1, len(model.labels), dtype=torch.int64)
        for k, concept in enumerate(concepts):
            rows[1 + k, 0, concept.attribute] = concept.label
        count = part.stop - part.start
        labels = rows.expand(-1, count, -1).to(device)
        table = torch.tensor(
            [[b.weights.get(c, 0.0) for b in branches] for c in concepts], dtype=torch.float32
        )
        if len(branches) > 1:
            shares = torch.tensor([b.share for b in branches], dtype=torch.float32)
            ends = shares.cumsum(0)[:-1].to(device)
            branch = torch.bucketize(random.uniform(), ends, right=True)
        else:
            branch = torch.zeros(count, dtype=torch.int64, device=device)

        def log_ratio(ratios: Tensor) -> Tensor:
            return self.expression.log_ratio(dict(zip(concepts, ratios, strict=True)))

        return (
            ComposedEnergy(
                model.ebm,
                labels,
                log_ratio,
                None if self.offsets is None else self.offsets.to(device),
            ),
            proposal_of(model, labels, table.to(device)[:, branch]),
        )


def on_labels(
    asked: Any,
    guidance_scale: Any,
    attributes: Sequence[Attribute],
    count: int,
    in_turn: bool = True,
) -> Labelled:
    """The condition that class labels and a guidance scale ask for.

    Args:
        asked: see `cdrl_infer.conditions.labels.read_labels`; None: none were asked for.
        guidance_scale: g.
        attributes: the attributes of the model.
        count: N.
        in_turn: where no labels were asked for, take `classes_in_turn`; else no labels.

    Raises:
        InputError: the model does not know a label, or there is guidance without labels.
    """
    scale = number("guidance_scale", guidance_scale)
    if asked is None and in_turn:
        asked = classes_in_turn(attributes, count)
    labels = read_labels(asked, attributes, count)
    if scale == 1:
        return Labelled(labels)
    if labels is None or not bool(labels.any()):
        raise InputError(
            f"guidance_scale {scale:g} needs class_labels; give class_labels, or set guidance_scale=1"
        )
    return Guided(labels, scale)


def on_concepts(asked: Any, guidance_scale: Any, concept: Callable[[str], Concept]) -> Composed:
    """The condition that an expression and a guidance scale ask for.

    Args:
        asked: a text or an `Expression`.
        guidance_scale: the weight of the whole expression, positive.
        concept: finds the model's concept by its name, or raises `InputError`.

    Raises:
        InputError: the expression cannot be read, belongs to another model, or cancels out.
    """
    scale = number("guidance_scale", guidance_scale)
    if scale <= 0:
        raise InputError(
            f"guidance_scale must be positive for an expression, got {scale:g}; write ~ for NOT"
        )
    if isinstance(asked, str):
        asked = parse(asked, concept)
    elif not isinstance(asked, Expression):
        raise InputError(
            f"expected a text or an expression of pipe.concept(...), got {quoted(asked)}"
        )
    for found in asked.concepts:
        if concept(found.name) != found:
            raise InputError(f"the concept {found.name!r} belongs to another model")
    return Composed(asked if scale == 1 else asked**scale)


def _device(model: CDRLModel) -> torch.device:
    parameter: Tensor = next(model.ebm.parameters())
    return parameter.device
