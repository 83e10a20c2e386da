"""What is seen of a run: results by transition, trackers, the bar and the report."""

from __future__ import annotations

import io
import json
import math
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker
from PIL import Image
from runs import fit, lines_of, tiny, trainer

from cdrl_infer.errors import InputError
from cdrl_train import report
from cdrl_train.engine.distributed import make_accelerator, shares
from cdrl_train.engine.metrics import Results
from cdrl_train.report import POINTS, read_log, write_report
from cdrl_train.tracking import Progress, Trackers, tell

LINE = {
    "step": 3,
    "phase": "cooperative",
    "images": 24,
    "hours": 0.1,
    "images_per_second": 50.0,
    "loss/ebm": 0.25,
    "displacement/2": 1.5,
}


def test_results_are_sums_by_transition() -> None:
    results = Results(3, torch.device("cpu"))
    results.add("loss", torch.tensor(2.0, requires_grad=True))
    results.add("loss", torch.tensor(4.0))
    for _ in range(2):
        results.add_by_level("moved", torch.tensor([1.0, 2.0, 4.0]), torch.tensor([3, 1, 3]))
    norms = {"ebm": torch.tensor(0.5)}
    found, same = results.shared(make_accelerator(device=torch.device("cpu")), norms)
    assert same == {"ebm": 0.5}
    assert found == {"loss": (6.0, 2), "moved/1": (4.0, 2), "moved/3": (10.0, 4)}
    assert found["moved/3"].mean == 2.5


def test_a_line_of_the_log_has_results_of_every_kind(tmp_path: Path) -> None:
    fit(trainer(tiny(log_every=4), tmp_path))
    warm, last = lines_of(tmp_path)
    for line, kinds in (
        (warm, ("score_matching", "regression")),
        (
            last,
            (
                *("energy_positive", "energy_negative", "energy_gap", "energy_gap_size"),
                *("displacement", "imitation", "score_matching"),
            ),
        ),
    ):
        for kind in kinds:
            assert {f"{kind}/{t}" for t in (1, 2, 3)} <= line.keys(), kind
        for network in ("ebm", "initializer"):
            assert {f"loss/{network}", f"grad_norm/{network}", f"lr/{network}"} <= line.keys()
    for t in (1, 2, 3):
        gap = last[f"energy_positive/{t}"] - last[f"energy_negative/{t}"]
        assert last[f"energy_gap/{t}"] == pytest.approx(gap, rel=1e-3, abs=1e-3)
        assert last[f"energy_gap_size/{t}"] >= abs(last[f"energy_gap/{t}"]) * (1 - 1e-4)
        assert last[f"displacement/{t}"] > 0
    # Warm-up over two of the four steps, then along a cosine to a tenth.
    expected = [1e-3 * rise * (0.1 + 0.45 * (1 + math.cos(math.pi * k / 4))) for k, rise in RISES]
    assert warm["lr/ebm"] == pytest.approx(sum(expected) / 4, rel=1e-4)
    seconds = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line in seconds:
        assert line["images_per_second"] == pytest.approx(8 / line["seconds_per_step"], rel=1e-3)


RISES = [(0, 0.5), (1, 1.0), (2, 1.0), (3, 1.0)]


class Listener(GeneralTracker):
    """A tracker that remembers; like W&B in what it takes."""

    name = "listener"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.heard.append(values)

    def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
        self.heard.append((step, values))

    def log_images(self, values: dict[str, Any], step: int | None = None) -> None:
        self.heard.append((step, values["samples"][0].size))


def test_trackers_get_the_options_the_results_and_the_samples(tmp_path: Path) -> None:
    accelerator = make_accelerator(device=torch.device("cpu"))
    listener = Listener()
    accelerator.log_with = [listener]
    curves = Trackers(accelerator, tiny(), tmp_path, 0)
    curves.log(LINE)
    Image.new("L", (6, 4)).save(tmp_path / "grid.png")
    curves.picture(tmp_path / "grid.png", 3)
    options, results, picture = listener.heard
    assert options == tiny().to_dict()
    shown = {"images", "images_per_second", "loss/ebm", "displacement/2"}
    assert results == (3, {name: LINE[name] for name in shown})
    assert picture == (3, (6, 4))


def test_tensorboard_shows_curves_and_samples_and_forgets_lost_steps(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("RGB", (6, 4), "red").save(tmp_path / "grid.png")
    logs = tmp_path / "run" / "logs"
    for begin, values in ((0, (1.0, 2.0, 3.0)), (1, (5.0, 6.0))):  # resumed from step 1
        accelerator = make_accelerator(
            device=torch.device("cpu"), trackers=["tensorboard"], logs=logs
        )
        curves = Trackers(accelerator, tiny(), tmp_path / "run", begin)
        for step, value in enumerate(values, begin + 1):
            curves.log({**LINE, "step": step, "loss/ebm": value})
        curves.picture(tmp_path / "grid.png", begin + 1)
        accelerator.end_training()
    events = EventAccumulator(str(logs / "tiny"))
    events.Reload()
    seen = [(event.step, event.value) for event in events.Scalars("loss/ebm")]
    assert seen == [(1, 1.0), (2, 5.0), (3, 6.0)]
    picture = Image.open(io.BytesIO(events.Images("samples")[-1].encoded_image_string))
    assert np.array_equal(np.asarray(picture.convert("RGB"))[0, 0], [255, 0, 0])
    assert "hours" not in events.Tags()["scalars"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("tensorbord", "did you mean 'tensorboard'"), ("wandb", "pip install wandb")],
)
def test_trackers_that_are_not_there(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(InputError, match=message):
        make_accelerator(trackers=[name])


def test_without_accelerate_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InputError, match=r"pip install 'cdrl\[train\]'"):
        make_accelerator()


def test_precision_is_each_runs_own() -> None:
    for precision, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        accelerator = make_accelerator(precision, torch.device("cpu"))
        with accelerator.autocast():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == dtype


def test_shares_are_a_partition() -> None:
    rows = [
        row
        for process in range(2)
        for share in shares(12, process=process, processes=2, parts=3, name="b")
        for row in range(12)[share]
    ]
    assert rows == list(range(12))


def test_the_bar_tells_speed_and_time_left_and_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    run = trainer(tiny(), tmp_path)
    run.state.images_seen = 8
    for stream, drawn in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        progress = Progress(run)
        run.state.images_seen = 32
        progress.advance(run)
        run.state.images_seen = 16
        progress.advance(run)
        progress.log(LINE)
        progress.bar.refresh()
        progress.close()
        text = stream.getvalue()
        assert "cooperative 3  loss/ebm 0.25  50 images/s  00:00 left" in text
        assert ("images/s]" in text or "images]" in text) is drawn
        assert ("16.0/64.0" in text) is drawn
        run.state.images_seen = 8


class Wellformed(HTMLParser):
    """Counts tags and text; knows of what was opened and not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.polylines: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag == "polyline":
            self.polylines.append(str(dict(attrs)["points"]))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_has_every_curve_and_the_newest_samples(tmp_path: Path) -> None:
    run = trainer(tiny(), tmp_path)
    (tmp_path / "samples").mkdir()
    for step in (2, 8):
        (tmp_path / "samples" / f"step-{step:08d}.png").touch()
    fit(run, on_end=lambda run: write_report(run.folder))
    page = (tmp_path / report.REPORT).read_text(encoding="utf-8")
    parsed = Wellformed(page)
    assert parsed.open == []
    curves = {k for line in lines_of(tmp_path) for k in line} - {"step", "phase", "images"}
    curves |= {"seconds_per_step", "images_per_second"}
    assert parsed.seen.count("polyline") == len(curves)
    assert 'src="samples/step-00000008.png"' in page and "step-00000002" not in page
    assert "step 8 · 64 images" in page and "http" not in page


def test_a_report_of_a_long_run_with_events_and_results_that_are_no_numbers(
    tmp_path: Path,
) -> None:
    rows = [
        {**LINE, "step": k, "phase": "score_matching", "loss/ebm": 10.0 ** (k / 500)}
        for k in range(1, 2001)
    ]
    rows[5]["loss/ebm"] = math.inf
    event = {"step": 7, "event": "diverged", "symptoms": {"<loss>": 1}}
    text = "".join(json.dumps(row) + "\n" for row in [*rows, event])
    damaged = b'{"step": 8, "phase": 1}\n[1]\n\xff\x00\x1c{\n' + b"[" * 9999 + b'\n{"step": 8'
    (tmp_path / "metrics.jsonl").write_bytes(text.encode() + damaged)
    assert read_log(tmp_path) == (rows, [event])
    assert write_report(tmp_path) == tmp_path / report.REPORT
    page = (tmp_path / report.REPORT).read_text(encoding="utf-8")
    parsed = Wellformed(page)
    assert parsed.open == [] and "&lt;loss&gt;" in page
    loss = parsed.polylines[0].split(" ")
    assert len(loss) <= POINTS
    # Exponential growth is a straight line on the log scale.
    heights = np.array([float(point.split(",")[1]) for point in loss])
    assert np.ptp(np.diff(heights)[1:-1]) < 0.4 and heights[0] > heights[-1]


def test_no_report_without_a_line(tmp_path: Path) -> None:
    assert write_report(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_folders_name_cannot_write_over_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tell("model written to  r\x1b[2J\udcff/model")
    assert capsys.readouterr().err == "model written to  r?[2J?/model\n"
