"""`cdrl-hub models`: the models that come with the package."""

from __future__ import annotations

import json
from typing import Any

import click

from cdrl_infer.cli.hub.info import gather
from cdrl_infer.errors import listing

COLOURS = {1: "grey", 3: "colour"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print all facts as JSON.")
def models(as_json: bool) -> None:
    """List the models that come with the package.

    They need no network. Example: cdrl-sample --model coloured-fashion-mnist --out samples.png. For all
    facts of one, ask cdrl-hub info NAME.
    """
    from cdrl_infer.storage.folder import bundled_models

    found = [gather(name) for name in bundled_models()]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    width = max((len(facts["model"]) for facts in found), default=0)
    for facts in found:
        click.echo(f"{facts['model']:{width}}  {_line(facts)}")


def _line(facts: dict[str, Any]) -> str:
    """Images, labels and size of a model."""
    image, weights = facts["image"], facts["weights"]
    colour = COLOURS.get(image["channels"], f"{image['channels']} channels")
    labels = [f"{label['name']} ({len(label['values'])})" for label in facts["labels"]]
    values = sum(sum(file["values"].values()) for file in weights if file["variant"] is None)
    size = sum(file["bytes"] for file in weights if file["variant"] is None)
    return (
        f"{image['height']} × {image['width']} {colour}, {listing(labels) or 'unconditional'}, "
        f"{facts['levels']} levels, {values / 1e6:.1f} M values in {size / 1e6:.1f} MB, "
        f"data {listing(facts.get('datasets') or ['not stated'])}"
    )
