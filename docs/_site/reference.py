"""Writes docs/options.md and docs/commands.md, made of the code: python docs/_site/reference.py

`tests/test_site.py` compares the pages with the code.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

ROOT = Path(__file__).parents[2]
MADE = "<!-- Made by docs/_site/reference.py; change the code's help and docstrings instead. -->"


# -- Options of a training run ------------------------------------------------------------------------


def described(cls: type) -> dict[str, str]:
    """The text of each argument in the docstrings of a class and its parents."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        _, _, section = inspect.cleandoc(owner.__doc__ or "").partition("\nArgs:\n")
        for entry in re.split(r"\n(?=    \S)", section.split("\n\n")[0]):
            names, colon, text = entry.partition(": ")
            if colon:
                meaning = " ".join(text.split())
                found.update(dict.fromkeys((n.strip() for n in names.split(",")), meaning))
    return found


def as_json(value: Any) -> str:
    """A default as a file of options has it."""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def option_rows(cls: type, prefix: str, skip: tuple[str, ...] = ()) -> Iterator[str]:
    """A row of the table for each argument of the class."""
    texts, hints = described(cls), get_type_hints(cls.__init__)
    for name, parameter in list(inspect.signature(cls).parameters.items()):
        if name in skip:
            continue
        if name not in texts:
            raise ValueError(f"{cls.__name__}: say in the docstring, under Args, what {name} means")
        default = parameter.default
        if default is parameter.empty:
            shown = "required"
        else:
            shown = "below" if dataclasses.is_dataclass(default) else as_json(default)
        choices = get_args(hints[name]) if get_origin(hints[name]) is Literal else ()
        one_of = f" One of {', '.join(map(as_json, choices))}." if choices else ""
        yield f"| `{prefix}{name}` | {shown} | {cell(texts[name])}{one_of} |"


def cell(text: str) -> str:
    """A text within a row of a table."""
    return text.replace("``", "`").replace("|", "\\|")


def table(cls: type, prefix: str = "", skip: tuple[str, ...] = ()) -> str:
    """The options that a class takes."""
    return "\n".join(
        ["| option | default | meaning |", "|---|---|---|", *option_rows(cls, prefix, skip)]
    )


def first_line(cls: type) -> str:
    """What a class is, in one line."""
    return cell((inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " "))


def options_page() -> str:
    """docs/options.md."""
    from cdrl_infer.model import SamplerDefaults
    from cdrl_infer.networks.registry import BACKBONES, NETWORKS
    from cdrl_infer.schedule import NoiseSchedule
    from cdrl_train.config import DataConfig, Phase, TrainConfig
    from cdrl_train.objectives import OBJECTIVES

    parts = [
        "# Options of training",
        MADE,
        "`cdrl-train --set KEY=VALUE` changes an option of a preset, and a file of options for "
        "`--config` holds them all. `--print-config` prints the file. Values are JSON; text needs no "
        "quotes. A name that does not exist, or a value of another type, is an error before any work.",
        "## The run",
        table(TrainConfig),
        "## Data",
        "The images. `--data`, `--grey`, `--image-size` and `--resize` set the first of these, too.",
        table(DataConfig, "data."),
        "## Noise levels",
        table(NoiseSchedule, "schedule."),
        "## Sampler",
        table(SamplerDefaults, "sampler."),
        "## Phases",
        "`PHASE` is the phase's label or objective, as in `cooperative.steps=100`, or its place, as in "
        "`phases.1.steps=100`. The options of its objective are set in the same way, as in "
        "`cooperative.langevin_steps=10`.",
        table(Phase, "PHASE."),
    ]
    for name, objective in OBJECTIVES.items():
        parts += [f"### Objective {name}", first_line(objective), table(objective, f"{name}.")]
    parts += [
        "## Networks",
        '`ebm` and `initializer` hold `{"class": NAME, …}`. `in_channels` and `num_classes` come from '
        "the data. The options of a `backbone` can be set as if they were the network's, as in "
        "`ebm.widths=[32,64]`.",
    ]
    for role, networks in NETWORKS.items():
        for name, network in networks.items():
            parts += [f"### {name}", first_line(network), table(network, f"{role}.", DATA)]
    for name, backbone in BACKBONES.items():
        parts += [f"### {name}", first_line(backbone), table(backbone, "backbone.", DATA)]
    return "\n\n".join(parts) + "\n"


DATA = ("in_channels", "num_classes")  # options that the data decide


# -- Commands -----------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, click.Command]]:
    """All commands that the package installs, and those of a group after it."""
    scripts = re.search(
        r"^\[project\.scripts\]\n(.*?)\n\n",
        (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    assert scripts is not None
    for name, module, attribute in re.findall(r'^(\S+) = "(.+):(.+)"', scripts[1], re.MULTILINE):
        command = getattr(importlib.import_module(module), attribute)
        yield name, command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for sub in command.list_commands(context):
                found = command.get_command(context, sub)
                assert found is not None
                yield f"{name} {sub}", found


def option_of(parameter: click.Option) -> str:
    """A row of the table for an option."""
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    if not parameter.is_flag:
        kinds = parameter.type
        choices = "|".join(kinds.choices) if isinstance(kinds, click.Choice) else kinds.name.upper()
        names += f" `{parameter.metavar or choices}`".replace("|", "\\|")
    text = parameter.help or ""
    stated = re.search(r" ?\[([^]]+)\]\.?$", text)
    default = ""
    if parameter.show_default:
        values = parameter.default if parameter.multiple else [parameter.default]
        default = ", ".join(f"`{value}`" for value in values)
    elif stated is not None:
        text, default = text[: stated.start()], stated[1]
    return f"| {names} | {default} | {cell(text)} |"


def usage(name: str, command: click.Command) -> str:
    """The line that --help begins with."""
    pieces = command.collect_usage_pieces(click.Context(command, info_name=name))
    return f"```text\n{name} {' '.join(pieces)}\n```"


def commands_page() -> str:
    """docs/commands.md."""
    parts = [
        "# Commands",
        MADE,
        "Every command has `--help`. [hub.md](hub.md#exit-codes) lists the exit codes, and "
        "[install.md](install.md#extras) what each command needs.",
    ]
    for name, command in commands():
        parts += [f"{'###' if ' ' in name else '##'} {name}", usage(name, command)]
        parts.append(inspect.cleandoc(command.help or "").replace("\b\n", ""))
        options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
        if options:
            rows = ["| option | default | |", "|---|---|---|", *map(option_of, options)]
            parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


PAGES = {"options.md": options_page, "commands.md": commands_page}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (ROOT / "docs" / page).write_text(write(), encoding="utf-8")
