"""Convert names and indices of class labels to the network's integers, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from cdrl_infer.arguments import as_list, integer
from cdrl_infer.errors import InputError, did_you_mean, listing, quoted
from cdrl_infer.model import Attribute

Label = str | SupportsIndex | None
ImageLabel = Label | Sequence[Label]
Names = list[str | None] | list[tuple[str | None, ...]]


def read_labels(asked: Any, attributes: Sequence[Attribute], count: int) -> Tensor | None:
    """The labels of ``count`` images as integers for a network.

    Args:
        asked: a list with one entry per image or one for all images, or one entry for all images. An
            entry is a name, an index (0 = the first value) or None (not given). For several attributes,
            an entry is a sequence of these.
        attributes: the attributes of the model.
        count: N.

    Returns:
        (N, A) integers, 0 = not given; None if there are no attributes.

    Raises:
        InputError: the model does not know a label, or the number of labels is wrong.
    """
    rows = asked if isinstance(asked, list) else [asked]
    rows = rows * count if len(rows) == 1 else rows
    if len(rows) != count:
        raise InputError(f"expected {count} labels, one per image or one for all, got {len(rows)}")
    if not attributes:
        if any(row is not None for row in rows):
            raise InputError("the model is unconditional, got class_labels; leave class_labels out")
        return None
    table = torch.zeros(count, len(attributes), dtype=torch.int64)
    for k, row in enumerate(rows):
        given = as_list(row)
        if given is None:
            continue
        entries = given if isinstance(given, list) else [given]
        if len(entries) != len(attributes):
            several = len(attributes) > 1
            mend = f"; write a tuple for each image, such as {example(attributes)}" * several
            raise InputError(
                f"expected {len(attributes)} labels for image {k} "
                f"({listing(a.name for a in attributes)}), got {quoted(row)}{mend}"
            )
        for j, (attribute, label) in enumerate(zip(attributes, entries, strict=True)):
            table[k, j] = label_index(attribute, label)
    return table


def classes_in_turn(attributes: Sequence[Attribute], count: int) -> list[Label] | None:
    """The labels of images for which none were asked for.

    Returns:
        For one attribute, its values in turn; for several or none, None: nothing is given.
    """
    if len(attributes) != 1:
        return None
    return [k % len(attributes[0].values) for k in range(count)]


def example(attributes: Sequence[Attribute]) -> tuple[str, ...]:
    """A label for one image."""
    return tuple(attribute.values[0] for attribute in attributes)


def named(name: str, values: Sequence[str]) -> list[int]:
    """The indices of the values with a name. An exact match goes before matches without case."""
    if name in values:
        return [values.index(name)]
    return [k for k, value in enumerate(values) if value.lower() == name.lower()]


def label_index(attribute: Attribute, label: Any) -> int:
    """The network's integer for a name or an index of an attribute's value; 0 for None."""
    if label is None:
        return 0
    if isinstance(label, str):
        found = named(label, attribute.values)
        if len(found) == 1:
            return 1 + found[0]
        if found:
            options = listing(attribute.values[k] for k in found)
            raise InputError(f"{label!r} could be {options}; write one of these")
        raise InputError(
            f"unknown {attribute.name} {label!r}, expected one of {listing(attribute.values)}"
            f"{did_you_mean(label, attribute.values)}"
        )
    index = integer("class_labels", label)
    if not 0 <= index < len(attribute.values):
        raise InputError(
            f"a {attribute.name} index must lie in 0 … {len(attribute.values) - 1}, got {index}"
        )
    return 1 + index


def label_names(labels: Tensor, attributes: Sequence[Attribute]) -> Names:
    """The names of (N, A) labels: N names, or N tuples of names if there are several attributes."""
    names = [(None, *attribute.values) for attribute in attributes]
    rows = [tuple(names[j][i] for j, i in enumerate(row)) for row in labels.tolist()]
    return [row[0] for row in rows] if len(names) == 1 else rows
