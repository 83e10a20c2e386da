"""Texts in messages."""

from __future__ import annotations

import pickle

import pytest

from cdrl_infer import errors
from cdrl_infer.errors import shown


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\n  lines\t", "two lines"),
        ("\x1b[2J\x07 \x9b1m", "?[2J? ?1m"),  # clears the terminal, rings its bell
        ("cat\u202egnp.exe\u2066", "cat?gnp.exe?"),  # would be shown as catexe.png
        ("lone \ud800", "lone ?"),  # cannot be encoded
        ("Kätzchen 猫", "Kätzchen 猫"),
        ("x" * 200_000 + "end", "x" * 100 + "…" + "x" * 97 + "end"),
        (ValueError("no\rway"), "no way"),
    ],
)
def test_a_text_from_outside_is_shown_clean_and_short(text: object, line: str) -> None:
    assert shown(text) == line


@pytest.mark.parametrize("kind", [errors.InputError, errors.CheckpointError, errors.NumericalError])
def test_every_error_is_one_short_clean_line(kind: type[errors.CDRLError]) -> None:
    error = kind("expected a name,\ngot \x1b[2J\ud800" + "9" * 200_000 + "; did you mean 'x'?")
    text = str(pickle.loads(pickle.dumps(error)))
    assert text.isprintable() and len(text) <= errors.LONGEST + 1
    assert text.startswith("expected a name, got ?[2J?9") and text.endswith("; did you mean 'x'?")
