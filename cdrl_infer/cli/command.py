"""The parts that commands share: how they end, import, open a model and files, and read numbers."""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cdrl_infer.config import parse_json
from cdrl_infer.errors import (
    LONGEST,
    CDRLError,
    InputError,
    NetworkError,
    NumericalError,
    shown,
)
from cdrl_infer.files import added_files, replaced_file
from cdrl_infer.processes import ALONE, Processes, end_process, one_of_several

if TYPE_CHECKING:
    from cdrl_infer.pipeline import CDRLPipeline

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])
VARIANT = click.option("--variant", metavar="fp16|bf16", help="Use weights stored in fewer bits.")
REVISION = click.option(
    "--revision", metavar="NAME", help="Branch, tag or commit of a repository. [main]"
)
DEVICE = click.option(
    "--device", metavar="NAME", help="cpu, cuda, … [cuda if there is one, else cpu]"
)
BATCH_SIZE = click.option(
    "--batch-size",
    type=int,
    default=64,
    show_default=True,
    help="Number of images processed at once.",
)
MODEL_OPTIONS = (
    click.option(
        "--model",
        metavar="NAME|FOLDER|USER/MODEL",
        help="Bundled model, folder, or repository of the Hugging Face Hub. [fashion-mnist]",
    ),
    REVISION,
    VARIANT,
    DEVICE,
    BATCH_SIZE,
)
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class OneLineErrors(click.Command):
    """A command that prints every error in one line on stderr.

    It exits with 0 when done (or with what the command returns), 2 on bad input, 3 if a computation left
    the finite numbers, 4 if the Hub could not be reached or broke off, 5 if the disk is full, and 130
    when interrupted.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run, and exit."""
        kwargs["standalone_mode"] = False
        _print_any_text()
        try:
            sys.exit(super().main(*args, **kwargs) or 0)
        except click.ClickException as error:
            message, code = error.format_message(), 2
        except (CDRLError, OSError) as error:
            message, code = str(error), exit_code(error)
        except (click.Abort, KeyboardInterrupt):
            click.echo(f"{self.name}: interrupted", err=True)
            sys.exit(130)
        click.echo(f"{self.name}: error: {shown(message, LONGEST)}", err=True)
        sys.exit(code)


class Ended(BaseException):
    """A launcher has told this process to end, as it does if another one has failed."""


class OneOfSeveral(OneLineErrors):
    """`OneLineErrors` for a command that `torchrun` or `accelerate launch` may start several times.

    It exits with 143 when told to end.
    """

    processes = ALONE  # until `sharing` has met the others

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command, and exit."""
        if not one_of_several():
            return super().main(*args, **kwargs)
        signal.signal(signal.SIGTERM, _end)
        try:
            super().main(*args, **kwargs)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except Ended:
            reason = f"process {os.environ['RANK']} was told to end, because another one has ended"
            click.echo(f"{self.name}: error: {reason}", err=True)
            code = 128 + signal.SIGTERM
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.processes.leave()
        end_process(code)


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended


@contextmanager
def sharing() -> Iterator[Processes]:
    """The processes that run this command, in a block that succeeds in all, or in none.

    Of an error of all, the main process alone tells.
    """
    processes = Processes.join()
    command = click.get_current_context().find_root().command
    if isinstance(command, OneOfSeveral):
        command.processes = processes
    try:
        with processes.one_fate():
            yield processes
    except (CDRLError, OSError) as error:
        if processes.main or error is not processes.failure:
            raise
        raise click.exceptions.Exit(exit_code(error)) from None


def exit_code(error: Exception) -> int:
    """The code with which a command ends after an error."""
    if isinstance(error, NumericalError):
        return 3
    if isinstance(error, NetworkError):
        return 4
    return 5 if _disk_is_full(error) else 2


class LazyCommands(OneOfSeveral, click.Group):
    """A command with commands below it, each imported when it is needed.

    Args:
        places: ``module:attribute`` of each command, by name.
    """

    def __init__(self, *args: Any, places: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, sorted."""
        return sorted(self.places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in self.places:
            return None
        module, _, attribute = self.places[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


def _print_any_text() -> None:
    """Escape the characters that the encoding of stdout or stderr lacks, as \\u2026 for "…"."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def _disk_is_full(error: Exception) -> bool:
    causes = (error, error.__cause__)
    return any(isinstance(cause, OSError) and cause.errno in DISK_FULL for cause in causes)


def _import_modules(context: click.Context, parameter: click.Parameter, names: Any) -> None:
    """Import modules, also from the current folder; InputError for one that cannot be imported."""
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise InputError(
                f"--import {name}: expected the name of a module that can be imported, got "
                f"{type(error).__name__}: {error}"
            ) from None


def precision_option(lower: str, changed: str) -> Callable[[Command], Command]:
    """``--precision``; the words say what bfloat16 computes, and what changes by it."""
    return click.option(
        "--precision",
        type=click.Choice(["float32", "bfloat16", "auto"]),
        default="float32",
        show_default=True,
        help=f"bfloat16: {lower} in fewer bits; quicker where the machine has instructions for it, and "
        f"{changed} differ a little. auto: what is quicker here.",
    )


IMPORT = click.option(
    "--import",
    multiple=True,
    is_eager=True,  # before any option that may name what the module registers
    expose_value=False,
    callback=_import_modules,
    metavar="MODULE",
    help="First import a module that registers your own parts, such as a kernel. It may lie in the "
    "current folder. The option may be repeated.",
)


def uses_a_model(command: Command) -> Command:
    """Give a command the options for choosing a model; see `open_model`."""
    for option in reversed(MODEL_OPTIONS):
        command = option(command)
    return command


def open_model(
    model: str | None,
    revision: str | None,
    variant: str | None,
    device: str | None,
    processes: Processes = ALONE,
) -> CDRLPipeline:
    """The model that the options of `uses_a_model` ask for, on the device of this process."""
    from cdrl_infer.pipeline import CDRLPipeline

    pipe = CDRLPipeline.from_pretrained(model, revision=revision, variant=variant)
    return pipe.to(processes.device(device))


def open_target(stack: ExitStack, target: str, *suffixes: str, folder: bool = False) -> Path:
    """A file or folder to write; it takes the place of ``target`` once the stack is closed.

    Open it before any work, so that an unwritable path is refused at once.

    Args:
        stack: closes the file or folder.
        target: the path that the user gave.
        suffixes: the suffixes that a file may have; none for a folder only.
        folder: whether it may be a folder. Files are added to a folder, and those in it stay.

    Raises:
        InputError: ``target`` is empty, has another suffix or is not writable.
    """
    kind = f"{' or '.join(suffixes)} file" if suffixes else "folder"
    if not target:
        raise InputError(f"expected the name of a {kind}, got ''")
    path = Path(target)
    as_folder = folder and (
        not suffixes or path.is_dir() or target.endswith("/") or not path.suffix
    )
    if not as_folder and path.suffix.lower() not in suffixes:
        other = " or a folder (end it with /)" if folder else ""
        raise InputError(f"expected a {kind}{other}, got {target!r}")
    if path.exists() and path.is_dir() != as_folder:
        raise InputError(f"cannot write to {target!r}: expected a {kind}, found another kind")
    try:
        return stack.enter_context(
            added_files(path) if as_folder else replaced_file(path, follow=True)
        )
    except OSError as error:
        raise InputError(
            f"cannot write to {target!r} ({error.strerror}): expected a path in a folder that "
            "exists and is writable"
        ) from None


def parse_numbers(option: str, text: str) -> float | tuple[float, ...]:
    """``"0.5"`` -> 0.5, ``"0.5,1,2"`` -> (0.5, 1.0, 2.0); InputError for anything else."""
    return _one_or_several(float, text, f"{option} must be a number, or numbers")


def parse_steps(text: str) -> int | tuple[int, ...]:
    """``"15"`` -> 15, ``"15,10,5"`` -> (15, 10, 5); InputError for anything else."""
    return _one_or_several(int, text, "--langevin-steps must be an integer, or integers")


def parse_options(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """``("steps=3",)`` -> ``{"steps": 3}``; a value that is not JSON is a text.

    Raises:
        InputError: a text is not KEY=VALUE.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise InputError(f"{option} must be KEY=VALUE, got {text!r}")
        try:
            found[name] = parse_json(value)
        except ValueError:
            found[name] = value
    return found


def _one_or_several(kind: Callable[[str], T], text: str, expected: str) -> T | tuple[T, ...]:
    try:
        return tuple(kind(k) for k in text.split(",")) if "," in text else kind(text)
    except ValueError:
        raise InputError(f"{expected} separated by commas, got {text!r}") from None
