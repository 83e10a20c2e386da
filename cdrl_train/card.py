"""The model card of a trained model: what it is, how it was made, and how to make it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from cdrl_infer.model import CDRLModel
from cdrl_infer.storage import card
from cdrl_train.config import TrainConfig
from cdrl_train.presets import preset


def render(
    model: CDRLModel,
    config: TrainConfig,
    *,
    data: str,
    licence: str | None = None,
    datasets: Sequence[str] = (),
) -> str:
    """Markdown with the front matter the Hub reads; figures are to be added once measured.

    Args:
        model: with its training record.
        config: the run's.
        data: what it was trained on, as the user named it.
        licence, datasets: see `cdrl_infer.storage.card.render`.
    """
    record = model.training
    warm, cooperative = config.warm_start, config.cooperative
    total = warm.steps + cooperative.steps
    stopped = {"taken": f"after {record['steps']:,} of these {total:,} steps"}
    command = ["cdrl-train", "--preset", config.name, "--data", data, "--out", config.name]
    for assignment in config.assignments(preset(config.name)):
        command += ["--set", assignment]
    facts = {
        "data": data,
        "warm start": f"{warm.steps:,} steps of {warm.batch_size} images",
        "cooperative phase": f"{cooperative.steps:,} steps of {cooperative.batch_size} images, "
        f"K = {cooperative.langevin_steps}",
        **(stopped if record["steps"] < total else {}),
        "trained on": f"{record['images']:,} images in {record['hours']:.2f} hours",
    }
    text = f"""Trained by

    {shlex.join(command)}

with these options:

```json
{config.to_json()}
```
"""
    return card.render(
        model, config.name, facts=facts, text=text, licence=licence, datasets=datasets
    )
