"""The package beside what a user would pick instead: TorchEBM, diffusers, an autoencoder, pytorch-ood.

``python benchmarks/peers.py samplers``, ``… train``, ``… pictures``, ``… anomalies``; see
benchmarks/README.md.
"""

from __future__ import annotations

import click

from cdrl_infer.cli.command import LazyCommands

COMMANDS = {
    "samplers": "peers_samplers:main",
    "train": "peers_train:main",
    "pictures": "peers_pictures:main",
    "anomalies": "peers_anomalies:main",
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
