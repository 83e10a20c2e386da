"""`cdrl-hub`: share, inspect and convert models."""

from __future__ import annotations

from importlib.metadata import entry_points

import click

from cdrl_infer.cli.command import LazyCommands
from cdrl_infer.errors import InputError
from cdrl_infer.version import __version__

COMMANDS = {
    "convert": "cdrl_infer.cli.hub.convert:convert",
    "info": "cdrl_infer.cli.hub.info:info",
    "models": "cdrl_infer.cli.hub.models:models",
    "push": "cdrl_infer.cli.hub.push:push",
}
PLUGINS = "cdrl.hub_commands"  # entry points of packages that build on this one


class HubCommands(LazyCommands):
    """Our commands and those of installed packages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, sorted."""
        return sorted({*self.places, *(entry.name for entry in entry_points(group=PLUGINS))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        for plugin in entry_points(group=PLUGINS, name=cmd_name):
            try:
                loaded: click.Command = plugin.load()
                return loaded
            except Exception as error:  # a broken package must not break our commands
                return _unusable(cmd_name, f"{plugin.value} cannot be imported ({error})")
        return None


def _unusable(name: str, reason: str) -> click.Command:
    """A command in place of one that cannot be imported; it says why."""

    def refuse() -> None:
        raise InputError(f"{reason}; install its package again")

    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(name, callback=refuse, context_settings=anything, help=f"({reason})")


@click.command(
    "cdrl-hub",
    cls=HubCommands,
    places=COMMANDS,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="cdrl-hub")
def main() -> None:
    """Share models on the Hugging Face Hub, inspect them, convert checkpoints to models.

    The token comes from `hf auth login` or HF_TOKEN. Exit codes: 0 done, 2 bad input, 3 NaN or
    infinity in a computation, 4 the Hub cannot be reached or the connection broke (try again), 5 the
    disk is full, 130 interrupted.
    """
