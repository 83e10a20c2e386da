"""The model card: front matter that the Hub reads, and the facts of a model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cdrl_infer.errors import CheckpointError, listing
from cdrl_infer.model import CDRLModel
from cdrl_infer.networks.registry import NETWORKS
from cdrl_infer.storage.folder import PICTURE

PAPER = (
    "[Learning Energy-Based Models by Cooperative Diffusion Recovery Likelihood]"
    "(https://arxiv.org/abs/2309.05153) (Zhu, Xie, Wu, Gao, ICLR 2024)"
)

FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(?P<front>.*?)^---[ \t]*(?:\r?\n|\Z)", re.S | re.M)
TOP_KEY = re.compile(r"[^\s#\-\]}]")  # a line of YAML that begins something new


def render(
    model: CDRLModel,
    title: str,
    *,
    facts: Mapping[str, str],
    text: str,
    licence: str | None = None,
    datasets: Sequence[str] = (),
) -> str:
    """Markdown with front matter; figures are to be added once measured (docs/format.md).

    Args:
        model: what the card is of.
        title: its heading.
        facts: rows for the table, after those that the model tells itself.
        text: what follows the table.
        licence: an identifier of the Hub's, as "mit"; None leaves it to whoever shares the model.
        datasets: names of data sets on the Hub.
    """
    front: dict[str, object] = {
        "library_name": "cdrl",
        "pipeline_tag": "unconditional-image-generation",
        "license": licence,
        "datasets": list(datasets),
        "tags": ["energy-based-model", "cdrl"],
    }
    # JSON is YAML, and quotes what would mean something else.
    matter = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items() if value)
    channels, height, width = model.image.shape
    rows = {
        "images": f"{height} × {width}, {channels} channel{'s' if channels > 1 else ''}",
        "labels": "; ".join(f"{a.name}: {listing(a.values)}" for a in model.labels) or "none",
        **{role: _network(getattr(model, role)) for role in NETWORKS},
        **facts,
    }
    cells = {name: value.replace("|", "\\|") for name, value in rows.items()}
    table = "\n".join(f"| {name} | {value} |" for name, value in cells.items())
    picture = f"\n![Samples]({PICTURE})\n" if model.samples else ""
    return f"""---
{matter}
---

# {title}

A CDRL model, an energy-based model over {model.schedule.num_levels} noise levels and its initializer:
{PAPER}.
{picture}
```python
from cdrl_infer import CDRLPipeline

pipe = CDRLPipeline.from_pretrained("THIS REPOSITORY OR FOLDER")
pipe(num_images=4).images
```

| | |
|---|---|
{table}

{text}"""


def with_figures(
    card: str,
    entries: Sequence[Mapping[str, Any]],
    *,
    dataset: Mapping[str, str] | None,
    model: str,
) -> str:
    """The card with these figures in its ``model-index``; all else stays as it was written.

    A figure takes the place of the one of the same data set and split, type and name; others stay.

    Args:
        card: Markdown, with front matter or without.
        entries: of ``metrics``: type, name, value, args.
        dataset: type, name and split of the data; None where there are no figures.
        model: its name, for a card that names none.

    Raises:
        CheckpointError: front matter that cannot be read, or not be edited line by line.
    """
    import yaml  # huggingface-hub needs it too

    found = FRONT_MATTER.match(card)
    front, rest = (found["front"], card[found.end() :]) if found else ("", card)
    try:
        data = yaml.safe_load(front) or {}
        index = data.get("model-index") or [{"name": model, "results": []}]
        results = index[0].setdefault("results", [])
        if dataset is not None:
            _add(results, entries, dataset)
        changed = {**data, "model-index": index}
        block = yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True)
        lines = front.splitlines(keepends=True)
        start = next((k for k, s in enumerate(lines) if s.startswith("model-index:")), len(lines))
        stop = next(
            (k for k in range(start + 1, len(lines)) if TOP_KEY.match(lines[k])), len(lines)
        )
        before = "".join(lines[:start])
        before += "" if not before or before.endswith("\n") else "\n"
        new = before + block + "".join(lines[stop:])
        if yaml.safe_load(new) != changed:
            raise ValueError("its model-index is not a block of lines of its own")
    except (yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the card's front matter cannot be edited ({reason:.200}); expected YAML between two "
            "lines of ---, with a model-index as docs/format.md shows"
        ) from error
    return f"---\n{new}{'' if new.endswith(chr(10)) else chr(10)}---\n{rest}"


def _add(
    results: list[Any], entries: Sequence[Mapping[str, Any]], dataset: Mapping[str, str]
) -> None:
    """Put the figures into the results of their data set, which are made if need be."""
    for result in results:
        known = result["dataset"]
        if (known["type"], known.get("split")) == (dataset["type"], dataset.get("split")):
            break
    else:
        task = {"type": "unconditional-image-generation"}
        result = {"task": task, "dataset": dict(dataset), "metrics": []}
        results.append(result)
    metrics = result.setdefault("metrics", [])
    for entry in entries:
        same = [
            k
            for k, old in enumerate(metrics)
            if (old["type"], old.get("name")) == (entry["type"], entry["name"])
        ]
        if same:
            metrics[same[0]] = dict(entry)
        else:
            metrics.append(dict(entry))


def _network(network: object) -> str:
    count = sum(p.numel() for p in network.parameters())  # type: ignore[attr-defined]
    return f"{type(network).__name__}, {count:,} values"
