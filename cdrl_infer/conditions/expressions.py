"""Concepts and expressions of them: ``sneaker & ~sandal``, ``red^1.5 & (dress | coat)``.

An expression stands for a density relative to the unconditional one,
``r(y) = log p(y|expression) - log p(y) + const`` in nats, made of ``r_c(y) = E(y|∅) - E(y|c)`` of single
concepts c (Du et al. 2020, "Compositional visual generation with energy based models"; Liu et al. 2022;
Du et al. 2023, "Reduce, reuse, recycle"):

============  ==========================  ===========================================
``a & b``     ``r_a + r_b``               product of experts
``a | b``     ``log(½ e^r_a + ½ e^r_b)``  mixture
``~a``        ``-r_a``                    away from a
``a^w``       ``w r_a``                   w > 1 sharper, 0 < w < 1 softer
============  ==========================  ===========================================

NOT of a whole expression is moved inwards by De Morgan's rules until it stands before single concepts.
The operators bind in the order ``^``, ``~``, ``&``, ``|``; brackets group as usual.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cdrl_infer.errors import InputError, listing

MAX_BRANCHES = 64  # the most alternatives that an expression may have
OPERATORS = frozenset("&|~()^*\"'")  # a name with one of these is written in quotes


class Branch(NamedTuple):
    """One alternative of an expression."""

    weights: dict[Concept, float]  # the sum of each concept's weights; those of NOT are negative
    share: float  # of the mixture; the parts of an OR have equal shares


class Expression(ABC):
    """An expression of concepts; ``&``, ``|``, ``~`` and, for a weight, ``**`` make new ones."""

    def __and__(self, other: Expression) -> Expression:
        return And((*_parts(And, self), *_parts(And, other)))

    def __or__(self, other: Expression) -> Expression:
        return Or((*_parts(Or, self), *_parts(Or, other)))

    def __invert__(self) -> Expression:
        return self.negated()

    def __pow__(self, weight: float) -> Expression:
        return Weighted(self, weight)

    @abstractmethod
    def negated(self) -> Expression:
        """NOT of the expression."""

    @abstractmethod
    def log_ratio(self, ratios: Mapping[Concept, Tensor]) -> Tensor:
        """``r`` in nats, (B,), from the (B,) of each concept."""

    @abstractmethod
    def branches(self) -> list[Branch]:
        """The alternatives, with every OR multiplied out.

        Raises:
            InputError: more than `MAX_BRANCHES` of them.
        """

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The concepts of the expression, each once, in order of appearance."""
        return tuple(dict.fromkeys(c for branch in self.branches() for c in branch.weights))


@dataclass(frozen=True)
class Concept(Expression):
    """One value of one attribute.

    Args:
        name: the name of the value; ``attribute:value`` if several attributes have it.
        attribute: the attribute's index, from 0.
        label: the network's label, from 1.
    """

    name: str
    attribute: int
    label: int

    def negated(self) -> Expression:
        """``-r``."""
        return Weighted(self, -1.0)

    def log_ratio(self, ratios: Mapping[Concept, Tensor]) -> Tensor:
        """The concept's own."""
        return ratios[self]

    def branches(self) -> list[Branch]:
        """Itself."""
        return [Branch({self: 1.0}, 1.0)]

    def __str__(self) -> str:
        if not OPERATORS.intersection(self.name):
            return self.name
        return f"'{self.name}'" if '"' in self.name else f'"{self.name}"'


@dataclass(frozen=True)
class Weighted(Expression):
    """``w r``; only a single concept may have a negative weight.

    Raises:
        InputError: a weight that is zero or not finite, or a negative one of more than a concept.
    """

    inner: Expression
    weight: float

    def __post_init__(self) -> None:
        try:
            good = math.isfinite(self.weight) and self.weight != 0
        except TypeError:
            good = False
        if not good:
            raise InputError(f"a weight must be a finite number other than 0, got {self.weight!r}")
        if self.weight < 0 and not isinstance(self.inner, Concept):
            raise InputError(
                f"the weight of '{self.inner}' must be positive, got {self.weight:g}; write ~ for NOT"
            )

    def negated(self) -> Expression:
        """The weight is kept: ``~(a^w) = (~a)^w``."""
        if isinstance(self.inner, Concept):
            return self.inner if self.weight == -1 else Weighted(self.inner, -self.weight)
        return Weighted(self.inner.negated(), self.weight)

    def log_ratio(self, ratios: Mapping[Concept, Tensor]) -> Tensor:
        """``w r``."""
        return self.weight * self.inner.log_ratio(ratios)

    def branches(self) -> list[Branch]:
        """The alternatives of the inner expression, weighted."""
        return [
            Branch({c: self.weight * w for c, w in branch.weights.items()}, branch.share)
            for branch in self.inner.branches()
        ]

    def __str__(self) -> str:
        sign = "~" if self.weight < 0 else ""
        power = "" if abs(self.weight) == 1 else f"^{float(abs(self.weight))!r}".removesuffix(".0")
        inner = str(self.inner) if isinstance(self.inner, Concept) else f"({self.inner})"
        return f"{sign}{inner}{power}"


@dataclass(frozen=True)
class And(Expression):
    """``Σ r``: all of the parts."""

    parts: tuple[Expression, ...]

    def negated(self) -> Expression:
        """NOT of one part at least."""
        return Or(tuple(part.negated() for part in self.parts))

    def log_ratio(self, ratios: Mapping[Concept, Tensor]) -> Tensor:
        """The sum."""
        return torch.stack([part.log_ratio(ratios) for part in self.parts]).sum(0)

    def branches(self) -> list[Branch]:
        """Every combination of one alternative of each part."""
        parts = [part.branches() for part in self.parts]
        _check_branches(math.prod(map(len, parts)))
        joined: list[Branch] = []
        for choice in itertools.product(*parts):
            total: dict[Concept, float] = {}
            for concept, weight in (item for branch in choice for item in branch.weights.items()):
                total[concept] = total.get(concept, 0.0) + weight
            joined.append(Branch(total, math.prod(branch.share for branch in choice)))
        return joined

    def __str__(self) -> str:
        return " & ".join(f"({p})" if isinstance(p, Or) else str(p) for p in self.parts)


@dataclass(frozen=True)
class Or(Expression):
    """``log mean exp r``: one of the parts; their normalisers are assumed to be equal."""

    parts: tuple[Expression, ...]

    def negated(self) -> Expression:
        """NOT of every part."""
        return And(tuple(part.negated() for part in self.parts))

    def log_ratio(self, ratios: Mapping[Concept, Tensor]) -> Tensor:
        """The logarithm of the mean density."""
        each = torch.stack([part.log_ratio(ratios) for part in self.parts])
        return each.logsumexp(0) - math.log(len(self.parts))

    def branches(self) -> list[Branch]:
        """The alternatives of all parts."""
        found = [branch for part in self.parts for branch in part.branches()]
        _check_branches(len(found))
        return [Branch(b.weights, b.share / len(self.parts)) for b in found]

    def __str__(self) -> str:
        return " | ".join(str(part) for part in self.parts)


def _parts(kind: type[And] | type[Or], value: object) -> tuple[Expression, ...]:
    """The parts that a value adds to an AND or OR, so that ``a | b | c`` has three equal parts."""
    if not isinstance(value, Expression):
        raise InputError(f"expected a concept or an expression of concepts, got {value!r}")
    return value.parts if isinstance(value, kind) else (value,)


def _check_branches(count: int) -> None:
    if count > MAX_BRANCHES:
        raise InputError(
            f"an expression may have at most {MAX_BRANCHES} alternatives, with every OR multiplied out, "
            f"got {count}"
        )


def check_says_something(expression: Expression) -> None:
    """Raise `InputError` if concepts cancel out, as in ``red & ~red``."""
    for branch in expression.branches():
        gone = [concept.name for concept, weight in branch.weights.items() if abs(weight) < 1e-9]
        if gone:
            raise InputError(
                f"the expression cancels out: {listing(gone)} is asked and denied with equal weight "
                f"in '{expression}'; leave it out or change a weight"
            )
