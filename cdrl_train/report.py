"""The curves of a run as one HTML page with SVG charts, without scripts and external files."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from cdrl_infer.files import replaced_file
from cdrl_train.engine.log import Log
from cdrl_train.objectives import OBJECTIVES

REPORT = "report.html"
POINTS = 400  # largest number of points of a curve; longer curves show means of neighbours
WIDTH, HEIGHT = 460, 220
LEFT, TOP, BOTTOM = 62, 8, 24  # margins of a chart
HUES = (210, 25, 130, 350, 275, 45, 180, 310)
LOG_FROM = 30.0  # the scale is logarithmic if positive values differ by more than this factor
NOT_DRAWN = {"step", "images", "hours", "lr_scale", "back_to", "halvings"}
TITLES = {
    "loss": "Losses",
    "contradiction": "How far adjacent levels contradict each other, nats",
    "grad_norm": "Gradient norms before clipping",
    "lr": "Learning rates",
    "images_per_second": "Images per second",
    "seconds_per_step": "Seconds per step",
}
STYLE = """
:root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif; }
body { max-width: 1000px; margin: 2em auto; padding: 0 1em; }
main { display: flex; flex-wrap: wrap; gap: 1.5em; }
figure { margin: 0; width: 460px; } figcaption { font-weight: 600; }
svg { width: 100%; } text { font-size: 10px; fill: currentColor; }
.grid { stroke: currentColor; opacity: .15; } .curve { fill: none; stroke-width: 1.4; }
.key span { display: inline-block; margin-right: 1em; } .key i { font-style: normal; }
img { max-width: 100%; image-rendering: pixelated; }
"""


class Curve(NamedTuple):
    """One logged number during the run."""

    name: str
    steps: list[float]
    values: list[float]


def write_report(run: Path) -> Path | None:
    """Write ``report.html`` from ``metrics.jsonl`` in the folder of a run; None if the log is empty.

    Raises:
        OSError: the page cannot be written.
    """
    rows, events = read_log(run)
    if not rows:
        return None
    pictures = sorted((run / "samples").glob("step-*.png"))
    target = run / REPORT
    with replaced_file(target) as new:
        new.write_text(_page(run.resolve().name, rows, events, pictures), encoding="utf-8")
    return target


def read_log(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The result lines and the event lines of a log, without damaged lines."""
    lines = Log(run).entries()
    return [x for x in lines if "event" not in x], [x for x in lines if "event" in x]


def _page(
    name: str,
    rows: Sequence[dict[str, Any]],
    events: Sequence[dict[str, Any]],
    pictures: Sequence[Path],
) -> str:
    last = rows[-1]
    borders = [
        float(before["step"])
        for before, after in itertools.pairwise(rows)
        if before["phase"] != after["phase"]
    ]
    titles = _titles()
    charts = "\n".join(
        _chart(titles.get(group, group), curves, borders) for group, curves in _groups(rows, titles)
    )
    facts = (
        f"step {last['step']:,} · {last['images']:,} images · {last['hours']:.2f} hours · "
        f"{last['phase'].replace('_', ' ')}"
    )
    told = "".join(f"<li>{escape(json.dumps(event))}</li>" for event in events)
    shown = "".join(
        f'<figure><figcaption>{escape(path.stem)}</figcaption><img alt="samples" '
        f'src="samples/{escape(path.name)}"></figure>'
        for path in pictures[-1:]
    )
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(name)}</title>'
        f"<style>{STYLE}</style>\n<h1>{escape(name)}</h1>\n<p>{facts}</p>\n"
        f"{f'<ul>{told}</ul>' if told else ''}<main>\n{shown}\n{charts}\n</main></html>\n"
    )


def _titles() -> dict[str, str]:
    """The titles of the charts by group, in the order of the page: loss, objectives, others."""
    loss = {"loss": TITLES["loss"]}
    own = {key: title for kind in OBJECTIVES.values() for key, title in kind.titles.items()}
    return {**loss, **own, **TITLES}


def _groups(
    rows: Sequence[dict[str, Any]], titles: Mapping[str, str]
) -> Iterable[tuple[str, list[Curve]]]:
    """The groups of curves that share a chart, in the order of the titles."""
    groups: dict[str, dict[str, Curve]] = {}
    for row in rows:
        for key, value in row.items():
            if key in NOT_DRAWN or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            group, _, name = key.partition("/")
            curve = groups.setdefault(group, {}).setdefault(name, Curve(name, [], []))
            curve.steps.append(float(row["step"]))
            curve.values.append(float(value))
    order = [*titles, *sorted(groups.keys() - titles.keys())]
    for group in order:
        if group in groups:
            yield group, [_thinned(curve) for _, curve in sorted(groups[group].items())]


def _thinned(curve: Curve) -> Curve:
    size = -(-len(curve.steps) // POINTS)

    def means(values: Sequence[float]) -> list[float]:
        parts = (values[k : k + size] for k in range(0, len(values), size))
        return [sum(part) / len(part) for part in parts]

    return Curve(curve.name, means(curve.steps), means(curve.values))


def _chart(title: str, curves: Sequence[Curve], borders: Sequence[float]) -> str:
    values = [value for curve in curves for value in curve.values]
    steps = [step for curve in curves for step in curve.steps]
    low, high = min(values), max(values)
    logarithmic = low > 0 and high > LOG_FROM * low
    scale = math.log10 if logarithmic else float
    bottom, top = scale(low), scale(high)
    span = (top - bottom) or max(abs(top), 1.0) * 1e-3
    first, length = min(steps), (max(steps) - min(steps)) or 1.0

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - 6) * (step - first) / length

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (scale(value) - bottom) / span)

    parts = []
    for k in range(5):
        height = bottom + span * k / 4
        shown = 10**height if logarithmic else height
        at = y(shown)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{at + 3:.1f}" text-anchor="end">{shown:.3g}</text>')
    for step, anchor in ((first, "start"), (first + length, "end")):
        parts.append(
            f'<text x="{x(step):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{step:,.0f}</text>'
        )
    for border in borders:
        parts.append(
            f'<line class="grid" stroke-dasharray="4" x1="{x(border):.1f}" x2="{x(border):.1f}" '
            f'y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )
    key = []
    for k, curve in enumerate(curves):
        colour = f"hsl({HUES[k % len(HUES)]} 70% 50%)"
        points = " ".join(
            f"{x(s):.1f},{y(v):.1f}" for s, v in zip(curve.steps, curve.values, strict=True)
        )
        parts.append(f'<polyline class="curve" stroke="{colour}" points="{points}"/>')
        label = escape(f"{curve.name} {curve.values[-1]:.4g}".strip())
        key.append(f'<span><i style="color:{colour}">■</i> {label}</span>')
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
        f'<div class="key">{"".join(key)}</div></figure>'
    )
