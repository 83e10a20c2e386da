"""`cdrl-sample`: what it writes, and that every mistake is one line that leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cdrl_infer import __version__
from cdrl_infer.cli.command import OneLineErrors
from cdrl_infer.cli.sample import main
from cdrl_infer.errors import InputError
from cdrl_infer.kernels.hmc import HMC
from cdrl_infer.pipeline import CDRLPipeline


@pytest.fixture
def sample(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command in an empty folder with the tiny model."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["--model", str(folder), *arguments])

    return run


def test_grid_has_a_column_per_class_and_its_data(sample: Any, pipe: CDRLPipeline) -> None:
    result = sample("--out", "grid.png", "-n", "7", "--seed", "5")
    assert result.exit_code == 0, result.output
    assert result.output == "grid.png: 7 images of tiny, one grid, seed 5\n"
    assert os.listdir() == ["grid.png"]
    with Image.open("grid.png") as grid:
        data = grid.text
        array = np.asarray(grid)
    assert json.loads(data["seeds"]) == list(range(5, 12))
    assert json.loads(data["labels"]) == ["Shirt", "Sneaker", "Bag"] * 2 + ["Shirt"]
    assert (data["model"], data["version"]) == ("tiny", f"cdrl {__version__}")
    assert (data["kernel"], data["langevin_steps"]) == ("langevin", "[2, 2, 2]")
    cell = 8 * 8 + 2
    assert array.shape == (3 * cell + 2, 3 * cell + 2)
    expected = pipe(seeds=range(5, 12), class_labels=json.loads(data["labels"])).images
    fifth = array[cell + 2 : 2 * cell : 8, cell + 2 : 2 * cell : 8]
    assert np.array_equal(fifth, np.asarray(expected[4]))


@pytest.mark.parametrize("existing", [False, True])
def test_folder_has_a_png_per_image(sample: Any, pipe: CDRLPipeline, existing: bool) -> None:
    if existing:
        os.mkdir("out")
        Path("out/keep.txt").write_text("mine")
        Path("out/00000.png").write_text("old")
    result = sample("--out", "out", "-n", "3", "--seed", "9", "--label", "Bag", "--label", "0")
    assert result.exit_code == 0, result.output
    assert result.output == "out: 3 images of tiny, a PNG each, seed 9\n"
    names = [f"{k:05d}.png" for k in range(3)]
    assert sorted(os.listdir("out")) == names + ["keep.txt"] * existing
    assert os.listdir() == ["out"]
    expected = pipe(seeds=[9, 10, 11], class_labels=["Bag", "Shirt", "Bag"])
    for k, name in enumerate(names):
        with Image.open(f"out/{name}") as image:
            assert image.text["seed"] == str(9 + k)
            assert image.text["label"] == expected.labels[k]
            assert image.tobytes() == expected.images[k].tobytes()


def test_labels(sample: Any) -> None:
    for arguments, expected in (
        (["--label", "all"], ["Shirt", "Sneaker", "Bag", "Shirt"]),
        (["--label", "none"], [None] * 4),
        (["--label", "1", "--label", "none"], ["Sneaker", None] * 2),
    ):
        assert sample("--out", "a.png", "-n", "4", *arguments).exit_code == 0
        with Image.open("a.png") as image:
            assert json.loads(image.text["labels"]) == expected


def test_steps_per_level_and_new_seeds(sample: Any) -> None:
    seeds = []
    for _ in range(2):
        assert sample("--out", "a.png", "-n", "1", "--langevin-steps", "2,0,1").exit_code == 0
        with Image.open("a.png") as image:
            assert image.text["langevin_steps"] == "[2, 0, 1]"
            seeds.append(image.text["seeds"])
    assert seeds[0] != seeds[1]


def test_guidance_composition_and_kernels_are_the_pipelines(
    sample: Any, pipe: CDRLPipeline
) -> None:
    bags = {"class_labels": ["Bag"] * 2, "seeds": [3, 4]}
    leapfrogs = ("--kernel-option", "leapfrog_steps=2")
    for arguments, expected, said in (
        (
            ["--label", "Bag", "--guidance-scale", "2.5"],
            pipe(guidance_scale=2.5, **bags),
            {"guidance_scale": "2.5"},
        ),
        (
            ["--compose", "shirt & ~bag^0.5", "--guidance-scale", "2", "--restarts", "1"],
            pipe.compose("Shirt & ~Bag^0.5", guidance_scale=2, restarts=1, seeds=[3, 4]),
            {"expression": "(Shirt & ~Bag^0.5)^2", "restarts": "1"},
        ),
        (
            ["--label", "Bag", "--kernel", "mala", "--step-scale", "0.5,1,2"],
            pipe(kernel="mala", step_scale=[0.5, 1, 2], **bags),
            {"kernel": "mala", "step_scale": "[0.5, 1.0, 2.0]"},
        ),
        (
            ["--label", "Bag", "--sampler", "hmc", "--step-scale", "adapt", *leapfrogs],
            pipe(
                kernel=HMC(leapfrog_steps=2),
                step_scale=pipe.adapt_step_scale(
                    HMC(leapfrog_steps=2), class_labels="Bag", langevin_steps=2
                ).step_scale,
                **bags,
            ),
            {"kernel": "hmc"},
        ),
    ):
        result = sample("--out", "out/", "-n", "2", "--seed", "3", *arguments)
        assert result.exit_code == 0, result.output
        assert ("acceptance" in result.output) == (said.get("kernel") is not None)
        for k, image in enumerate(expected.images):
            with Image.open(f"out/{k:05d}.png") as written:
                assert written.tobytes() == image.tobytes()
                assert said.items() <= written.text.items()


def test_inpainting(sample: Any, pipe: CDRLPipeline) -> None:
    image, mask = np.full((8, 8), 200, np.uint8), np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(image).save("image.png")
    Image.fromarray(mask).save("mask.png")
    known = ("--inpaint", "image.png", "--mask", "mask.png", "--seed", "1", "-n", "2")
    assert sample(*known, "--out", "out/").exit_code == 0
    expected = pipe.inpaint(image, mask > 0, num_images=2, seeds=1).images
    for k in range(2):
        with Image.open(f"out/{k:05d}.png") as written:
            assert written.tobytes() == expected[k].tobytes()
            assert (np.asarray(written)[:, :4] == 200).all()
    Image.fromarray(mask).resize((16, 16)).save("mask.png")
    result = sample(*known, "--out", "large.png")
    assert result.exit_code == 2 and "--resize" in result.output
    assert sample(*known, "--resize", "--out", "large.png").exit_code == 0


def test_trajectory_shows_noise_then_proposal_and_refinement(sample: Any) -> None:
    result = sample("--trajectory", "film.gif", "-n", "3", "--seed", "0", "--batch-size", "2")
    assert result.exit_code == 0, result.output
    assert result.output == "film.gif: the levels of 3 images as a film\n"
    assert os.listdir() == ["film.gif"]
    with Image.open("film.gif") as film:
        assert film.n_frames == 2 + 2 * 3  # noise, two per level, the denoised image
        frames = []
        for k in range(film.n_frames):
            film.seek(k)
            frames.append(np.asarray(film.convert("L"), dtype=float))
    assert all(np.abs(a - b).mean() > 1 for a, b in pairwise(frames))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to write: give --out or --trajectory"),
        (["--out", "a.png", "--label", "Sneakr"], "did you mean 'Sneaker'"),
        (["--out", "a.png", "--label", "7"], "must lie in 0 … 2, got 7"),
        (["--out", "a.png", "--model", "nowhere"], "no model 'nowhere'"),
        (["--out", "a.png", "--seed", "-1"], "in 0 … 2**32 - 1, got -1"),
        (["--out", "a.png", "--seed", str(2**32)], "in 0 … 2**32 - 1"),
        (["--out", "a.png", "--seed", "x"], "'x' is not a valid integer"),
        (["--out", "a.png", "-n", "0"], "num_images must be at least 1, got 0"),
        (["--out", "a.png", "--batch-size", "0"], "batch_size must be at least 1"),
        (["--out", "a.png", "--langevin-steps", "few"], "must be an integer, or integers"),
        (["--out", "a.png", "--langevin-steps", "1,2"], "or 3, one per transition, got (1, 2)"),
        (["--out", "a.png", "--device", "tpu9"], "device 'tpu9' cannot be used here"),
        (["--out", "new", "--device", "tpu9"], "device 'tpu9' cannot be used here"),
        (["--out", "a.png", "--colour"], "No such option"),
        (["--out", "a.png", "--guidance-scale", "nan", "--label", "0"], "must be a finite number"),
        (["--out", "a.png", "--guidance-scale", "2", "--label", "none"], "needs class_labels"),
        (["--out", "a.png", "--compose", "bag & )"], "found ')' at character 7 of 'bag & )'"),
        (["--out", "a.png", "--compose", "bga"], "did you mean 'Bag'? (at character 1 of 'bga')"),
        (["--out", "a.png", "--compose", "bag & ~bag"], "the expression cancels out"),
        (
            ["--out", "a.png", "--compose", "bag", "--label", "0"],
            "--compose and --label exclude each",
        ),
        (["--out", "a.png", "--inpaint", "x.png"], "--inpaint and --mask go together"),
        (["--out", "a.png", "--inpaint", "x.png", "--mask", "y.png"], "x.png cannot be read"),
        (
            ["--out", "a.png", "--kernel", "nuts"],
            "kernel must be one of langevin, leimkuhler-matthews, mala, hmc",
        ),
        (["--out", "a.png", "--kernel", "nuts", "--kernel-option", "a=1"], "unknown kernel 'nuts'"),
        (["--out", "a.png", "--kernel-option", "noise=1"], "--kernel-option needs --kernel"),
        (
            ["--out", "a.png", "--kernel", "hmc", "--kernel-option", "a"],
            "--kernel-option must be KEY=VALUE, got 'a'",
        ),
        (
            ["--out", "a.png", "--kernel", "langevin", "--kernel-option", "noise=1"],
            "did you mean 'noise_scale'",
        ),
        (
            ["--out", "a.png", "--kernel", "mala", "--kernel-option", "leapfrog_steps=2"],
            "unknown key 'leapfrog_steps', expected none",
        ),
        (
            ["--out", "a.png", "--kernel", "hmc", "--kernel-option", "leapfrog_steps=few"],
            "'leapfrog_steps' must be an integer, found 'few'",
        ),
        (["--out", "a.png", "--import", "no.such"], "got ModuleNotFoundError: No module named 'no"),
        (["--out", "a.png", "--revision", "v1"], "only repositories on the Hub have revisions"),
        (["--out", "a.png", "--variant", "fp16"], "model.fp16.safetensors: expected the network's"),
        (["--out", "a.png", "--variant", "fp8"], "'fp8'"),
        (
            ["--out", "a.png", "--step-scale", "adapt"],
            "needs a --kernel that can reject a move, such as mala or hmc",
        ),
        (["--out", "a.png", "--step-scale", "big"], "--step-scale must be a number, or numbers"),
        (["--out", "a.png", "--step-scale", "0"], "step_scale must be one positive"),
        (["--out", "a.jpg"], "expected a .png file or a folder (end it with /), got 'a.jpg'"),
        (["--trajectory", "a.mp4"], "expected a .gif file, got 'a.mp4'"),
        (["--out", ""], "expected the name of a .png file, got ''"),
        (["--out", "a.png", "--trajectory", ""], "expected the name of a .gif file, got ''"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    sample: Any, arguments: list[str], message: str
) -> None:
    result = sample(*arguments)
    assert result.exit_code == 2
    assert result.output.startswith("cdrl-sample: error: ")
    assert result.output.count("\n") == 1
    assert message in result.output
    assert os.listdir() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--out", "missing/a.png"],
        ["--out", "missing/out"],
        ["--out", "file/a.png"],
        ["--out", "file"],
        ["--trajectory", "folder.gif"],
        ["--trajectory", "missing/a.gif", "--out", "a.png"],
        pytest.param(
            ["--out", "locked/a.png"],
            marks=pytest.mark.skipif(
                not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
            ),
        ),
    ],
)
def test_where_nothing_can_be_written_is_found_before_sampling(
    sample: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    Path("file").write_text("mine")
    Path("folder.gif").mkdir()
    Path("locked").mkdir(mode=0o500)
    monkeypatch.setattr(CDRLPipeline, "from_pretrained", lambda *a: pytest.fail("loaded"))
    result = sample(*arguments)
    assert result.exit_code == 2
    assert result.output.startswith("cdrl-sample: error: cannot write to ")
    assert result.output.count("\n") == 1
    assert sorted(os.listdir()) == ["file", "folder.gif", "locked"]
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize("out", ["a.png", "out"])
def test_interrupted_sampling_leaves_nothing(
    sample: Any, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CDRLPipeline, "__call__", interrupt)
    result = sample("--out", out, "--trajectory", "film.gif")
    assert result.exit_code == 130
    assert "cdrl-sample: interrupted" in result.output
    assert os.listdir() == []


def test_a_failed_write_keeps_the_old_picture(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(self: Image.Image, path: Path, **kwargs: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    Path("a.png").write_text("old")
    monkeypatch.setattr(Image.Image, "save", full_disk)
    result = sample("--out", "a.png", "-n", "1")
    assert result.exit_code == 5
    assert result.output.startswith("cdrl-sample: error: ")
    assert "No space left" in result.output
    assert os.listdir() == ["a.png"]
    assert Path("a.png").read_text() == "old"


def test_help_and_version(sample: Any) -> None:
    help_text = sample("--help")
    assert help_text.exit_code == 0
    for option in (
        *("--model", "-n, --num-images", "--label", "--seed", "--langevin-steps", "--batch-size"),
        *("--device", "--out", "--trajectory"),
    ):
        assert option in help_text.output
    version = sample("--version")
    assert (version.exit_code, version.output) == (0, f"cdrl-sample, version {__version__}\n")


def test_modules_that_cannot_be_imported(sample: Any) -> None:
    for text, error in (
        ("1 +", "SyntaxError"),
        ("exit('bye')", "SystemExit: bye"),
        ("1 / 0", "Zero"),
    ):
        Path("broken_plugin.py").write_text(text)
        result = sample("--out", "a.png", "--import", "broken_plugin")
        assert result.exit_code == 2 and result.output.count("\n") == 1
        assert "error: --import broken_plugin: expected the name of a module" in result.output
        assert f"got {error}" in result.output
        assert sorted(os.listdir())[-1] == "broken_plugin.py"


def test_as_a_program_with_a_kernel_of_the_users(folder: Path, tmp_path: Path) -> None:
    plugin = """
        from cdrl_infer.kernels import KERNELS
        from cdrl_infer.kernels.langevin import Langevin
        KERNELS.register("gentle", type("Gentle", (Langevin,), {}))
    """
    (tmp_path / "my_kernels.py").write_text(textwrap.dedent(plugin))
    code = "from cdrl_infer.cli.sample import main; main()"
    command = [sys.executable, "-c", code, "--model", str(folder), "--out", "a.png", "-n", "2"]
    command += ["--kernel", "gentle", "--import", "my_kernels"]
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
    )
    said = "a.png: 2 images of tiny, one grid, new seeds, stored with the images\n"
    assert (result.returncode, result.stdout, result.stderr) == (0, said, "")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (2 * 66 + 2, 68)
        assert image.text["kernel"] == "gentle"


@pytest.mark.parametrize("encoding", ["latin-1", "cp850", "gbk"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_text_that_an_encoding_lacks_is_escaped(encoding: str, stream: str) -> None:
    @click.command("say", cls=OneLineErrors)
    def say() -> None:
        click.echo("… × ä 猫 \udcff", err=stream == "stderr")
        raise InputError("猫 \ud800 … é")

    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, stream, file)
        with pytest.raises(SystemExit, match="2"):
            say.main([])
    file.flush()
    said = file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert r"\udcff" in said and ("猫" in said) == (encoding == "gbk")
