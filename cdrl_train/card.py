"""The model card of a trained model: what it is, how it was made, and how to make it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from cdrl_infer.errors import listing
from cdrl_infer.model import CDRLModel
from cdrl_infer.storage import card
from cdrl_train.config import TrainConfig
from cdrl_train.presets import is_preset, preset


def render(
    model: CDRLModel,
    config: TrainConfig,
    *,
    data: str,
    licence: str | None = None,
    datasets: Sequence[str] = (),
) -> str:
    """Markdown with the front matter that the Hub reads, without measurements.

    Args:
        model: the model with its training record.
        config: options of the run.
        data: name of the training data.
        licence, datasets: see `cdrl_infer.storage.card.render`.
    """
    record = model.training
    total = config.total_steps
    stopped = {"taken": f"after {record['steps']:,} of these {total:,} steps"}
    if is_preset(config.name):
        command = ["cdrl-train", "--preset", config.name, "--data", data, "--out", config.name]
        for assignment in config.assignments(preset(config.name)):
            command += ["--set", assignment]
    else:
        command = ["cdrl-train", "--config", "options.json", "--data", data, "--out", config.name]
    start = {"started from": record["init_from"]} if "init_from" in record else {}
    for name in start.values():
        command += ["--init-from", name]
    facts = {
        "data": data,
        **(
            {"held out": listing(record["held_out_classes"])}
            if "held_out_classes" in record
            else {}
        ),
        **start,
        **{
            label.replace("_", " "): ", ".join(
                filter(
                    None,
                    (
                        f"{phase.steps:,} steps of {phase.batch_size} images",
                        phase.make_objective().summary(),
                    ),
                )
            )
            for label, phase in zip(config.labels, config.phases, strict=True)
        },
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
    method = config.phases[-1].make_objective().method
    return card.render(
        model,
        config.name,
        facts=facts,
        text=text,
        method=method,
        licence=licence,
        datasets=datasets,
    )
