"""The model card of a trained model: what it is, how it was made, and how to make it again."""

from __future__ import annotations

import json
import shlex

from cdrl_infer.checkpoint import CDRLModel
from cdrl_train.config import TrainConfig
from cdrl_train.presets import preset


def render(model: CDRLModel, config: TrainConfig, *, data: str) -> str:
    """Markdown with the front matter the Hub reads; figures are to be added once measured.

    Args:
        model: with its training record.
        config: the run's.
        data: what it was trained on, as the user named it.
    """
    record = model.training
    warm, cooperative = config.warm_start, config.cooperative
    command = ["cdrl-train", "--preset", config.name, "--data", data, "--out", config.name]
    for assignment in config.assignments(preset(config.name)):
        command += ["--set", assignment]
    count = {
        role: sum(p.numel() for p in getattr(model, role).parameters())
        for role in ("ebm", "initializer")
    }
    labels = "; ".join(f"{a.name}: {', '.join(a.values)}" for a in model.labels) or "none"
    channels, height, width = model.image.shape
    return f"""---
library_name: cdrl
pipeline_tag: unconditional-image-generation
tags: [energy-based-model, cdrl]
---

# {config.name}

A CDRL model (Cooperative Diffusion Recovery Likelihood, arXiv 2309.05153): an energy-based model over
{model.schedule.num_levels} noise levels and its initializer.

| | |
|---|---|
| images | {height} × {width}, {channels} channel{"s" if channels > 1 else ""} |
| labels | {labels} |
| EBM | {type(model.ebm).__name__}, {count["ebm"]:,} values |
| initializer | {type(model.initializer).__name__}, {count["initializer"]:,} values |
| data | {data} |
| warm start | {warm.steps:,} steps of {warm.batch_size} images |
| cooperative phase | {cooperative.steps:,} steps of {cooperative.batch_size} images, \
K = {cooperative.langevin_steps} |
| trained on | {record["images"]:,} images in {record["hours"]:.2f} hours |

Trained by

    {shlex.join(command)}

with these options:

```json
{json.dumps(config.to_dict(), indent=2)}
```
"""
