"""`cdrl-hub info`: describe a model without downloading its weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from cdrl_infer.errors import CheckpointError, listing

TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
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
        click.echo(_printable("\n".join(_summary(facts)) + "\n\n" + facts["card"].strip()))


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
    from huggingface_hub import ModelCard

    try:
        parsed: Any = ModelCard(card, ignore_metadata_errors=True)
    except Exception:  # broken YAML; the text can still be read
        return {}, [], card
    data = parsed.data.to_dict()
    front = {key: data[key] for key in KEPT if key in data and _is_plain(data[key])}
    results = [
        {
            "dataset": result.dataset_name,
            "metric": result.metric_name or result.metric_type,
            "value": result.metric_value,
            "settings": result.metric_args,
        }
        for result in parsed.data.eval_results or ()
    ]
    return front, [one for one in results if all(map(_is_plain, one.values()))], parsed.text


def _is_plain(value: object) -> bool:
    """Whether a value is a text, a number, or a short flat list or object; YAML bombs are not."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return len(value) <= 100 and all(isinstance(v, (str, int, float)) for v in value)
    return value is None or isinstance(value, (str, int, float))


def _summary(facts: dict[str, Any]) -> list[str]:
    """One line for each fact."""
    image, steps = facts["image"], facts["langevin_steps"]
    rows = {
        "model": facts["model"] + (f", commit {facts['commit'][:7]}" if facts["commit"] else ""),
        "images": f"{image['height']} × {image['width']}, {image['channels']} channel(s)",
        "labels": "; ".join(f"{a['name']}: {listing(a['values'])}" for a in facts["labels"]),
        "levels": f"{facts['levels']}, {steps} Langevin steps at each",
        **{
            role: (name or "none") + (f" on a {on}" if (on := facts["backbones"].get(role)) else "")
            for role, name in facts["networks"].items()
        },
        "format": f"{facts['format_version']}, written by cdrl {facts['library_version']}",
        "licence": _stated(facts.get("license")),
        "data": _stated(facts.get("datasets")),
    }
    rows["labels"] = rows["labels"] or "none: unconditional"
    lines = [f"{name:12} {value}" for name, value in rows.items()]
    for file in facts["weights"]:
        kinds = [f"{n:,} values in {TYPES.get(k, k)}" for k, n in (file["values"] or {}).items()]
        size = [f"{file['bytes'] / 1e6:.1f} MB"]
        lines.append(f"{'weights':12} {file['file']}: {', '.join(size + kinds)}")
    for one in facts["results"]:
        settings = "".join(f", {k} {v}" for k, v in (one["settings"] or {}).items())
        lines.append(f"{'result':12} {one['metric']} {one['value']} on {one['dataset']}{settings}")
    return lines


def _stated(value: object) -> str:
    return listing(value) if isinstance(value, list) else str(value or "not stated")


def _printable(text: str) -> str:
    """Remove control characters, with which a card could write over the terminal."""
    return re.sub(r"[^\n\t -~\u00a0-\U0010ffff]", "", text)
