"""The code blocks of README and docs/, and a folder in which they can run in seconds.

A comment before a block says what a reader of the page has in hand, or why a test cannot run the block::

    <!-- given: pipe = CDRLPipeline.from_pretrained() -->
    <!-- not run: it needs an account on the Hub -->
"""

from __future__ import annotations

import dataclasses
import glob
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from click.testing import CliRunner
from conftest import make_model
from PIL import Image

from cdrl_infer.model import CDRLModel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.folder import BUNDLED, load_model
from cdrl_train.evaluation.extractors import Extractor
from cdrl_train.presets import preset

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
        *(ROOT / name / "README.md" for name in ("benchmarks", "examples")),
    ]
)
LANGUAGES = {"python", "sh", "text", "json", "yaml", "bibtex", ""}
COMMANDS = {
    "cdrl-sample": "cdrl_infer.cli.sample",
    "cdrl-score": "cdrl_infer.cli.score",
    "cdrl-hub": "cdrl_infer.cli.hub",
    "cdrl-demo": "cdrl_infer.cli.demo",
    "cdrl-train": "cdrl_train.cli",
    "cdrl-eval": "cdrl_train.cli_eval",
}
# Programs that the documentation names and the tests do not run here.
OTHERS = {
    "pip": ".ci/run installs the package",
    "git": "clones",
    "cd": "after a clone",
    "source": "enters a virtual environment",
    "pytest": "these tests",
    "ruff": ".ci/run",
    "mypy": ".ci/run",
    "pre-commit": "changes the clone",
    "mkdocs": "tests/test_site.py builds the site",
    "hf": "asks for a token",
    "accelerate": "tests/test_ddp.py starts several processes",
    "torchrun": "tests/test_ddp.py starts several processes",
}


class Block(NamedTuple):
    """A code block of a page."""

    language: str
    code: str
    given: str  # code to run first
    reason: str  # why it is not run; ""
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """The fenced code blocks of a page."""
    given, reason = [], ""
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        if comment := re.fullmatch(r"<!-- (given|not run): (.*) -->", line):
            if comment[1] == "given":
                given.append(comment[2])
            else:
                reason = comment[2]
        elif opened := re.fullmatch(r"```(\w*).*", line):
            code = []
            for _, inside in lines:
                if inside == "```":
                    break
                code.append(inside)
            yield Block(opened[1], "\n".join(code), "\n".join(given), reason, number)
            given, reason = [], ""


def command_lines(code: str) -> Iterator[list[str]]:
    """The commands of a shell block, as words; ``&&`` and line ends separate them."""
    for line in code.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word == "&&":
                if words:
                    yield words
                words = []
            else:
                words.append(word)


@cache
def script(path: str) -> click.Command:
    """The command of ``examples/x.py`` or ``benchmarks/x.py``."""
    if path.startswith("benchmarks/"):
        main: click.Command = importlib.import_module(Path(path).stem).main
        return main
    name = f"example_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: click.Command = module.main
    return found


def command_of(words: list[str]) -> tuple[click.Command, list[str]] | None:
    """The command that these words start, and the words after it; None for a program that is not ours."""
    if words[0] in COMMANDS:
        found, rest = importlib.import_module(COMMANDS[words[0]]).main, words[1:]
    elif words[0] == "python" and words[1].startswith(("examples/", "benchmarks/")):
        found, rest = script(words[1]), words[2:]
    else:
        return None
    if isinstance(found, click.Group) and rest and not rest[0].startswith("-"):
        sub = found.get_command(click.Context(found), rest[0])
        assert sub is not None, f"{found.name} has no command {rest[0]}"
        return sub, rest[1:]
    return found, rest


def unknown_options(words: list[str]) -> list[str]:
    """The options in a command line that its command does not have."""
    started = command_of(words)
    if started is None:
        return []
    command, rest = started
    known = {"--help", "-h"}
    for parameter in command.params:
        known |= {*parameter.opts, *parameter.secondary_opts}
    options = [word.partition("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)]
    return [option for option in options if option not in known]


@cache
def all_options() -> set[str]:
    """Every option of every command, script and benchmark."""
    found = {"--help"}
    names = [[name] for name in COMMANDS]
    names += [["cdrl-hub", sub] for sub in ("convert", "export", "info", "push")]
    names += [
        ["python", f"{folder}/{file.name}"]
        for folder in ("examples", "benchmarks")
        for file in (ROOT / folder).glob("*.py")
        if "click.command(" in file.read_text(encoding="utf-8")
    ]
    for words in names:
        started = command_of(words)
        assert started is not None
        for parameter in started[0].params:
            found |= {*parameter.opts, *parameter.secondary_opts}
    return found


# -- A folder for the snippets ------------------------------------------------------------------------


def tiny_bundled(name: str) -> CDRLModel:
    """A model of the bundled model's images, labels and levels, with a network of a few weights."""
    real = load_model(BUNDLED / name)
    small = make_model(*(a.values for a in real.labels), channels=real.image.channels)
    return dataclasses.replace(
        small, labels=real.labels, image=real.image, schedule=real.schedule, sampler=real.sampler
    )


def pictures(count: int, seed: int, channels: int = 1, size: int = 28) -> np.ndarray:
    """Smooth random images (N, H, W) or (N, H, W, 3), uint8."""
    shape = (count, 4, 4, *([channels] if channels > 1 else []))
    coarse = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size))) for image in coarse])


def write_pictures(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    for k, image in enumerate(pictures(count, seed)):
        Image.fromarray(image).save(folder / f"{k}.png")


def write_everything(folder: Path, bundled: Path) -> None:
    """The models and the files of a reader."""
    for name in ("fashion-mnist", "coloured-fashion-mnist"):
        pipe = CDRLPipeline(tiny_bundled(name), name)
        if name == "fashion-mnist":
            pipe.calibrate(list(pictures(80, 9)), progress=False)
            pipe.save_pretrained(folder / "my-model")
        pipe.save_pretrained(bundled / name)
    labels = np.arange(100, dtype=np.uint8) % 10
    split = {"train_images": pictures(100, 0), "train_labels": labels}
    split |= {"test_images": pictures(100, 1), "test_labels": labels}
    for name in ("good", "mnist", "fashion_mnist"):
        np.savez(folder / f"{name}.npz", **split)
    for k, name in enumerate(("images", "good", "later", "new", "bags")):
        write_pictures(folder / name, 80 if name in ("good", "later") else 3, k)
    for letter in "ABCDEFGHIJ":
        write_pictures(folder / "letters" / letter, 2, ord(letter))
    half = np.zeros((28, 28), np.uint8)
    half[:, 14:] = 255
    Image.fromarray(half).save(folder / "mask.png")
    Image.fromarray(pictures(1, 7)[0]).save(folder / "shoe.png")


class Quarters(Extractor):
    """The mean of each quarter of an image, in place of a network that has to be downloaded."""

    name = title = "quarters"
    convention = "mean of each quarter"
    feature_dim = 4

    @classmethod
    def load(cls, weights: Path | None, device: torch.device) -> Extractor:
        return cls(torch.nn.AdaptiveAvgPool2d(2), "0", device)

    def rows(self, images: torch.Tensor) -> torch.Tensor:
        means: torch.Tensor = self.network(images[:, :1].float() / 255)
        return means.flatten(1)


def namespace() -> dict[str, Any]:
    """What a page may suppose that its reader has."""
    mask = np.zeros((28, 28), bool)
    mask[:, 14:] = True
    return {
        "CDRLPipeline": CDRLPipeline,
        "torch": torch,
        "image": Image.fromarray(pictures(1, 7)[0]),
        "mask": mask,
        "images": list(pictures(3, 8)),
        "good": pictures(80, 0),
        "others": pictures(3, 3),
    }


def shorter(words: list[str]) -> list[str]:
    """A command line of the documentation, made small: fewer images, fewer and smaller steps."""
    name, *rest = [file for word in words for file in (sorted(glob.glob(word)) or [word])]
    rest = ["good.npz" if word.startswith("torchvision:") else word for word in rest]
    if name == "cdrl-sample":
        return [name, *rest, "--num-images", "2", "--device", "cpu"]
    if name == "cdrl-eval" and "--calibrate" not in rest:
        metrics = [] if "ood" in rest else ["--metrics", "fid", "--extractor", Quarters.name]
        return [name, *rest, *metrics, "-n", "20", "--cache", "cache", "--device", "cpu"]
    if name != "cdrl-train" or "--print-config" in rest:
        return [name, *rest]
    given: Mapping[str, str] = dict(pairwise(rest))
    default = "fine-tune" if "--init-from" in given else "my-images"
    config = preset(given.get("--preset", default))
    small = [f"{label}.{key}" for label in config.labels for key in ("steps=1", "batch_size=4")]
    if config.data.source == "checkerboard":
        small += ["schedule.num_levels=2", "sampler.langevin_steps=1"]
    elif "--preset" in given and "--data" not in given:
        rest += ["--data", "good.npz", "--out", given.get("--out", f"runs/{config.name}")]
    if "class" in config.ebm and config.ebm["class"] == "InnerProductEnergy":
        small += ["ebm.widths=[8]", "initializer.widths=[8]"] if "--init-from" not in given else []
    if "--resume" in rest:
        small = []
    options = [part for text in small for part in ("--set", text)]
    return [name, *rest, *options, "--track", "none", "--device", "cpu"]


def run(words: list[str]) -> str:
    """Run one of our commands in this process; what it prints."""
    started = command_of(shorter(words))
    assert started is not None
    command, rest = started
    result = CliRunner().invoke(command, rest)
    assert result.exit_code == 0, f"{shlex.join(words)}: {result.output}"
    return result.output
