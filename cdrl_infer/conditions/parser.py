"""Read expressions from text, such as ``red^1.5 & (dress | ~coat)``; see `conditions.expressions`."""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NoReturn

from cdrl_infer.conditions.expressions import Concept, Expression, Weighted
from cdrl_infer.errors import InputError, did_you_mean, listing

MAX_DEPTH = 50  # nested brackets and signs
TOKEN = re.compile(
    r"\s*(?:(?P<operator>[&|~()])|(?P<power>\^|\*\*)|(?P<quoted>\"[^\"]*\"|'[^']*')"
    r"|(?P<name>[^&|~()^*\"'\s][^&|~()^*\"']*))"
)
NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")


def parse(text: str, concept: Callable[[str], Concept]) -> Expression:
    """Read an expression.

    Names may contain spaces, hyphens and slashes. A name that contains an operator needs quotes.

    Args:
        text: such as ``"red^1.5 & (dress | ~coat)"``.
        concept: finds the concept by its name, or raises `InputError`.

    Raises:
        InputError: the text is not an expression; the message names the character, counted from 1.
    """
    return _Parser(text, concept).parse()


class _Parser:
    """A recursive descent parser. Each method reads one kind of operator and calls the next method:
    or → and → not → weight → name or bracket."""

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
            self._fail(f"expected at most {MAX_DEPTH} nested brackets and signs")
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
            self._fail("expected a weight, which is a number")
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
            self._fail("expected a concept or an operator (is a quote not closed?)")
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
    """The concept with a name: a value, or ``attribute:value`` if several attributes have the value.

    Args:
        name: the name. An exact match has priority over a match that ignores case.
        attributes: the names of the model's attributes, and the values of each.

    Raises:
        InputError: no value has that name, or several have it.
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
