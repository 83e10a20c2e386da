"""`cdrl-hub info`: what a model is, before any of its weights are downloaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from cdrl_infer.errors import CheckpointError, listing

TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
KEPT = ("license", "datasets", "pipeline_tag", "tags")  # of the front matter of a card


@click.command()
@click.argument("model", metavar="USER/MODEL|FOLDER|NAME")
@click.option("--revision", metavar="NAME", help="Branch, tag or commit of a repository. [main]")
@click.option("--subfolder", metavar="PATH", help="Where in it the model lies.")
@click.option("--local-files-only", is_flag=True, help="Look up no more than the cache.")
@click.option("--json", "as_json", is_flag=True, help="All of it as JSON.")
def info(
    model: str, revision: str | None, subfolder: str | None, local_files_only: bool, as_json: bool
) -> None:
    """Tell what a model is.

    Labels, sizes, figures and card of a repository, a folder or a bundled model; no weights are
    downloaded, of those only the headers: cdrl-hub info user/model.
    """
    facts = gather(model, revision, subfolder, local_files_only)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        click.echo(_printable("\n".join(_summary(facts)) + "\n\n" + facts["card"].strip()))


def gather(
    model: str, revision: str | None, subfolder: str | None, local_files_only: bool
) -> dict[str, Any]:
    """All that `info` tells, as JSON holds it."""
    from cdrl_infer.storage import hub
    from cdrl_infer.storage.folder import CARD
    from cdrl_infer.untrusted import read_text

    found = hub.find(
        model,
        revision=revision,
        subfolder=subfolder,
        local_files_only=local_files_only,
        with_weights=False,
    )
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
    front, figures, text = _read_card(read_text(found.folder, CARD) or "")
    return {
        "model": found.name,
        "commit": found.commit,
        **config,
        "weights": weights,
        **front,
        "figures": figures,
        "card": text,
    }


def _read_config(folder: Path) -> dict[str, Any]:
    """What the configs tell, also those of a newer format as far as it is the same."""
    from cdrl_infer.networks.registry import NETWORKS
    from cdrl_infer.storage.folder import CONFIG, INDEX
    from cdrl_infer.untrusted import read_json

    config, index = read_json(folder, CONFIG), read_json(folder, INDEX)
    if config.get("library") != "cdrl":
        raise CheckpointError(f"{folder / CONFIG}: not the config of a CDRL model")
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
        }
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{folder}: a config that is damaged or of another format ({error!r:.200})"
        ) from None


def _read_card(card: str) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """The front matter's plain values, the figures of its model-index, and the text after it."""
    from huggingface_hub import ModelCard

    try:
        parsed: Any = ModelCard(card, ignore_metadata_errors=True)
    except Exception:  # YAML that nobody can read; the text is still worth reading
        return {}, [], card
    data = parsed.data.to_dict()
    front = {key: data[key] for key in KEPT if key in data and _is_plain(data[key])}
    figures = [
        {
            "dataset": result.dataset_name,
            "metric": result.metric_name or result.metric_type,
            "value": result.metric_value,
            "settings": result.metric_args,
        }
        for result in parsed.data.eval_results or ()
    ]
    figures = [figure for figure in figures if all(map(_is_plain, figure.values()))]
    return front, figures, parsed.text


def _is_plain(value: object) -> bool:
    """Texts, numbers, and short flat lists and objects of those: YAML can hide bombs in others."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return len(value) <= 100 and all(isinstance(v, (str, int, float)) for v in value)
    return value is None or isinstance(value, (str, int, float))


def _summary(facts: dict[str, Any]) -> list[str]:
    """One line a fact."""
    image, steps = facts["image"], facts["langevin_steps"]
    rows = {
        "model": facts["model"] + (f", commit {facts['commit'][:7]}" if facts["commit"] else ""),
        "images": f"{image['height']} × {image['width']}, {image['channels']} channel(s)",
        "labels": "; ".join(f"{a['name']}: {listing(a['values'])}" for a in facts["labels"]),
        "levels": f"{facts['levels']}, {steps} Langevin steps at each",
        **{role: name or "none" for role, name in facts["networks"].items()},
        "format": f"{facts['format_version']}, written by cdrl {facts['library_version']}",
        "licence": _told(facts.get("license")),
        "data": _told(facts.get("datasets")),
    }
    rows["labels"] = rows["labels"] or "none: unconditional"
    lines = [f"{name:12} {value}" for name, value in rows.items()]
    for file in facts["weights"]:
        kinds = [f"{n:,} values in {TYPES.get(k, k)}" for k, n in (file["values"] or {}).items()]
        size = [f"{file['bytes'] / 1e6:.1f} MB"]
        lines.append(f"{'weights':12} {file['file']}: {', '.join(size + kinds)}")
    for figure in facts["figures"]:
        settings = "".join(f", {k} {v}" for k, v in (figure["settings"] or {}).items())
        lines.append(
            f"{'figure':12} {figure['metric']} {figure['value']} on {figure['dataset']}{settings}"
        )
    return lines


def _told(value: object) -> str:
    return listing(value) if isinstance(value, list) else str(value or "not told")


def _printable(text: str) -> str:
    """Without control characters, with which a card could write over the terminal."""
    return re.sub(r"[^\n\t -~\u00a0-\U0010ffff]", "", text)
