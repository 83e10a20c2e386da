"""What a release holds: a complete source distribution, a citation, every supported Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

import cdrl_infer

ROOT = Path(__file__).parents[1]


def tracked() -> set[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs the git repository")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


def test_the_source_distribution_holds_every_tracked_file(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    names = tracked()
    for name in names:
        target = tmp_path / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    code = "from setuptools.build_meta import build_sdist; build_sdist('made')"
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "tree", capture_output=True, check=True
    )
    (made,) = (tmp_path / "tree/made").iterdir()
    with tarfile.open(made) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert names - held == {".gitignore"}


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{citation["version"]}"' in project
    paper = citation["preferred-citation"]
    bibtex = (ROOT / "README.md").read_text(encoding="utf-8")
    assert paper["title"] in bibtex and str(paper["year"]) in bibtex
    for author in paper["authors"]:
        assert f"{author['family-names']}, {author['given-names']}" in bibtex


def test_every_python_that_is_declared_is_checked() -> None:
    text = (ROOT / ".github/workflows/checks.yml").read_text(encoding="utf-8")
    matrix = yaml.safe_load(text)["jobs"]["checks"]["strategy"]["matrix"]["python"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert matrix[0] in project and f'requires-python = ">={matrix[0]}"' in project
    for version in matrix:
        assert f'"Programming Language :: Python :: {version}"' in project


def test_optional_names_are_listed() -> None:
    assert "CDRLDetector" in dir(cdrl_infer) and "CDRLDetector" not in cdrl_infer.__all__
