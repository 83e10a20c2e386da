"""Draw pictures of classes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import partial

from cdrl_infer.conditions.conditions import on_labels
from cdrl_infer.demo.levels import View, views
from cdrl_infer.model import Attribute
from cdrl_infer.pipeline import CDRLPipeline

IN_TURN, NOT_GIVEN = -2, -1  # in place of the index of a value


def class_labels(
    attributes: Sequence[Attribute], chosen: Sequence[int], count: int
) -> list[tuple[int | None, ...]] | None:
    """The labels of ``count`` pictures for `CDRLPipeline`.

    Args:
        attributes: of the model.
        chosen: for each attribute the index of a value, `IN_TURN` (picture k has value k) or
            `NOT_GIVEN`.
        count: N.

    Returns:
        N tuples of indices; None for a model without attributes.
    """
    if not attributes:
        return None
    turns = [range(len(attribute.values)) for attribute in attributes]
    return [
        tuple(
            {IN_TURN: turn[k % len(turn)], NOT_GIVEN: None}.get(choice, choice)
            for choice, turn in zip(chosen, turns, strict=True)
        )
        for k in range(count)
    ]


def draw(
    pipe: CDRLPipeline,
    chosen: Sequence[int],
    stop: threading.Event,
    *,
    num_images: int,
    seed: int | None,
    guidance_scale: float,
    langevin_steps: int,
) -> Iterator[View]:
    """Draw pictures of the classes that were chosen; see `class_labels` and `levels.views`."""
    attributes = pipe.model.labels
    labels = class_labels(attributes, chosen, num_images)
    return views(
        pipe,
        partial(pipe, class_labels=labels, guidance_scale=guidance_scale),
        on_labels(labels, guidance_scale, attributes, num_images),
        stop,
        num_images=num_images,
        seed=seed,
        langevin_steps=langevin_steps,
    )
