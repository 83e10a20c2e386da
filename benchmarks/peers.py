"""The package beside what a user would pick instead: TorchEBM's samplers, diffusers' DDPM.

``python benchmarks/peers.py samplers``, ``… train`` and ``… pictures``; see benchmarks/README.md.
"""

from __future__ import annotations

import click

from cdrl_infer.cli.command import LazyCommands

COMMANDS = {
    "samplers": "peers_samplers:main",
    "train": "peers_train:main",
    "pictures": "peers_pictures:main",
}


@click.command(
    "peers.py",
    cls=LazyCommands,
    places=COMMANDS,
    help=__doc__.partition("\n")[0] if __doc__ else "",
)
def main() -> None:
    """Its commands do the work."""


if __name__ == "__main__":
    main()
