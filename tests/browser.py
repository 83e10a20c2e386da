"""A browser to use the demo with: Chromium, driven by Playwright; and `cdrl-demo` as a process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SHOTS = os.environ.get("CDRL_SHOTS")  # a folder for pictures of the pages, for docs/demo.md


def missing() -> str:
    """What the tests in a browser lack here; "" if nothing."""
    lacking = [name for name in ("gradio", "playwright", "matplotlib") if find_spec(name) is None]
    lacking += [] if CHROMIUM else ["chromium"]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


@contextmanager
def started(
    temporary: Path, code: str, *arguments: str, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A process of this package's code, with its temporary files in a folder."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": path, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextmanager
def demo(temporary: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `cdrl-demo`; gives its address and the process."""
    code = "from cdrl_infer.cli.demo import main; main()"
    with started(temporary, code, "--no-open", *arguments) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line + process.stdout.read()
        yield line.split()[0], process


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def shot(page: Any, name: str) -> None:
    """Keep a picture of the page if that was asked for."""
    if SHOTS is not None:
        page.wait_for_timeout(400)
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)
