"""What the commands of this project share: how they end, and how they read K."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from cdrl_infer.errors import CDRLError, InputError, NetworkError, NumericalError

T = TypeVar("T")


class OneLineErrors(click.Command):
    """A command that tells every error in one line on stderr.

    It exits with 0 when done, 2 on bad input, 3 where a computation left the finite numbers, 4 where
    the Hub could not be reached or broke off, and 130 when interrupted.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run, and exit."""
        kwargs["standalone_mode"] = False
        code = 2
        try:
            sys.exit(super().main(*args, **kwargs) or 0)
        except click.ClickException as error:
            message = error.format_message()
        except NumericalError as error:
            message, code = str(error), 3
        except NetworkError as error:
            message, code = str(error), 4
        except (CDRLError, OSError) as error:
            message = str(error)
        except (click.Abort, KeyboardInterrupt):
            click.echo(f"{self.name}: interrupted", err=True)
            sys.exit(130)
        click.echo(f"{self.name}: error: {' '.join(message.split())}", err=True)
        sys.exit(code)


def parse_numbers(option: str, text: str) -> float | tuple[float, ...]:
    """``"0.5"`` -> 0.5, ``"0.5,1,2"`` -> (0.5, 1.0, 2.0).

    Raises:
        InputError: anything else.
    """
    return _one_or_several(float, text, f"{option} must be a number or numbers")


def parse_steps(text: str) -> int | tuple[int, ...]:
    """``"15"`` -> 15, ``"15,10,5"`` -> (15, 10, 5).

    Raises:
        InputError: anything else.
    """
    return _one_or_several(int, text, "--langevin-steps must be an integer or integers")


def _one_or_several(kind: Callable[[str], T], text: str, expected: str) -> T | tuple[T, ...]:
    try:
        return tuple(kind(k) for k in text.split(",")) if "," in text else kind(text)
    except ValueError:
        raise InputError(f"{expected} with commas between, got {text!r}") from None
