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

import functools
import itertools
import math
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from cdrl_infer.errors import InputError, did_you_mean, listing

MAX_BRANCHES = 64  # of an expression's alternatives, written out
MAX_DEPTH = 50  # of brackets and signs within each other
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


TOKEN = re.compile(
    r"\s*(?:(?P<operator>[&|~()])|(?P<power>\^|\*\*)|(?P<quoted>\"[^\"]*\"|'[^']*')"
    r"|(?P<name>[^&|~()^*\"'\s][^&|~()^*\"']*))"
)
NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")


def parse(text: str, concept: Callable[[str], Concept]) -> Expression:
    """Read an expression.

    Names may hold spaces, hyphens and slashes; quotes keep operators in a name from being read as such.

    Args:
        text: such as ``"red^1.5 & (dress | ~coat)"``.
        concept: gives the concept of a name, or raises `InputError`.

    Raises:
        InputError: what is wrong, and at which character (the first is 1).
    """
    return _Parser(text, concept).parse()


class _Parser:
    """Recursive descent: or → and → not → weight → name or bracket."""

    def __init__(self, text: str, concept: Callable[[str], Concept]) -> None:
        self.text = text
        self.concept = concept
        self.position = 0

    def parse(self) -> Expression:
        result = self._or(0)
        if self._peek() is not None:
            self._fail("expected &, | or the end")
        return result

    def _or(self, depth: int) -> Expression:
        parts = [self._and(depth)]
        while self._take("|"):
            parts.append(self._and(depth))
        return functools.reduce(operator.or_, parts)

    def _and(self, depth: int) -> Expression:
        parts = [self._not(depth)]
        while self._take("&"):
            parts.append(self._not(depth))
        return functools.reduce(operator.and_, parts)

    def _not(self, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            self._fail(f"expected no more than {MAX_DEPTH} brackets and signs within each other")
        if self._take("~"):
            return self._not(depth + 1).negated()
        return self._weighted(depth)

    def _weighted(self, depth: int) -> Expression:
        inner = self._atom(depth)
        match = self._peek()
        if match is None or not match["power"]:
            return inner
        self.position = match.end()
        number = NUMBER.match(self.text, self.position)
        if number is None:
            self._fail("expected a number, the weight")
        start = self.position
        self.position = number.end()
        weight = float(number[1])
        if not (math.isfinite(weight) and weight > 0):
            self.position = start
            self._fail("expected a positive, finite weight (~ is NOT)")
        return Weighted(inner, weight)

    def _atom(self, depth: int) -> Expression:
        if self._take("("):
            inner = self._or(depth + 1)
            if not self._take(")"):
                self._fail("expected ) or an operator")
            return inner
        match = self._peek()
        if match is None or not (match["name"] or match["quoted"]):
            self._fail("expected a concept")
        name = match["name"].strip() if match["name"] else match["quoted"][1:-1]
        start = match.start("name") if match["name"] else match.start("quoted")
        try:
            found = self.concept(name)
        except InputError as error:
            raise InputError(f"{error} (at character {start + 1} of {self.text!r})") from None
        self.position = match.end()
        return found

    def _peek(self) -> re.Match[str] | None:
        """The next token; None at the end."""
        if not self.text[self.position :].strip():
            return None
        match = TOKEN.match(self.text, self.position)
        if match is None:
            self._fail("expected a concept or an operator (quotes come in pairs)")
        return match

    def _take(self, operator: str) -> bool:
        match = self._peek()
        if match is None or match["operator"] != operator:
            return False
        self.position = match.end()
        return True

    def _fail(self, expected: str) -> NoReturn:
        rest = self.text[self.position :]
        place = self.position + len(rest) - len(rest.lstrip())
        found = repr(self.text[place]) if place < len(self.text) else "the end"
        raise InputError(f"{expected}, found {found} at character {place + 1} of {self.text!r}")


def find_concept(name: str, attributes: Mapping[str, tuple[str, ...]]) -> Concept:
    """The concept of a value's name, or of ``attribute:value`` where several attributes have it.

    Args:
        name: matched letter by letter first, then without regard to case.
        attributes: of the model: their names and those of their values.

    Raises:
        InputError: no such value, or several.
    """
    where, colon, value = name.partition(":")
    known = [
        Concept(v, k, j + 1)
        for k, values in enumerate(attributes.values())
        for j, v in enumerate(values)
    ]
    names = list(attributes)

    def matching(same: Callable[[str, str], bool]) -> list[Concept]:
        found = [c for c in known if same(c.name, name)]
        if found or not colon:
            return found
        asked = (where.strip(), value.strip())
        return [c for c in known if same(names[c.attribute], asked[0]) and same(c.name, asked[1])]

    found = matching(lambda a, b: a == b) or matching(lambda a, b: a.lower() == b.lower())
    full = {c: f"{names[c.attribute]}:{c.name}" for c in known}
    if len(found) == 1:
        (concept,) = found
        unique = sum(c.name == concept.name for c in known) == 1
        return concept if unique else replace(concept, name=full[concept])
    if found:
        options = listing(full[c] for c in found)
        raise InputError(f"{name!r} could be {options}; write one of these")
    values = list(full.values()) if colon else [c.name for c in known]
    raise InputError(
        f"unknown concept {name!r}, expected one of {listing(values)}{did_you_mean(name, values)}"
    )
