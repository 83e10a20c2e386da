"""`cdrl-score`: its table, plot and overlays, and what it says to bad input."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import CLASSES, make_model
from PIL import Image

from cdrl_infer import __version__
from cdrl_infer.cli.score import SCORES, _overlay_names, main
from cdrl_infer.errors import InputError, NumericalError
from cdrl_infer.images import to_pil
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring import plots
from cdrl_infer.scoring.scores import SCORES as REGISTRY
from cdrl_infer.storage.folder import STATISTICS, load_model, save_model
from cdrl_train.calibrate import calibrate

COLUMNS = ["file", "score", "p_value", "anomalous"]


def pixels(count: int, seed: int) -> np.ndarray:
    """(N, 8, 8) uint8: what the tiny model is calibrated with."""
    return np.random.default_rng(seed).integers(100, 160, (count, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def calibrated(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = load_model(folder)
    images = torch.from_numpy(pixels(80, 1))[:, None]
    found = calibrate(CDRLPipeline(model), images, data="greys", seed=4, progress=False)
    path = tmp_path_factory.mktemp("calibrated") / "tiny"
    save_model(dataclasses.replace(model, statistics=found), path)
    return path


@pytest.fixture(scope="module")
def scorer(calibrated: Path) -> CDRLPipeline:
    return CDRLPipeline.from_pretrained(calibrated)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Image.Image]:
    """Six greys and a white one, in images/, where the command then runs."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    made = [Image.fromarray(image) for image in [*pixels(6, 2), np.full((8, 8), 255, np.uint8)]]
    for k, image in enumerate(made):
        image.save(f"images/{k}.png")
    return made


@pytest.fixture
def score(calibrated: Path, pictures: list[Image.Image]) -> Any:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["--model", str(calibrated), *arguments])

    return run


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def values(rows: list[dict[str, str]]) -> list[float]:
    return [float(row["score"]) for row in rows]


def listed() -> list[str]:
    return sorted(str(p) for p in Path().rglob("*") if p.is_file())


def test_the_table_is_the_pipelines(
    score: Any, scorer: CDRLPipeline, pictures: list[Image.Image]
) -> None:
    before = listed()
    expected = scorer.score(pictures, threshold_fpr=0.05)
    result = score("images", "--threshold-fpr", "0.05", "--batch-size", "3")
    assert result.exit_code == 0, result.output
    rows = table(result.stdout)
    assert list(rows[0]) == COLUMNS
    assert [row["file"] for row in rows] == [str(Path("images", f"{k}.png")) for k in range(7)]
    assert values(rows) == pytest.approx(expected.scores.tolist(), rel=1e-4)
    assert [float(row["p_value"]) for row in rows] == expected.p_values.tolist()
    assert [row["anomalous"] for row in rows] == [
        json.dumps(odd) for odd in expected.anomalous.tolist()
    ]
    assert rows[-1]["anomalous"] == "true" and rows[-1]["p_value"] == str(1 / 41)
    count = int(expected.anomalous.sum())
    assert 1 <= count < 7
    assert result.stderr == (
        f"{count} of 7 images are anomalous: combined above {expected.threshold:.6g}\n"
    )
    assert listed() == before


def test_files_folders_and_patterns_each_once(score: Any, pictures: list[Image.Image]) -> None:
    Path("images/more").mkdir()
    Path("images/notes.txt").write_text("no picture")
    pictures[0].save("images/more/a[1].png")
    pictures[1].save("images/more/b.JPG", format="JPEG")
    for given, expected in (
        (["images/2.png", "images/1.png", "images/2.png"], ["2.png", "1.png"]),
        (["images/[01].png"], ["0.png", "1.png"]),
        (["images/more/a[1].png"], ["more/a[1].png"]),
        (["images/6.png", "images/more"], ["6.png", "more/a[1].png", "more/b.JPG"]),
        (["images/**/*.png"], ["0.png", *(f"{k}.png" for k in range(1, 7)), "more/a[1].png"]),
    ):
        result = score(*given, "--score", "complexity")
        assert (result.exit_code, result.stderr) == (0, "")
        assert [Path(row["file"]) for row in table(result.stdout)] == [
            Path("images") / name for name in expected
        ]


def test_csv_and_json_say_the_same(score: Any, scorer: CDRLPipeline) -> None:
    Path("old.csv").write_text("old")
    arguments = ("images", "--score", "energy", "--threshold-fpr", "0.2")
    written = score(*arguments, "--out", "old.csv")
    assert (written.exit_code, written.stdout) == (0, "")
    assert score(*arguments, "--out", "new.JSON").exit_code == 0
    shown = json.loads(score(*arguments, "--json").stdout)
    assert shown == json.loads(Path("new.JSON").read_text())
    threshold = scorer.model.statistics.threshold("energy", 0.2)
    facts = {
        "model": "tiny",
        "version": f"cdrl {__version__}",
        "score": "energy",
        "level": None,
        "seed": 4,
        "threshold_fpr": 0.2,
        "threshold": threshold,
    }
    assert facts.items() <= shown.items()
    rows = table(Path("old.csv").read_text())
    assert len(rows) == 7
    for row, image in zip(rows, shown["images"], strict=True):
        assert list(image) == COLUMNS
        assert row["file"] == image["file"]
        assert float(row["score"]) == image["score"]
        assert float(row["p_value"]) == image["p_value"]
        assert json.loads(row["anomalous"]) is image["anomalous"]


def test_every_score_and_what_is_not_calibrated(
    score: Any, scorer: CDRLPipeline, pictures: list[Image.Image], folder: Path
) -> None:
    assert tuple(REGISTRY) == SCORES
    for name in SCORES:
        rows = table(score("images", "--score", name).stdout)
        expected = scorer.score(pictures, name)
        assert values(rows) == pytest.approx(expected.scores.tolist(), rel=1e-4)
        assert {row["anomalous"] for row in rows} == {""}
    for options, asked in (
        (("--level", "2"), {"level": 2}),
        (("--seed", "5"), {"seed": 5}),
    ):
        result = score("images", "--score", "energy", *options)
        rows = table(result.stdout)
        expected = scorer.score(pictures, "energy", **asked)
        assert values(rows) == pytest.approx(expected.scores.tolist(), rel=1e-4)
        assert {row["p_value"] for row in rows} == {""}
        assert "no p_value: 'tiny' is calibrated for level 1 and seed 4 alone" in result.stderr
    bare = score("images", "--score", "energy", "--model", str(folder))
    assert (bare.exit_code, "cdrl-eval --calibrate" in bare.stderr) == (0, True)
    assert json.loads(score("images", "--score", "energy", "--seed", "5", "--json").stdout)[
        "images"
    ][0] | {"score": 0} == {"file": "images/0.png", "score": 0, "p_value": None, "anomalous": None}


def test_unreadable_files_are_named_and_the_others_scored(score: Any) -> None:
    good = table(score("images").stdout)
    whole = Path("images/0.png").read_bytes()
    Path("images/3b.png").write_bytes(whole[:-30])  # its header is whole
    Path("images/4b.png").write_text("no picture")
    Path("empty").mkdir()
    result = score("images", "missing.png", "none*.png", "empty", "--out", "scores.csv")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert all(line.startswith("cdrl-score: skipped: ") for line in lines)
    for name in ("images/3b.png", "images/4b.png", "missing.png", "none*.png", "empty: no images"):
        assert sum(f" {name}" in line for line in lines) == 1, name
    assert len(lines) == 5
    kept = table(Path("scores.csv").read_text())
    assert [row["file"] for row in kept] == [row["file"] for row in good]
    assert values(kept) == pytest.approx(values(good), rel=1e-4)


@pytest.mark.parametrize("size", [-30, 8])
def test_nothing_readable_is_no_empty_table(score: Any, size: int) -> None:
    Path("bad.png").write_bytes(Path("images/0.png").read_bytes()[:size])
    before = listed()
    result = score("bad.png", "--out", "a.csv", "--plot", "a.png", "--heatmap", "maps")
    assert (result.exit_code, result.stdout) == (1, "")
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("cdrl-score: skipped: bad.png cannot be read as an image: ")
    assert result.stderr.splitlines()[-1] == (
        "cdrl-score: error: none of the files could be read, nothing is written"
    )
    assert listed() == before


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CDRLPipeline, "score", lambda *a, **k: pytest.fail("worked"))


def test_other_sizes_are_refused_before_any_work(
    score: Any, scorer: CDRLPipeline, pictures: list[Image.Image], idle: None
) -> None:
    pictures[0].resize((16, 12)).save("images/large.png")
    pictures[0].resize((9, 9)).save("images/zlarge.png")
    result = score("images", "--out", "a.csv")
    assert result.exit_code == 2
    assert result.stderr == (
        "cdrl-score: error: images/large.png: expected a picture of 8 x 8 pixels (width x height), "
        "got 16 x 12; resize=True (--resize) fits it (2 such files); the images of 'tiny' have "
        "1 channel(s) of 8 x 8\n"
    )
    pictures[0].convert("RGB").save("images/colour.png")
    result = score("images", "--resize")
    assert result.exit_code == 2
    assert "colour.png: expected a picture of mode L for 1 channels, got RGB" in result.stderr
    assert "a.csv" not in os.listdir()


def test_resize(score: Any, scorer: CDRLPipeline, pictures: list[Image.Image]) -> None:
    large = pictures[0].resize((16, 12))
    large.save("large.png")
    rows = table(score("large.png", "images/1.png", "--resize").stdout)
    expected = scorer.score([large, pictures[1]], resize=True).scores
    assert values(rows) == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_failure_leaves_what_was_there(score: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("scores.csv").write_text("old")
    before, work, calls = listed(), CDRLPipeline.score, []
    for error, code, message in (
        (NumericalError("not finite"), 3, "error: images/4.png … images/6.png: not finite"),
        (KeyboardInterrupt(), 130, "cdrl-score: interrupted"),
    ):
        calls.clear()

        def fail(*args: Any, error: BaseException = error, **kwargs: Any) -> Any:
            calls.append(kwargs)
            if len(calls) == 2:
                raise error
            return work(*args, **kwargs)

        monkeypatch.setattr(CDRLPipeline, "score", fail)
        result = score(
            *("images", "--batch-size", "4", "--out", "scores.csv"),
            *("--plot", "plot.png", "--heatmap", "maps"),
        )
        assert (result.exit_code, result.stdout, len(calls)) == (code, "", 2)
        assert message in result.stderr
        assert listed() == before
        assert Path("scores.csv").read_text() == "old"


def outlined(polygon: Any) -> tuple[np.ndarray, np.ndarray]:
    """Edges and heights of the bins of a histogram drawn as steps."""
    x, y = polygon.get_xy().T
    return x[::2], y[1:-1:2]


def test_plot_shows_the_images_the_reference_and_the_threshold(
    score: Any, scorer: CDRLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    save = plots.save_figure
    monkeypatch.setattr(
        plots, "save_figure", lambda figure, *rest: (figures.append(figure), save(figure, *rest))
    )
    arguments = ("images", "--threshold-fpr", "0.05", "--plot", "plot.png", "--out", "a.json")
    assert score(*arguments).exit_code == 0
    assert score("images", "--plot", "b.png", "--score", "energy", "--level", "2").exit_code == 0
    told = json.loads(Path("a.json").read_text())
    (axes,), (bare,) = figures[0].axes, figures[1].axes
    *reference, outline = axes.patches
    edges, shares = outlined(outline)
    scores = [image["score"] for image in told["images"]]
    assert shares * 7 == pytest.approx(np.histogram(scores, edges)[0])
    held_out = scorer.model.statistics.scores["combined"].numpy()
    heights = np.array([bar.get_height() for bar in reference])
    assert heights * 40 == pytest.approx(np.histogram(held_out, edges)[0])
    assert sum(heights) == pytest.approx(1) and sum(shares) == pytest.approx(1)
    assert [line.get_xdata()[0] for line in axes.lines] == [told["threshold"]]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert any("greys (40)" in label for label in labels)
    assert any("5 % of in-distribution" in label for label in labels)
    assert [text.get_text() for text in bare.get_legend().get_texts()] == ["these images (7)"]
    with Image.open("plot.png") as plot:
        assert plot.size == (840, 480)
        assert (plot.text["score"], plot.text["seed"]) == ("combined", "4")


def test_histogram_axes() -> None:
    for scores, scale in (
        ([1.0, 2.0, 1000.0], "log"),
        ([-5.0, 2.0, 1000.0], "linear"),
        ([0.0, 1000.0], "linear"),
        ([3.0], "linear"),
        ([3.0, 3.0], "linear"),
    ):
        figure = plots.new_figure()
        plots.draw_histogram(figure, np.array(scores), name="x")
        assert figure.axes[0].get_xscale() == scale
        edges, shares = outlined(figure.axes[0].patches[0])
        assert edges[0] <= min(scores) and edges[-1] >= max(scores)
        assert sum(shares) == pytest.approx(1)


def test_plots_need_matplotlib_and_say_so_first(
    score: Any, idle: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    before = listed()
    result = score("images", "--plot", "plot.png")
    assert (result.exit_code, listed()) == (2, before)
    assert result.stderr == (
        "cdrl-score: error: plots need matplotlib: pip install 'cdrl[score]'\n"
    )
    monkeypatch.undo()


def read_heat(panel: Image.Image, side: int, top: float) -> np.ndarray:
    """The values of the map, read off the third panel's colours."""
    step = 224 // side
    left = 2 * (224 + 2) + 2 + step // 2
    found = np.asarray(panel)[2 + step // 2 : 2 + 224 : step, left : left + 224 : step]
    known = plots.colours(np.linspace(0, 1, 1001)).astype(float)
    distance = ((found[:, :, None].astype(float) - known) ** 2).sum(-1)
    return distance.argmin(-1) / 1000 * top


def test_overlays(score: Any, scorer: CDRLPipeline, pictures: list[Image.Image]) -> None:
    Path("maps").mkdir()
    Path("maps/keep.txt").write_text("mine")
    result = score("images", "--heatmap", "maps", "--batch-size", "4")
    assert (result.exit_code, len(table(result.stdout))) == (0, 7)
    names = [f"{k}.png" for k in range(7)]
    assert sorted(os.listdir("maps")) == [*names, "keep.txt"]
    expected = scorer.score(pictures, return_map=True)
    for k, name in enumerate(names):
        with Image.open(f"maps/{name}") as panel:
            assert (panel.text["file"], panel.text["score"]) == (f"images/{name}", "combined")
            assert float(panel.text["value"]) == pytest.approx(float(expected.scores[k]), rel=1e-4)
            heat = expected.maps[k].numpy()
            top = float(heat.max())
            assert np.allclose(read_heat(panel, 8, top), heat, atol=0.01 * top)
            shown = np.asarray(panel)[2:226:28, 2:226:28, 0]
            assert np.array_equal(shown, np.asarray(pictures[k]))


def test_overlay_of_an_empty_map_and_of_bad_ones() -> None:
    image = Image.new("L", (4, 4), 90)
    for value in (0.0, 1e-300, 1e300):
        panel = plots.overlay(image, torch.full((4, 4), value, dtype=torch.float64))
        assert np.isfinite(np.asarray(panel)).all()
    black = plots.overlay(image, torch.zeros(4, 4))
    assert (read_heat(black, 4, 1.0) == 0).all()
    with pytest.raises(NumericalError, match="found NaN or infinity"):
        plots.overlay(image, torch.full((4, 4), torch.nan))
    with pytest.raises(InputError, match="of 4 x 4 like the image, got shape"):
        plots.overlay(image, torch.zeros(5, 4))
    with pytest.raises(InputError, match="from 0 on, got -1"):
        plots.overlay(image, -torch.ones(4, 4))
    large = to_pil(torch.zeros(1, 3, 300, 200))[0]
    assert plots.overlay(large, torch.ones(300, 200)).size[0] == 3 * 202 + 2


def test_more_is_brighter() -> None:
    v = np.linspace(0, 1, 256)
    luma = plots.colours(v) @ np.array([0.30, 0.59, 0.11]) / 255
    assert np.abs(luma - v).max() < 0.01
    assert (np.diff(luma) > 0).mean() > 0.99
    assert len(np.unique(plots.colours(v), axis=0)) == 256


def test_overlays_of_one_name_are_told_apart(score: Any, pictures: list[Image.Image]) -> None:
    for name, image in (("a/x.png", 0), ("b/X.png", 1), ("b/x.bmp", 2), ("b/a-x.png", 3)):
        Path(name).parent.mkdir(exist_ok=True)
        pictures[image].save(name)
    result = score("a", "b", "b/../images/0.png", "--heatmap", "maps")
    assert result.exit_code == 0, result.output
    files = {}
    for name in os.listdir("maps"):
        with Image.open(Path("maps", name)) as panel:
            files[name] = panel.text["file"]
    assert len(files) == 5 and set(files.values()) == {r["file"] for r in table(result.stdout)}
    assert files["a-x.png"] == str(Path("a/x.png"))
    many = [Path(f"f{k}", "image.png") for k in range(3)] + [Path("f0", "image.jpg")]
    assert list(_overlay_names(many).values()) == [
        *("f0-image.png", "f1-image.png", "f2-image.png", "f0-image-2.png")
    ]
    clash = [Path("x.png"), Path("x-2.png"), Path("X.jpg"), Path("x.bmp"), Path("y" * 250 + ".png")]
    names = list(_overlay_names(clash).values())
    assert len({name.lower() for name in names}) == 5
    assert names[:2] == ["x.png", "x-2.png"] and max(map(len, names)) <= 84


def test_the_images_are_never_written_over(score: Any, idle: None) -> None:
    contents = {name: Path(name).read_bytes() for name in listed()}
    for arguments in (
        ("--plot", "images/0.png", "images/1.png", "images/0.png"),
        ("images", "--heatmap", "images"),
        ("images", "--heatmap", "images/../images/"),
        ("images", "--plot", "images/../images/3.png"),
    ):
        result = score(*arguments)
        assert (result.exit_code, "is one of the images" in result.stderr) == (2, True)
        assert {name: Path(name).read_bytes() for name in listed()} == contents


def test_names_that_are_no_text_survive(score: Any, pictures: list[Image.Image]) -> None:
    name = os.fsdecode(b"caf\xe9, \n.png")
    try:
        pictures[0].save(name)
    except OSError:
        pytest.skip("this file system takes no such names")
    result = score(name, "--out", "a.csv", "--heatmap", "maps", "--plot", "b.png")
    assert result.exit_code == 0, result.output
    text = Path("a.csv").read_bytes().decode("utf-8", "surrogateescape")
    assert table(text)[0]["file"] == name
    assert b"caf\xe9" in score(name).stdout_bytes
    assert json.loads(score(name, "--json").stdout)["images"][0]["file"] == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'IMAGES...'"),
        (["empty"], "expected at least one image, found none in empty"),
        (["images", "--score", "enregy"], "'enregy' is not one of 'combined', 'energy'"),
        (["images", "--level", "2"], "'combined' is not of one level"),
        (["images", "--score", "energy", "--level", "4"], "level must lie in 1 … 3, got 4"),
        (["images", "--seed", "-1"], "in 0 … 2**32 - 1, got -1"),
        (["images", "--threshold-fpr", "1"], "less than 1, got 1"),
        (["images", "--threshold-fpr", "nan"], "must be a finite number"),
        (["images", "--threshold-fpr", "0.1", "--seed", "5"], "leave level and seed out"),
        (["images", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["images", "--device", "tpu9"], "device 'tpu9' cannot be used here"),
        (["images", "--model", "nowhere"], "no model 'nowhere'"),
        (["images", "--revision", "v1"], "only a repository on the Hub has revisions"),
        (["images", "--variant", "fp16"], "model.fp16.safetensors: expected the network's"),
        (["images", "--out", "a.txt"], "expected a .csv or .json file, got 'a.txt'"),
        (["images", "--out", ""], "expected the name of a .csv or .json file, got ''"),
        (["images", "--plot", "a.jpg"], "expected a .png file, got 'a.jpg'"),
        (["images", "--heatmap", ""], "expected the name of a folder, got ''"),
        (["images", "--heatmap", "images/0.png"], "expected a folder, found another kind"),
        (["images", "--heatmap", "no/maps"], "cannot write to 'no/maps'"),
        (["images", "--out", "no/a.csv"], "cannot write to 'no/a.csv'"),
        (["images", "--out", "a.csv", "--json"], "--json is for stdout"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    score: Any, arguments: list[str], message: str
) -> None:
    Path("empty").mkdir()
    before = listed()
    result = score(*arguments, *[] if "--plot" in arguments else ["--plot", "p.png"])
    assert (result.exit_code, result.stdout) == (2, "")
    errors = [line for line in result.stderr.splitlines() if "skipped" not in line]
    assert len(errors) == 1 and errors[0].startswith("cdrl-score: error: ")
    assert message in errors[0]
    assert listed() == before and not Path("maps").exists()


def test_scores_without_a_calibration_are_refused(score: Any, folder: Path) -> None:
    for arguments in ([], ["--score", "energy", "--threshold-fpr", "0.05"]):
        result = score("images", "--model", str(folder), *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "cdrl-eval --calibrate" in result.stderr


def test_a_calibration_of_other_weights_is_refused(
    score: Any, calibrated: Path, tmp_path: Path
) -> None:
    save_model(make_model(CLASSES, seed=1), tmp_path / "other")
    shutil.copy(calibrated / STATISTICS, tmp_path / "other")
    before = listed()
    for arguments in ([], ["--score", "energy"], ["--out", "a.csv", "--plot", "p.png"]):
        result = score("images", "--model", str(tmp_path / "other"), *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.count("\n") == 1
        assert "'other': the reference statistics are of other weights" in result.stderr
        assert "calibrate again, `cdrl-eval --calibrate" in result.stderr
    assert listed() == before


def test_help_and_version_do_not_import_torch() -> None:
    code = """
import sys
from cdrl_infer.cli.score import main
try:
    main(["--help"])
except SystemExit:
    print("LOADED", "torch" in sys.modules, "numpy" in sys.modules, "PIL" in sys.modules)
"""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "LOADED False False False" in done.stdout
    for option in ("--score", "--level", "--seed", "--threshold-fpr", "--plot", "--heatmap"):
        assert option in done.stdout
    version = CliRunner().invoke(main, ["--version"])
    assert version.output == f"cdrl-score, version {__version__}\n"
