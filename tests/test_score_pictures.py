"""`cdrl-score`: the pictures it reads, and those it draws."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_plots import outlined, read_heat
from test_score_cli import listed, table, values

from cdrl_infer.cli.pictures import overlay_names
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring import plots

pytest_plugins = ["score_fixtures"]


def test_files_folders_and_patterns_each_once(score: Any, pictures: list[Image.Image]) -> None:
    Path("images/more").mkdir()
    Path("images/notes.txt").write_text("no picture")
    Path("images/more/.hidden.png").write_text("no picture")
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
        assert result.exit_code == 0
        told = "cdrl-score: images/more: 2 images; ignored: 1 hidden or of the system\n"
        assert result.stderr == (told if "images/more" in given else "")
        assert [Path(row["file"]) for row in table(result.stdout)] == [
            Path("images") / name for name in expected
        ]


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
    for name, colour, fault in (
        (
            "colour.png",
            (9, 8, 9, 255),
            "colour.png: expected a grey picture, got colours; grey=True",
        ),
        ("clear.png", (9, 9, 9, 254), "clear.png: expected an opaque picture, got transparent"),
    ):
        Image.new("RGBA", (8, 8), colour).save(name)
        result = score(name, "images/0.png")
        assert (result.exit_code, fault in result.stderr) == (2, True), result.stderr
    assert "a.csv" not in os.listdir()


def test_resize(score: Any, scorer: CDRLPipeline, pictures: list[Image.Image]) -> None:
    large = pictures[0].resize((16, 12))
    large.save("large.png")
    Image.new("RGB", (8, 8), "red").save("colour.png")
    files = ["large.png", "images/1.png", "colour.png"]
    rows = table(score(*files, "--resize", "--grey").stdout)
    expected = scorer.score(files, resize=True, grey=True).scores
    assert values(rows) == pytest.approx(expected.tolist(), rel=1e-4)


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
    assert score("images", "--plot", "b.png", "--score", "energy", "--seed", "5").exit_code == 0
    told = json.loads(Path("a.json").read_text())
    (axes,), (bare,) = figures[0].axes, figures[1].axes
    *reference, outline = axes.patches
    edges, shares = outlined(outline)
    scores = [image["score"] for image in told["images"]]
    assert shares * 7 == pytest.approx(np.histogram(scores, edges)[0])
    held_out = scorer.model.statistics.scores("combined").numpy()
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
    assert list(overlay_names(many).values()) == [
        *("f0-image.png", "f1-image.png", "f2-image.png", "f0-image-2.png")
    ]
    clash = [Path("x.png"), Path("x-2.png"), Path("X.jpg"), Path("x.bmp"), Path("y" * 250 + ".png")]
    names = list(overlay_names(clash).values())
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
