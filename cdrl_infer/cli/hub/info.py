"""`cdrl-hub info`: describe a model without downloading its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cdrl_infer.errors import CheckpointError, listing, printable, shown

TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
LONGEST = 500  # characters of one fact
MAX_CARD = 20_000  # characters of a card that are printed
KEPT = ("license", "datasets", "pipeline_tag", "tags")  # keys of a card's front matter


@click.command()
@click.argument("model", metavar="USER/MODEL|FOLDER|NAME")
@click.option("--revision", metavar="NAME", help="Branch, tag or commit of a repository. [main]")
@click.option("--subfolder", metavar="PATH", help="Folder of the model in the repository.")
@click.option("--local-files-only", is_flag=True, help="Use the cache, do not ask the Hub.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def info(model: str, as_json: bool, **options: Any) -> None:
    """Describe a model.

    Example: cdrl-hub info user/model. Prints labels, sizes, results and the card of a repository, a
    folder or a bundled model. Of the weights, only the headers are downloaded.
    """
    facts = gather(model, **options)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        click.echo(f"{_summary(facts)}\n\n{_text_of(facts['card'])}")


def gather(model: str, **options: Any) -> dict[str, Any]:
    """Everything that `info` prints, as a JSON object; for the options see `hub.find`."""
    from cdrl_infer.storage import hub
    from cdrl_infer.storage.folder import CARD
    from cdrl_infer.untrusted import read_text

    found = hub.find(model, with_weights=False, **options)
    config = _read_config(found.folder)
    weights = [
        {
            "file": name,
            "variant": match["variant"],
            "bytes": size,
            "values": hub.weights_header(found, name),
        }
        for name, size in sorted(found.sizes.items())
        if (match := hub.WEIGHTS.fullmatch(name))
    ]
    front, results, text = _read_card(read_text(found.folder, CARD) or "")
    return {
        "model": found.name,
        "commit": found.commit,
        **config,
        "weights": weights,
        **front,
        "results": results,
        "card": text,
    }


def _read_config(folder: Path) -> dict[str, Any]:
    """Facts from the configs. A newer format is read too, if these parts have not changed."""
    from cdrl_infer.networks.registry import NETWORKS
    from cdrl_infer.storage.folder import CONFIG, INDEX
    from cdrl_infer.untrusted import read_json

    config, index = read_json(folder, CONFIG), read_json(folder, INDEX)
    if config.get("library") != "cdrl":
        raise CheckpointError(
            f"{folder / CONFIG}: expected the config of a CDRL model, found another"
        )
    try:
        return {
            "format_version": int(config["format_version"]),
            "library_version": str(config["library_version"]),
            "image": {key: int(config["image"][key]) for key in ("channels", "height", "width")},
            "levels": int(config["schedule"]["num_levels"]),
            "langevin_steps": config["sampler"]["langevin_steps"],
            "labels": [
                {"name": str(label["name"]), "values": list(map(str, label["values"]))}
                for label in config["labels"]
            ],
            "networks": {role: index[role] and str(index[role][1]) for role in NETWORKS},
            "backbones": {role: _backbone(folder, role) for role in NETWORKS if index[role]},
        }
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{folder}: the config is damaged or of another format ({error!r:.200})"
        ) from None


def _backbone(folder: Path, role: str) -> str | None:
    from cdrl_infer.storage.folder import CONFIG
    from cdrl_infer.untrusted import read_json

    backbone = read_json(folder, f"{role}/{CONFIG}").get("backbone")
    return None if backbone is None else str(backbone["class"])


def _read_card(card: str) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """Plain values of the front matter, the results in its model-index, and the text below."""
    from cdrl_infer.storage.card import results_in, split

    try:
        _, data, text = split(card)
    except ValueError:
        return {}, [], card  # broken front matter; the text can still be read
    try:
        found = results_in(data)[1]
    except (AttributeError, LookupError, TypeError, ValueError):
        found = []
    front = {key: data[key] for key in KEPT if key in data and _is_plain(data[key])}
    results = [
        {
            "dataset": result.dataset_name,
            "metric": result.metric_name or result.metric_type,
            "value": result.metric_value,
            "settings": result.metric_args,
        }
        for result in found
    ]
    return front, [one for one in results if all(map(_is_plain, one.values()))], text


def _is_plain(value: object) -> bool:
    """Whether a value is a text, a number, or a short flat list or object."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return len(value) <= 200 and all(isinstance(v, (str, int, float)) for v in value)
    return value is None or isinstance(value, (str, int, float))


def _summary(facts: dict[str, Any]) -> str:
    """One line for each fact."""
    image, steps = facts["image"], facts["langevin_steps"]
    labels = "; ".join(f"{a['name']}: {listing(a['values'])}" for a in facts["labels"])
    rows: list[tuple[str, object]] = [
        ("model", facts["model"] + (f", commit {facts['commit'][:7]}" if facts["commit"] else "")),
        ("images", f"{image['height']} × {image['width']}, {image['channels']} channel(s)"),
        ("labels", labels or "none: unconditional"),
        ("levels", f"{facts['levels']}, {steps} Langevin steps at each"),
        *(
            (
                role,
                (name or "none") + (f" on a {on}" if (on := facts["backbones"].get(role)) else ""),
            )
            for role, name in facts["networks"].items()
        ),
        ("format", f"{facts['format_version']}, written by cdrl {facts['library_version']}"),
        ("licence", _stated(facts.get("license"))),
        ("data", _stated(facts.get("datasets"))),
    ]
    for file in facts["weights"]:
        kinds = [f"{n:,} values in {TYPES.get(k, k)}" for k, n in (file["values"] or {}).items()]
        size = [f"{file['bytes'] / 1e6:.1f} MB"]
        rows.append(("weights", f"{file['file']}: {', '.join(size + kinds)}"))
    for one in facts["results"]:
        settings = "".join(f", {k} {v}" for k, v in (one["settings"] or {}).items())
        rows.append(("result", f"{one['metric']} {one['value']} on {one['dataset']}{settings}"))
    return "\n".join(f"{name:12} {shown(value, LONGEST)}" for name, value in rows)


def _stated(value: object) -> str:
    return listing(value) if isinstance(value, list) else str(value or "not stated")


def _text_of(card: str) -> str:
    """The text of a card, cut where it is long."""
    lines = [printable(line) for line in card.strip().expandtabs(4).splitlines()]
    text = "\n".join(lines)
    cut = f"\n… ({len(text):,} characters in all; --json prints them)"
    return text if len(text) <= MAX_CARD else text[:MAX_CARD] + cut
