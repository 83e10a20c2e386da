"""``python -m cdrl_infer sample …``: the commands, where their scripts are not on the path."""

from __future__ import annotations

import click

from cdrl_infer.cli.command import LazyCommands
from cdrl_infer.version import __version__


@click.command(
    "python -m cdrl_infer",
    cls=LazyCommands,
    places={
        "hub": "cdrl_infer.cli.hub:main",
        "sample": "cdrl_infer.cli.sample:main",
        "score": "cdrl_infer.cli.score:main",
    },
    no_args_is_help=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="cdrl")
@click.pass_context
def main(context: click.Context) -> None:
    """Draw, score and share: `sample` is cdrl-sample, `score` cdrl-score, and `hub` cdrl-hub."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


if __name__ == "__main__":
    main()
