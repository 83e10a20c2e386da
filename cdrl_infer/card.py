"""The model card: front matter that the Hub reads, and the facts of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from cdrl_infer.checkpoint import NETWORKS, PICTURE, CDRLModel
from cdrl_infer.errors import listing

PAPER = (
    "[Learning Energy-Based Models by Cooperative Diffusion Recovery Likelihood]"
    "(https://arxiv.org/abs/2309.05153) (Zhu, Xie, Wu, Gao, ICLR 2024)"
)


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


def _network(network: object) -> str:
    count = sum(p.numel() for p in network.parameters())  # type: ignore[attr-defined]
    return f"{type(network).__name__}, {count:,} values"
