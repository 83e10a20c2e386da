"""Expressions of concepts: what they mean, and what the parser says to those that mean nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from cdrl_infer.conditions.expressions import (
    MAX_BRANCHES,
    And,
    Branch,
    Concept,
    Expression,
    Or,
    Weighted,
    check_says_something,
)
from cdrl_infer.conditions.parser import MAX_DEPTH, find_concept, parse
from cdrl_infer.errors import InputError

ATTRIBUTES = {
    "garment": ("sneaker", "dress", "T-shirt/top", "Ankle boot", "A & B's", 'so "called"'),
    "colour": ("red", "blue", "Light", "plain"),
    "back ground": ("light", "dark", "plain"),
}


def concept(name: str) -> Concept:
    return find_concept(name, ATTRIBUTES)


def read(text: str) -> Expression:
    return parse(text, concept)


SNEAKER, DRESS, RED, BLUE, DARK = map(concept, ("sneaker", "dress", "red", "blue", "dark"))
S, D, R, B, K = (torch.tensor(v).double() for v in (1.3, -0.4, 0.7, -2.1, 3.2))
RATIOS = {SNEAKER: S, DRESS: D, RED: R, BLUE: B, DARK: K}


def either(*ratios: Tensor) -> Tensor:
    """The logarithm of the mean of ``e^r``, as the definition has it."""
    return torch.stack(ratios).exp().mean().log()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red", R),
        ("~red", -R),
        ("~~red", R),
        ("red^1.5", 1.5 * R),
        ("red**1.5", 1.5 * R),
        ("red ^ .5", 0.5 * R),
        ("red^2e-1", 0.2 * R),
        ("red & sneaker", R + S),
        ("red | sneaker", either(R, S)),
        # precedence: ^ before ~ before & before |
        ("~red^2", -2 * R),
        ("(~red)^2", -2 * R),
        ("~red & sneaker", S - R),
        ("~red | sneaker", either(-R, S)),
        ("red | sneaker & dress", either(R, S + D)),
        ("red & sneaker | dress", either(R + S, D)),
        ("red & sneaker^2 | ~dress & dark", either(R + 2 * S, K - D)),
        # brackets
        ("(red | sneaker) & dress", either(R, S) + D),
        ("red & (sneaker | dress)", R + either(S, D)),
        ("(red & sneaker)^2", 2 * (R + S)),
        ("(red | sneaker)^2", 2 * either(R, S)),
        ("((red))&(((sneaker)))", R + S),
        ("red & (sneaker | dress^2 & ~(dark))", R + either(S, 2 * D - K)),
        # the parts of an OR share equally, however it is bracketed
        ("red | sneaker | dress", either(R, S, D)),
        ("(red | sneaker) | dress", either(R, S, D)),
        ("red | (sneaker | dress)", either(R, S, D)),
        ("red & (sneaker & dress)", R + S + D),
        # De Morgan
        ("~(red & sneaker)", either(-R, -S)),
        ("~(red | sneaker)", -R - S),
        ("~(red & (sneaker | ~dress))", either(-R, D - S)),
        ("~(red | sneaker & dress)", -R + either(-S, -D)),
        ("~(red^2 & sneaker)", either(-2 * R, -S)),
        ("~(red & sneaker)^2", 2 * either(-R, -S)),
        ("~((red | sneaker)^2)", 2 * (-R - S)),
        ("~~(red & sneaker)", R + S),
        ("~(~red & ~sneaker)", either(R, S)),
    ],
)
def test_what_a_text_means(text: str, expected: Tensor) -> None:
    expression = read(text)
    torch.testing.assert_close(expression.log_ratio(RATIOS), expected, rtol=1e-12, atol=1e-12)
    assert read(str(expression)).log_ratio(RATIOS) == expression.log_ratio(RATIOS)


def test_images_do_not_mix() -> None:
    batch = {RED: torch.tensor([0.0, 1.0, -50.0]), BLUE: torch.tensor([0.0, 200.0, -50.0])}
    found = read("red | blue").log_ratio(batch)
    torch.testing.assert_close(found, torch.tensor([0.0, 200 - math.log(2), -50.0]))


@pytest.mark.parametrize(
    ("operators", "text"),
    [
        (RED & SNEAKER, "red & sneaker"),
        (RED | SNEAKER, "red | sneaker"),
        (~RED, "~red"),
        (RED**1.5, "red^1.5"),
        (~(RED**2), "~red^2"),
        ((~RED) ** 2, "(~red)^2"),
        (RED & SNEAKER | DRESS, "red & sneaker | dress"),
        (RED | SNEAKER & ~(DRESS**0.5), "red | sneaker & ~dress^0.5"),
        ((RED | SNEAKER) & DRESS, "(red | sneaker) & dress"),
        (~(RED & (SNEAKER | BLUE**3)) & DARK, "~(red & (sneaker | blue^3)) & dark"),
        (RED & SNEAKER & DRESS, "red & sneaker & dress"),
        ((RED | BLUE) ** 2, "(red | blue)^2"),
    ],
)
def test_operators_make_what_the_text_makes(operators: Expression, text: str) -> None:
    assert operators == read(text)


def test_operators_refuse_what_is_no_concept() -> None:
    for make in (lambda: RED & "sneaker", lambda: RED | 2, lambda: SNEAKER & None):  # type: ignore[operator]
        with pytest.raises(InputError, match="expected a concept or an expression"):
            make()
    for weight in (0, math.nan, math.inf, "2", None):
        with pytest.raises(InputError, match="a weight must be a finite number"):
            RED**weight  # type: ignore[operator]
    assert RED**-1 == ~RED
    with pytest.raises(InputError, match=r"weight of 'red \| blue' must be positive, got -2"):
        (RED | BLUE) ** -2


@pytest.mark.parametrize(
    ("text", "attribute", "label"),
    [
        ("Ankle boot", 0, 4),
        ("  ankle BOOT  ", 0, 4),
        ("T-shirt/top", 0, 3),
        ("t-SHIRT/TOP", 0, 3),
        ("'dress'", 0, 2),
        ('"Ankle boot"', 0, 4),
        ('"A & B\'s"', 0, 5),
        ("'so \"called\"'", 0, 6),
        ("colour:red", 1, 1),
        ("Colour : RED", 1, 1),
        ("colour:plain", 1, 4),
        ("back ground:plain", 2, 3),
        ("'back ground:plain'", 2, 3),
        ("light", 2, 1),  # letter by letter goes before case
        ("Light", 1, 3),
        ("colour:light", 1, 3),
    ],
)
def test_names(text: str, attribute: int, label: int) -> None:
    found = read(text)
    assert isinstance(found, Concept)
    assert (found.attribute, found.label) == (attribute, label)
    assert read(str(found)) == found
    assert concept(found.name) == found


def test_a_name_with_a_colon_is_a_name() -> None:
    attributes = {"ratio": ("16:9", "4:3"), "16": ("9",)}
    assert find_concept("16:9", attributes) == Concept("16:9", 0, 1)
    assert find_concept("ratio:4:3", attributes) == Concept("4:3", 0, 2)


def test_names_within_expressions() -> None:
    both = read('Ankle boot & ~T-shirt/top^2|"A & B\'s"')
    assert both.concepts == tuple(map(concept, ("Ankle boot", "T-shirt/top", "A & B's")))
    assert str(both) == 'Ankle boot & ~T-shirt/top^2 | "A & B\'s"'


@pytest.mark.parametrize(
    ("text", "message", "character"),
    [
        ("", "expected a concept, found the end", 1),
        ("   ", "expected a concept, found the end", 4),
        ("red &", "expected a concept, found the end", 6),
        ("red & ", "expected a concept, found the end", 7),
        ("& red", "expected a concept, found '&'", 1),
        ("red & | blue", "expected a concept, found '|'", 7),
        ("red || blue", "expected a concept, found '|'", 6),
        ("~", "expected a concept, found the end", 2),
        ("red ~ blue", "expected &, | or the end, found '~'", 5),
        ("(red | blue", "expected ) or an operator, found the end", 12),
        ("red)", "expected &, | or the end, found ')'", 4),
        ("red & () & blue", "expected a concept, found ')'", 8),
        ("red (blue)", "expected &, | or the end, found '('", 5),
        ("red^", "expected a weight, which is a number, found the end", 5),
        ("red ^ blue", "expected a weight, which is a number, found 'b'", 7),
        ("red^2^3", "expected &, | or the end, found '^'", 6),
        ("red^2 blue", "expected &, | or the end, found 'b'", 7),
        ("blue & red^-1", "expected a positive, finite weight (~ is NOT), found '-'", 12),
        ("red^0", "expected a positive, finite weight (~ is NOT), found '0'", 5),
        ("red^1e999", "expected a positive, finite weight (~ is NOT), found '1'", 5),
        ("red & 'blue", 'is a quote not closed?), found "\'"', 7),
        ("red * blue", "expected a concept or an operator (is a quote not closed?), found '*'", 5),
        ("red & bleu", "unknown concept 'bleu'", 7),
        ("(red |  'bleu')", "unknown concept 'bleu'", 9),
        ("red & plain", "could be colour:plain, back ground:plain; write one of these", 7),
        ("red & DARK & LIGHT", "could be colour:Light, back ground:light", 14),
    ],
)
def test_errors_point_at_the_character(text: str, message: str, character: int) -> None:
    with pytest.raises(InputError) as caught:
        read(text)
    error = str(caught.value)
    assert message in error
    assert f"at character {character} of {text!r}" in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("sneakr", "sneaker"),
        ("SNEEKER", "sneaker"),
        ("ankel boot", "Ankle boot"),
        ("colour:rad", "colour:red"),
        ("color:red", "colour:red"),
    ],
)
def test_unknown_names_suggest_near_ones(name: str, near: str) -> None:
    with pytest.raises(InputError, match=f"expected one of .*; did you mean '{near}'"):
        concept(name)


def test_names_unlike_all_others_suggest_none() -> None:
    with pytest.raises(
        InputError, match="unknown concept 'xyzzy', expected one of sneaker"
    ) as caught:
        concept("xyzzy")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("red & ~red", "red"),
        ("red^0.5 & blue & ~red^0.5", "red"),
        ("red^0.1 & red^0.2 & ~red^0.3", "red"),  # which floats cannot add up to exactly 0
        ("blue & (dress | ~blue)", "blue"),
        ("red & ~(red | blue)", "red"),
        ("(red & blue) & ~blue & ~red", "red, blue"),
    ],
)
def test_what_cancels_is_refused(text: str, gone: str) -> None:
    with pytest.raises(InputError, match=f"asks for and denies {gone} with") as caught:
        check_says_something(read(text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["red & ~red^0.5", "red | ~red", "red & red", "~red & ~red"])
def test_what_leaves_something_is_not(text: str) -> None:
    check_says_something(read(text))


def test_too_many_alternatives() -> None:
    bits = MAX_BRANCHES.bit_length() - 1
    assert len(read(" & ".join(["(red | blue)"] * bits)).branches()) == MAX_BRANCHES
    for text in (
        " & ".join(["(red | blue)"] * 300),
        " | ".join(["red"] * (MAX_BRANCHES + 1)),
        f"~({' | '.join(['red & blue'] * (bits + 1))})",
    ):
        with pytest.raises(InputError, match=f"may have at most {MAX_BRANCHES} alternatives"):
            check_says_something(read(text))


def test_too_deep() -> None:
    for sign, end in (("(", ")"), ("~", ""), ("~(", ")")):
        count = MAX_DEPTH // len(sign)
        read(sign * count + "red" + end * count)
        with pytest.raises(InputError, match=f"at most {MAX_DEPTH} nested brackets and signs"):
            read(sign * (count + 1) + "red" + end * (count + 1))
        with pytest.raises(InputError, match="at most 50"):
            read(sign * 100_000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red", [({RED: 1.0}, 1)]),
        ("red & ~blue^2", [({RED: 1.0, BLUE: -2.0}, 1)]),
        ("red & red^0.5", [({RED: 1.5}, 1)]),
        ("red | blue", [({RED: 1.0}, 1 / 2), ({BLUE: 1.0}, 1 / 2)]),
        (
            "red | blue & (dress | sneaker)",
            [
                ({RED: 1.0}, 1 / 2),
                ({BLUE: 1.0, DRESS: 1.0}, 1 / 4),
                ({BLUE: 1.0, SNEAKER: 1.0}, 1 / 4),
            ],
        ),
        (
            "(red | blue) & (dress | sneaker | dark)",
            [({c: 1.0, g: 1.0}, 1 / 6) for c in (RED, BLUE) for g in (DRESS, SNEAKER, DARK)],
        ),
        ("(red | ~blue)^2", [({RED: 2.0}, 1 / 2), ({BLUE: -2.0}, 1 / 2)]),
        ("~(red & blue)", [({RED: -1.0}, 1 / 2), ({BLUE: -1.0}, 1 / 2)]),
    ],
)
def test_branches_and_their_shares(text: str, expected: list[Branch]) -> None:
    found = read(text).branches()
    assert [branch.weights for branch in found] == [weights for weights, _ in expected]
    assert [branch.share for branch in found] == pytest.approx([share for _, share in expected])


def test_an_expression_is_the_mixture_of_its_branches() -> None:
    """Without weights before brackets, multiplying out OR changes nothing."""
    for text in ("red & (dress | sneaker)", "(red | blue^2) & (dress | ~sneaker)"):
        expression = read(text)
        terms = [
            math.log(b.share) + sum(w * float(RATIOS[c]) for c, w in b.weights.items())
            for b in expression.branches()
        ]
        mixture = torch.tensor(terms, dtype=torch.float64).logsumexp(0)
        torch.testing.assert_close(expression.log_ratio(RATIOS), mixture, rtol=1e-12, atol=1e-12)


def test_concepts_are_listed_once_in_order() -> None:
    assert read("dark & (red | dark^2) & ~sneaker").concepts == (DARK, RED, SNEAKER)


Meaning = Callable[[Mapping[Concept, Tensor]], Tensor]


def random_text(rng: random.Random, depth: int) -> tuple[str, Meaning]:
    """A text and what it means, by the definitions of the operators alone (NOT over concepts)."""
    kind = rng.choice(["&", "|", "^", "name", "~"]) if depth else "name"
    if kind == "name":
        c = rng.choice(
            [*RATIOS, concept("Ankle boot"), concept("colour:plain"), concept("A & B's")]
        )
        return str(c), lambda r: r[c]
    if kind == "~":
        c = rng.choice(list(RATIOS))
        return f"~{c}", lambda r: -r[c]
    first, meaning = random_text(rng, depth - 1)
    if kind == "^":
        weight = rng.choice([rng.uniform(0.1, 3), 2, 1e-7, 123456.789])
        return f"({first})^{weight!r}", lambda r: weight * meaning(r)
    second, other = random_text(rng, depth - 1)
    space = rng.choice(["", " ", "  "])
    text = f"({first}){space}{kind}{space}({second})"
    if kind == "&":
        return text, lambda r: meaning(r) + other(r)
    return text, lambda r: either(meaning(r), other(r))


def test_random_expressions_come_back_from_their_texts() -> None:
    rng = random.Random(0)
    names = ("Ankle boot", "colour:plain", "A & B's")
    ratios = {c: torch.tensor(rng.gauss(0, 1)).double() for c in (*RATIOS, *map(concept, names))}
    for _ in range(300):
        text, meaning = random_text(rng, 4)
        expression = read(text)
        again = read(str(expression))
        assert str(again) == str(expression)
        assert again == expression
        assert again.log_ratio(ratios) == expression.log_ratio(ratios)
        if "|" not in text:  # a | (b | c) has three equal parts, not two
            torch.testing.assert_close(
                expression.log_ratio(ratios), meaning(ratios), rtol=1e-9, atol=1e-9
            )
        twice = ~~expression
        torch.testing.assert_close(twice.log_ratio(ratios), expression.log_ratio(ratios))


def test_types_of_the_parts() -> None:
    assert isinstance(RED & BLUE, And) and isinstance(RED | BLUE, Or)
    assert isinstance(~RED, Weighted) and ~~RED == RED
