"""One family of errors for everything a user can get wrong."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST = 1000  # characters of a message
LINE_ENDS = re.compile(r"\s*[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]\s*")


class CDRLError(Exception):
    """Base of all errors this package raises on bad input; the text is one short, printable line."""

    def __str__(self) -> str:
        return shown(super().__str__(), LONGEST)


class ConfigError(CDRLError, ValueError):
    """A configuration has an unknown key, a value out of range, or an unknown class."""


class CheckpointError(CDRLError, OSError):
    """A model folder or file is missing, damaged, foreign or of a newer format."""


class NetworkError(CheckpointError):
    """The Hub could not be reached, was too busy, or broke off; trying again may help."""


class InputError(CDRLError, ValueError):
    """An argument of a call is unknown, out of range or of the wrong shape."""


class PackageError(InputError, ImportError):
    """A package that not everyone needs is missing, or does not fit the others."""


class ProcessError(CDRLError, RuntimeError):
    """One of several processes that share work is missing or has ended."""


class NumericalError(CDRLError, ArithmeticError):
    """A computation left the finite numbers (NaN or infinity)."""


def listing(options: Iterable[object], limit: int = 12) -> str:
    """The options in one line, each as in `shown`, cut after ``limit`` of them."""
    names = [shown(option) for option in options]
    cut = f", … ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + cut


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` where an option is spelled nearly like ``word``, else nothing."""
    spellings = {option.lower(): option for option in options}
    near = difflib.get_close_matches(word.lower(), spellings, n=1, cutoff=0.5)
    return f"; did you mean {spellings[near[0]]!r}?" if near else ""


def quoted(value: object, limit: int = 200) -> str:
    """A caller's value as Python writes it, in one short line; its type if it cannot be written."""
    try:
        return shown(repr(value), limit)
    except Exception:  # an integer of 5,000 digits, or any error of a foreign object
        return f"a value of type {type(value).__name__}"


def shown(text: object, limit: int = 200) -> str:
    """A text from outside (a message, a name, a label) as one short line that is safe to print.

    Args:
        text: anything; `str` of it is shown, see `printable`.
        limit: the most characters to show; a longer text lacks its middle. Its end often says how to
            mend an error.
    """
    line = LINE_ENDS.sub(" ", str(text)).strip()
    cut = line if len(line) <= limit else f"{line[: limit // 2]}…{line[-(limit // 2) :]}"
    return printable(cut)


def printable(text: str) -> str:
    """The text with a "?" in place of each character that cannot be seen.

    Control characters could write over the terminal. Overrides of the direction of writing could make
    a name look like another. Lone surrogates cannot be encoded.
    """
    return "".join(c if c.isprintable() else "?" for c in text)
