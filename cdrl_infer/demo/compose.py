"""Compose concepts: the expression that clicks make, and which of its pairs training never saw."""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterator, Sequence
from functools import partial, reduce
from html import escape

from cdrl_infer.conditions.conditions import on_concepts
from cdrl_infer.conditions.expressions import Concept, Expression
from cdrl_infer.conditions.parser import parse
from cdrl_infer.demo.levels import View, views
from cdrl_infer.demo.pieces import problem
from cdrl_infer.errors import InputError
from cdrl_infer.model import CDRLModel
from cdrl_infer.pipeline import CDRLPipeline

MARK = "★"


def held_out(model: CDRLModel) -> list[tuple[str, ...]]:
    """The combinations of label values that the training data lacked.

    They stand in the model's ``config.json``, as lists of names in ``training.held_out``. Entries of
    another form, or with names that the model does not have, are left out.
    """
    known = {value for attribute in model.labels for value in attribute.values}
    found = model.training.get("held_out", [])
    rows = [row for row in found if isinstance(row, list)] if isinstance(found, list) else []
    return [
        tuple(row) for row in rows if all(isinstance(name, str) and name in known for name in row)
    ]


def written(
    pipe: CDRLPipeline, wanted: Sequence[Sequence[str]], unwanted: Sequence[Sequence[str]]
) -> str:
    """The expression of the concepts that were clicked.

    Args:
        pipe: the model.
        wanted: for each attribute the values to show: one of them.
        unwanted: for each attribute the values to leave out: all of them.

    Returns:
        Such as ``"red & (dress | coat) & ~dark"``; "" if nothing was clicked.
    """

    def concepts(chosen: Sequence[Sequence[str]]) -> list[list[Concept]]:
        return [
            [pipe.concept(f"{attribute.name}:{value}") for value in values]
            for attribute, values in zip(pipe.model.labels, chosen, strict=True)
        ]

    parts: list[Expression] = [
        reduce(operator.or_, values) for values in concepts(wanted) if values
    ]
    parts += [~concept for values in concepts(unwanted) for concept in values]
    return str(reduce(operator.and_, parts)) if parts else ""


def unseen(expression: Expression, pairs: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The pairs that training never saw and that an alternative of the expression asks for."""
    alternatives = [
        {
            concept.name.rpartition(":")[2]
            for concept, weight in branch.weights.items()
            if weight > 0
        }
        for branch in expression.branches()
    ]
    return [pair for pair in pairs if any(set(pair) <= names for names in alternatives)]


def note(pipe: CDRLPipeline, text: str) -> str:
    """One line about an expression: what is wrong with it, or which pairs training never saw."""
    if not text.strip():
        return "<p class='cdrl-status'>Click concepts, or write an expression.</p>"
    try:
        expression = parse(text, pipe.concept)
        pairs = unseen(expression, held_out(pipe.model))
    except InputError as error:
        return problem(error)
    if not pairs:
        return "<p class='cdrl-status'>Training saw pictures of this.</p>" * bool(
            held_out(pipe.model)
        )
    told = ", ".join(" & ".join(pair) for pair in pairs)
    return (
        f"<p class='cdrl-status cdrl-unseen'>{MARK} held out: no training picture shows "
        f"{escape(told)}</p>"
    )


def compose(
    pipe: CDRLPipeline,
    text: str,
    stop: threading.Event,
    *,
    num_images: int,
    seed: int | None,
    guidance_scale: float,
    langevin_steps: int,
    restarts: int,
) -> Iterator[View]:
    """Draw pictures of an expression; see `levels.views`."""
    if not text.strip():
        raise InputError("expected at least one concept, got none; click one")
    return views(
        pipe,
        partial(pipe.compose, text, guidance_scale=guidance_scale),
        on_concepts(text, guidance_scale, pipe.concept),
        stop,
        num_images=num_images,
        seed=seed,
        langevin_steps=langevin_steps,
        restarts=restarts,
    )
