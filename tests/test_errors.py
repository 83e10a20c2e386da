"""Texts in messages."""

from __future__ import annotations

import pytest

from cdrl_infer.errors import shown


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\n  lines\t", "two lines"),
        ("\x1b[2J\x07 \x9b1m", "?[2J? ?1m"),  # clears the terminal, rings its bell
        ("cat\u202egnp.exe\u2066", "cat?gnp.exe?"),  # would be shown as catexe.png
        ("lone \ud800", "lone ?"),  # cannot be encoded
        ("Kätzchen 猫", "Kätzchen 猫"),
        ("x" * 200_000, "x" * 200 + "…"),
        (ValueError("no\rway"), "no way"),
    ],
)
def test_a_text_from_outside_is_shown_clean_and_short(text: object, line: str) -> None:
    assert shown(text) == line
