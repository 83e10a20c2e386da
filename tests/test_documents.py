"""The code of README and docs/ runs as it stands, with tiny models; options that are named exist."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from documents import (
    COMMANDS,
    LANGUAGES,
    OTHERS,
    PAGES,
    ROOT,
    Quarters,
    all_options,
    blocks,
    command_lines,
    namespace,
    run,
    unknown_options,
    write_everything,
)

from cdrl_infer.scoring import SCORES
from cdrl_infer.storage import folder as storage
from cdrl_train.evaluation.registry import EXTRACTORS

RUN_ELSEWHERE = {"extending.md": "tests/test_extending.py"}
MODULES = {"sklearn", "matplotlib", "pytorch_ood"}
# Options of other programs.
FOREIGN = {
    "--index-url",
    "--num_processes",
    "--nproc_per_node",
    "--strict",
    "--upgrade",
    "--inplace",
}


def named(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A reader's folder, and that of the bundled models."""
    work, bundled = tmp_path_factory.mktemp("reader"), tmp_path_factory.mktemp("bundled")
    write_everything(work, bundled)
    return work, bundled


@pytest.fixture
def reader(prepared: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the reader's folder, the current one; the bundled models are tiny."""
    work, bundled = prepared
    shutil.copytree(work, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(storage, "BUNDLED", bundled)
    monkeypatch.setattr(SCORES, "_found", dict(SCORES._found))
    monkeypatch.setattr(EXTRACTORS, "_found", {**EXTRACTORS._found, Quarters.name: Quarters})
    return tmp_path / "work"


@pytest.mark.parametrize("page", PAGES, ids=named(PAGES))
def test_every_block_names_its_language_and_every_exception_its_reason(page: Path) -> None:
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fenced ^= line.startswith("```")
        assert fenced or not re.match(r"(    |\t)", line), f"{page.name}:{number}: fence this block"
    assert not fenced
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{page.name}:{block.line}"
        assert block.language != "" or page.name == "format.md", f"{page.name}:{block.line}"
        for words in command_lines(block.code) if block.language == "sh" else ():
            ours = words[0] in COMMANDS or words[0] == "python"
            assert ours or block.reason or words[0] in OTHERS, f"{page.name}:{block.line}: {words}"


@pytest.mark.parametrize("page", PAGES, ids=named(PAGES))
def test_every_option_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    lines = [words for b in blocks(page) if b.language == "sh" for words in command_lines(b.code)]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", prose)
    lines += [span.replace("'", "").split() for span in spans if span.split()[0] in COMMANDS]
    wrong = {option for words in lines for option in unknown_options(words)}
    bare = {word for span in spans for word in re.findall(r"(?<!\S)--[a-z][a-z-_]*", span)}
    assert not wrong | (bare - all_options() - FOREIGN)


def test_an_option_that_does_not_exist_is_found() -> None:
    assert unknown_options(["cdrl-score", "--theshold-fpr", "0.05"]) == ["--theshold-fpr"]
    assert unknown_options(["cdrl-hub", "push", "--privat"]) == ["--privat"]
    assert unknown_options(["python", "benchmarks/quality.py", "--seed", "1"]) == ["--seed"]
    assert unknown_options(["cdrl-sample", "-n", "3", "--seed", "-1", "--out=a.png"]) == []


@pytest.mark.parametrize("page", PAGES, ids=named(PAGES))
def test_the_page_runs_as_it_stands(page: Path, reader: Path) -> None:
    if page.name in RUN_ELSEWHERE:
        pytest.skip(f"{RUN_ELSEWHERE[page.name]} runs this page")
    names, missing = namespace(), set()
    for block in blocks(page):
        exec(compile(block.given, f"{page.name}:{block.line}, given", "exec"), names)
        if block.reason:
            continue
        if block.language == "python":
            source = "\n" * block.line + block.code
            try:
                exec(compile(source, str(page), "exec"), names)
            except ModuleNotFoundError as error:
                if error.name not in MODULES:
                    raise
                missing.add(error.name)
        elif block.language == "sh":
            for words in command_lines(block.code):
                if words[0] in COMMANDS:
                    run(words)
                elif words[0] == "python" and words[1] != "-m":
                    assert (ROOT / words[1]).is_file()  # tests/test_examples.py runs the examples
    assert torch.is_grad_enabled()
    if missing:
        pytest.skip(f"parts of the page need {missing}")
