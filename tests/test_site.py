"""The documentation site: it builds without a warning, needs no other host, and shows all of the API."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

import cdrl_infer

ROOT = Path(__file__).parents[1]
needs_mkdocs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("material", "mkdocstrings")),
    reason="the site needs mkdocs: pip install 'cdrl[docs]'",
)
LOADS = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "link": "href",
}


def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/_site/reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["options.md", "commands.md"])
def test_the_reference_is_that_of_the_code(page: str) -> None:
    committed = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert committed == reference().PAGES[page](), "run: python docs/_site/reference.py"


def test_an_option_without_a_meaning_is_an_error() -> None:
    class Sized:
        """A thing.

        Args:
            width: its width.
        """

        def __init__(self, width: int = 3, height: int = 4) -> None: ...

    with pytest.raises(ValueError, match="Sized: say in the docstring, under Args, what height"):
        reference().table(Sized)


class _Loaded(HTMLParser):
    """What a page loads, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.anchors: set[str] = set()
        self.classes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag in LOADS and found.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(found.get(LOADS[tag], ""))
        self.anchors.add(found.get("id", ""))
        self.classes |= set(found.get("class", "").split())


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(
        command,
        cwd=project,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def foreign(site: Path) -> list[str]:
    """Addresses on other hosts that the pages load something from."""
    wrong = []
    for page in site.rglob("*.html"):
        parser = _Loaded()
        parser.feed(page.read_text(encoding="utf-8"))
        wrong += [
            f"{page.name}: {url}" for url in parser.addresses if re.match(r"(https?:)?//", url)
        ]
        wrong += [f"{page.name}: mermaid" for _ in parser.classes & {"mermaid"}]
    for sheet in site.rglob("*.css"):
        urls = re.findall(r"(?:url\(|@import )[\"']?(https?:[^\"')]+)", sheet.read_text("utf-8"))
        wrong += [f"{sheet.name}: {url}" for url in urls]
    for script in site.rglob("*.js"):
        text = script.read_text(encoding="utf-8")
        wrong += [f"{script.name}: {url}" for url in re.findall(r"https://unpkg\.com[^\"]*", text)]
    return wrong


@needs_mkdocs
def test_the_site_builds_offline_and_has_the_whole_api(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert not foreign(tmp_path / "site")
    anchors = set()
    for page in (tmp_path / "site/api").rglob("*.html"):
        parser = _Loaded()
        parser.feed(page.read_text(encoding="utf-8"))
        anchors |= parser.anchors
    names = {anchor.rpartition(".")[2] for anchor in anchors}
    assert {name for name in cdrl_infer.__all__ if not name.startswith("_")} <= names
    assert "cdrl_infer.kernels.hmc.HMC" in anchors and "cdrl_train.config.Phase" in anchors


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The pages without the code, so that a build takes two seconds."""
    project = tmp_path / "project"
    for name in ("docs", "examples", "benchmarks"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, project)
    shutil.copytree(
        ROOT / "cdrl_infer/models",
        project / "cdrl_infer/models",
        ignore=shutil.ignore_patterns("*.safetensors"),
    )
    return project


@needs_mkdocs
def test_what_is_wrong_with_a_page_stops_the_build(copied: Path) -> None:
    (copied / "docs/unlisted.md").write_text("# Unlisted\n", encoding="utf-8")
    (copied / "docs/glossary.md").write_text(
        "[a](nowhere.md) [b](../examples/nowhere.py) [c](scoring.md#nowhere)\n\n"
        "![Foreign](https://example.org/a.png)\n",
        encoding="utf-8",
    )
    done = build(copied, copied / "site")
    assert done.returncode != 0
    assert done.stderr.count("WARNING") == 4, done.stderr
    for said in (
        'not included in the "nav" configuration',
        "unlisted.md",
        "a link 'nowhere.md'",
        "a link '../examples/nowhere.py'",
        "does not contain an anchor '#nowhere'",
    ):
        assert said in done.stderr
    assert foreign(copied / "site") == ["glossary.html: https://example.org/a.png"]
