"""Concepts and what is said with them: ``sneaker & ~sandal``, ``red^1.5 & (dress | coat)``.

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

NOT of a whole expression is moved inwards by De Morgan's rules, so that it stands before concepts alone.
In order of binding: ``^``, ``~``, ``&``, ``|``; with brackets as usual.
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

MAX_BRANCHES = 64  # of an expression's alternatives, written out
OPERATORS = frozenset("&|~()^*\"'")  # what a name holds in quotes alone


class Branch(NamedTuple):
    """One way for an expression to come true."""

    weights: dict[Concept, float]  # the sum for each concept; NOT counts negative
    share: float  # of the mixture, where the parts of an OR share equally


class Expression(ABC):
    """Something said with concepts; joined by ``&``, ``|``, ``~`` and, for a weight, ``**``."""

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
        """What it denies."""

    @abstractmethod
    def log_ratio(self, ratios: Mapping[Concept, Tensor]) -> Tensor:
        """``r`` in nats from that of each concept, (B,) each."""

    @abstractmethod
    def branches(self) -> list[Branch]:
        """The alternatives, OR multiplied out.

        Raises:
            InputError: there are more than `MAX_BRANCHES`.
        """

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The concepts in it, each once, in order of appearance."""
        return tuple(dict.fromkeys(c for branch in self.branches() for c in branch.weights))


@dataclass(frozen=True)
class Concept(Expression):
    """One value of one attribute.

    Args:
        name: of the value; ``attribute:value`` where several attributes have it.
        attribute: which attribute, from 0.
        label: the network's label, from 1.
    """

    name: str
    attribute: int
    label: int

    def negated(self) -> Expression:
        """``-r``."""
        return Weighted(self, -1.0)

    def log_ratio(self, ratios: Mapping[Concept, Tensor]) -> Tensor:
        """As given."""
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
    """``w r``; a negative weight stands before single concepts alone.

    Raises:
        InputError: a weight that is zero, not finite, or negative before more than a concept.
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
        """The weight of what is denied is kept: ``~(a^w) = (~a)^w``."""
        if isinstance(self.inner, Concept):
            return self.inner if self.weight == -1 else Weighted(self.inner, -self.weight)
        return Weighted(self.inner.negated(), self.weight)

    def log_ratio(self, ratios: Mapping[Concept, Tensor]) -> Tensor:
        """``w r``."""
        return self.weight * self.inner.log_ratio(ratios)

    def branches(self) -> list[Branch]:
        """Those within, weighted."""
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
    """``Σ r``: all of it."""

    parts: tuple[Expression, ...]

    def negated(self) -> Expression:
        """Some of it is not so."""
        return Or(tuple(part.negated() for part in self.parts))

    def log_ratio(self, ratios: Mapping[Concept, Tensor]) -> Tensor:
        """The sum."""
        return torch.stack([part.log_ratio(ratios) for part in self.parts]).sum(0)

    def branches(self) -> list[Branch]:
        """One of each part, in every combination."""
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
    """``log mean exp r``: one or another; the parts' normalisers are taken to be equal."""

    parts: tuple[Expression, ...]

    def negated(self) -> Expression:
        """None of it."""
        return And(tuple(part.negated() for part in self.parts))

    def log_ratio(self, ratios: Mapping[Concept, Tensor]) -> Tensor:
        """The logarithm of the mean density."""
        each = torch.stack([part.log_ratio(ratios) for part in self.parts])
        return each.logsumexp(0) - math.log(len(self.parts))

    def branches(self) -> list[Branch]:
        """Those of all parts."""
        found = [branch for part in self.parts for branch in part.branches()]
        _check_branches(len(found))
        return [Branch(b.weights, b.share / len(self.parts)) for b in found]

    def __str__(self) -> str:
        return " | ".join(str(part) for part in self.parts)


def _parts(kind: type[And] | type[Or], value: object) -> tuple[Expression, ...]:
    """What a value adds to an expression of that kind: ``a | b | c`` has three equal parts."""
    if not isinstance(value, Expression):
        raise InputError(f"expected a concept or an expression of concepts, got {value!r}")
    return value.parts if isinstance(value, kind) else (value,)


def _check_branches(count: int) -> None:
    if count > MAX_BRANCHES:
        raise InputError(
            f"an expression may have {MAX_BRANCHES} alternatives, OR multiplied out, got {count}"
        )


def check_says_something(expression: Expression) -> None:
    """Raise `InputError` where concepts cancel out, as in ``red & ~red``."""
    for branch in expression.branches():
        gone = [concept.name for concept, weight in branch.weights.items() if abs(weight) < 1e-9]
        if gone:
            raise InputError(
                f"the expression cancels out: {listing(gone)} is asked and denied with equal weight "
                f"in '{expression}'; leave it out or change a weight"
            )
