"""Concepts and expressions of them: ``sneaker & ~sandal``, ``red^1.5 & (dress | coat)``.

An expression stands for a log-ratio ``r(y) = log p(y|expression) - log p(y) + const`` in nats. The
log-ratio of a single concept c is ``r_c(y) = E(y|∅) - E(y|c)``. Operators combine them (Du et al. 2020,
"Compositional visual generation with energy based models"; Liu et al. 2022; Du et al. 2023, "Reduce,
reuse, recycle"):

============  ==========================  ===========================================
``a & b``     ``r_a + r_b``               product of experts
``a | b``     ``log(½ e^r_a + ½ e^r_b)``  mixture
``~a``        ``-r_a``                    away from a
``a^w``       ``w r_a``                   w > 1 sharper, 0 < w < 1 softer
============  ==========================  ===========================================

De Morgan's rules move a NOT of a whole expression inwards, to the single concepts. ``^`` binds most
tightly, then ``~``, ``&`` and ``|``; brackets group as usual.
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

from cdrl_infer.arguments import number
from cdrl_infer.errors import InputError, listing, quoted

MAX_BRANCHES = 64  # the most alternatives that an expression may have
OPERATORS = frozenset("&|~()^*\"'")  # a name with one of these is written in quotes


class Branch(NamedTuple):
    """One alternative of an expression."""

    weights: dict[Concept, float]  # the sum of each concept's weights; NOT makes a weight negative
    share: float  # the share of this alternative in the mixture; an OR has parts of equal shares


class Expression(ABC):
    """An expression of concepts. ``&``, ``|``, ``~`` and ``** weight`` make new expressions."""

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
        """``r`` (B,) in nats.

        Args:
            ratios: ``r_c`` (B,) in nats of each concept c.
        """

    @abstractmethod
    def branches(self) -> list[Branch]:
        """The alternatives after expanding every OR.

        Raises:
            InputError: there are more than `MAX_BRANCHES` alternatives.
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
        """The concept with the weight -1."""
        return Weighted(self, -1.0)

    def log_ratio(self, ratios: Mapping[Concept, Tensor]) -> Tensor:
        """``r_c`` of this concept."""
        return ratios[self]

    def branches(self) -> list[Branch]:
        """The concept as the only alternative."""
        return [Branch({self: 1.0}, 1.0)]

    def __str__(self) -> str:
        if not OPERATORS.intersection(self.name):
            return self.name
        return f"'{self.name}'" if '"' in self.name else f'"{self.name}"'


@dataclass(frozen=True)
class Weighted(Expression):
    """An expression with a weight w; only a single concept may have a negative weight.

    Raises:
        InputError: the weight is zero or not finite, or negative for more than a single concept.
    """

    inner: Expression
    weight: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", number("a weight", self.weight))
        if self.weight == 0:
            raise InputError("a weight must be a finite number other than 0, got 0")
        if self.weight < 0 and not isinstance(self.inner, Concept):
            raise InputError(
                f"the weight of '{self.inner}' must be positive, got {self.weight:g}; write ~ for NOT"
            )

    def negated(self) -> Expression:
        """NOT of the inner expression, with the same weight: ``~(a^w) = (~a)^w``."""
        if isinstance(self.inner, Concept):
            return self.inner if self.weight == -1 else Weighted(self.inner, -self.weight)
        return Weighted(self.inner.negated(), self.weight)

    def log_ratio(self, ratios: Mapping[Concept, Tensor]) -> Tensor:
        """``w r`` (B,), with ``r`` of the inner expression."""
        return self.weight * self.inner.log_ratio(ratios)

    def branches(self) -> list[Branch]:
        """The alternatives of the inner expression, with their weights multiplied by w."""
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
    """All parts together: ``r`` is the sum over the parts."""

    parts: tuple[Expression, ...]

    def negated(self) -> Expression:
        """An OR of the negated parts."""
        return Or(tuple(part.negated() for part in self.parts))

    def log_ratio(self, ratios: Mapping[Concept, Tensor]) -> Tensor:
        """The sum over the parts, (B,)."""
        return torch.stack([part.log_ratio(ratios) for part in self.parts]).sum(0)

    def branches(self) -> list[Branch]:
        """All combinations of one alternative from each part."""
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
    """One of the parts: ``r`` is ``log mean exp`` over the parts. It assumes equal normalisers."""

    parts: tuple[Expression, ...]

    def negated(self) -> Expression:
        """An AND of the negated parts."""
        return And(tuple(part.negated() for part in self.parts))

    def log_ratio(self, ratios: Mapping[Concept, Tensor]) -> Tensor:
        """The logarithm of the mean of ``exp r`` over the parts, (B,)."""
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
    """The parts that an operand adds to an AND or OR, so ``a | b | c`` has three equal parts."""
    if not isinstance(value, Expression):
        raise InputError(f"expected a concept or an expression of concepts, got {quoted(value)}")
    return value.parts if isinstance(value, kind) else (value,)


def _check_branches(count: int) -> None:
    if count > MAX_BRANCHES:
        raise InputError(
            f"an expression may have at most {MAX_BRANCHES} alternatives after expanding every OR, "
            f"got {count}"
        )


def check_says_something(expression: Expression) -> None:
    """Raise `InputError` if concepts cancel out, as in ``red & ~red``."""
    for branch in expression.branches():
        gone = [concept.name for concept, weight in branch.weights.items() if abs(weight) < 1e-9]
        if gone:
            raise InputError(
                f"the expression cancels out: '{expression}' asks for and denies {listing(gone)} with "
                "equal weight; leave that out or change a weight"
            )
