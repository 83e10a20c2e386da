"""What a run shows while it trains: a bar in the terminal, and accelerate's trackers."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from cdrl_infer.errors import printable
from cdrl_train.config import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cdrl_train.engine.trainer import Trainer

NOT_CURVES = {"step", "phase", "event", "hours"}


def tell(text: str) -> None:
    """Print a line on stderr, above any progress bar. Do nothing if the terminal is closed."""
    with suppress(OSError):
        tqdm.write(printable(text), file=sys.stderr)


class Trackers:
    """TensorBoard, W&B or trackio, as chosen for the accelerator; only the main process writes.

    Args:
        accelerator: from `cdrl_train.engine.distributed.make_accelerator`.
        config: options of the run, shown next to its curves.
        run: folder of the run, which gives it its name.
        step: step at which the run starts or resumes; TensorBoard's later points are dropped.
    """

    def __init__(self, accelerator: Accelerator, config: TrainConfig, run: Path, step: int) -> None:
        self.accelerator = accelerator
        name = run.resolve().name
        accelerator.init_trackers(
            config.name,
            init_kwargs={
                "tensorboard": {"purge_step": step + 1},
                "wandb": {"name": name},
                "trackio": {"name": name},
            },
        )
        for tracker in accelerator.trackers:
            if tracker.name == "tensorboard":  # its own form would open another run
                text = config.to_json()
                tracker.log({"config": f"```json\n{text}\n```"}, step)
            else:
                tracker.store_init_configuration(config.to_dict())

    def log(self, line: dict[str, Any]) -> None:
        """Send a line of ``metrics.jsonl``."""
        values = {name: value for name, value in line.items() if name not in NOT_CURVES}
        self.accelerator.log(values, step=line["step"])

    def picture(self, path: Path, step: int) -> None:
        """Send a grid of samples to the trackers that take pictures."""
        with Image.open(path) as file:
            image = file.convert("RGB")
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                pixels = np.asarray(image)[None]
                tracker.log_images({"samples": pixels}, step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({"samples": [image]}, step)


class Progress:
    """A bar that counts images, with their speed and the time left; no bar in a file or a pipe.

    Args:
        run: the run, at the step where it starts or resumes.
    """

    def __init__(self, run: Trainer) -> None:
        self.bar = tqdm(
            total=run.config.total_images,
            initial=run.state.images_seen,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            disable=None if run.is_main else True,
            file=sys.stderr,
        )
        self.total = run.config.total_images

    def advance(self, run: Trainer) -> None:
        """Move the bar to where the run is; back if the run diverged."""
        self.bar.update(run.state.images_seen - self.bar.n)

    def log(self, line: dict[str, Any]) -> None:
        """Print a short form of a line of ``metrics.jsonl``."""
        shown = ("loss/", "grad_norm/")
        values = "  ".join(f"{k} {v:.4g}" for k, v in line.items() if k.startswith(shown))
        speed = line["images_per_second"]
        left = tqdm.format_interval((self.total - line["images"]) / speed)
        tell(
            f"{line['phase']} {line['step']}  {values}  {speed:.3g} images/s  {left} left at this speed"
        )

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()
