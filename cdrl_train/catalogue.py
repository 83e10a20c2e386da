"""A table of the presets: what they train on, how large they are, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator

from cdrl_train.config import DataConfig
from cdrl_train.data.sources import stand_in
from cdrl_train.dry_run import amount
from cdrl_train.presets import NAMES, preset
from cdrl_train.presets.counted import COUNTED

A100 = 0.25 * 312e12  # FLOP/s of an A100 in bfloat16 at a quarter of its peak


def table() -> Iterator[str]:
    """The lines of the table."""
    yield f"{'preset':22}  {'images':14}  {'values':>7}  {'seen':>6}  {'cost':>22}  data"
    for name in NAMES:
        config = preset(name)
        seen = sum(phase.steps * phase.batch_size for phase in config.phases)
        images, values, cost = "your own", "", "ask --dry-run"
        if config.data.source:
            images = _images(config.data.source, config.data)
            counted = COUNTED[name]
            values, cost = f"{counted.values / 1e6:.3g} M", _cost(counted.flops)
        data = config.data.source or "your own, --data"
        yield f"{name:22}  {images:14}  {values:>7}  {_short(seen):>6}  {cost:>22}  {data}"
    yield ""
    yield (
        "values: parameters of both networks. seen: images in all steps. cost: operations, and hours of "
        "an A100 in bfloat16 at 25 % of its peak, counted, not measured. The first two phases of "
        "fashion-mnist took 1.3 hours on two CPU cores, toy-2d takes a minute. "
        "--dry-run times a preset on this machine."
    )


def _images(source: str, options: DataConfig) -> str:
    channels, height, width = stand_in(source, options).images.shape[1:]
    return f"{height} x {width}" + {1: " grey", 3: " colour"}.get(channels, f" x {channels}")


def _cost(flops: float) -> str:
    hours = flops / A100 / 3600
    return amount(flops, "FLOP") + (f", {hours:,.0f} h" if hours >= 1 else "")


def _short(count: int) -> str:
    return f"{count / 1e6:.3g} M"
