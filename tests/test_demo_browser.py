"""Every tab of the demo in a real browser, used as a person would, on a desk and on a phone."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from browser import ROOT, chromium, demo, missing, shot, started
from documents import blocks
from PIL import Image

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(missing()), reason=missing())]
PAGE = ROOT / "docs" / "demo.md"
WIDTHS = {"desk": 1200, "phone": 390}
# A drawing may be over before a test looks, so the page itself notes that a bar of progress was there.
WATCH_PROGRESS = """
window.progressSeen = false;
new MutationObserver(() => {
    window.progressSeen ||= document.querySelector("[role=status] progress") !== null;
}).observe(document.body, {childList: true, subtree: true});
"""
SECONDS = 60  # the longest wait for a result, on a machine that does other work


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def address(temporary: Path) -> Iterator[str]:
    with demo(temporary) as (found, _):
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(params=WIDTHS)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def page(browser: Any, address: str, device: str) -> Iterator[Any]:
    """The page; in the end, it asked no other host, had no errors and fits the width."""
    view = {"width": WIDTHS[device], "height": 900}
    context = browser.new_context(viewport=view, has_touch=device == "phone")
    found = context.new_page()
    found.set_default_timeout(1000 * SECONDS)
    asked, errors = [], []
    found.on("request", lambda request: asked.append(request.url))
    found.on("pageerror", lambda error: errors.append(str(error)))
    found.goto(address)
    yield found
    width = found.evaluate("document.documentElement.scrollWidth")
    context.close()
    hosts = {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}
    assert not errors
    assert width <= WIDTHS[device]


def tab(page: Any, name: str) -> Any:
    """Open a tab and give its panel."""
    page.wait_for_selector("[role=tab]")
    chosen = page.get_by_role("tab", name=name, exact=True)
    if not chosen.is_visible():  # gradio puts tabs without room into a menu
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=name).click()
    else:
        chosen.click()
    return page.get_by_role("tabpanel").filter(visible=True)


def press(panel: Any, name: str) -> None:
    panel.get_by_role("button", name=name, exact=True).click()


def set_slider(panel: Any, label: str, value: float) -> None:
    box = panel.get_by_label(f"number input for {label}")
    box.fill(str(value))
    box.press("Enter")


def done(panel: Any) -> str:
    """Wait for the end of the work and give the line of status."""
    line = panel.get_by_role("status").filter(has_text=re.compile("^done"))
    line.wait_for()
    return str(line.inner_text())


def energies(panel: Any) -> list[float]:
    texts = panel.locator(".cdrl-row.large figcaption").all_inner_texts()
    return [float(text.split("\n")[-1].removesuffix(" nats")) for text in texts]


def test_draw(page: Any, device: str) -> None:
    panel = tab(page, "Draw")
    panel.get_by_label("Class").click()
    page.get_by_role("option", name="Sneaker").click()
    set_slider(panel, "Pictures", 3)
    page.evaluate(WATCH_PROGRESS)
    press(panel, "Draw")
    panel.get_by_text("level 5, nats").wait_for()
    assert "K = 5, seeds 0 … 2" in done(panel)
    assert page.evaluate("window.progressSeen")
    headings = panel.locator(".cdrl-row.small h4").all_inner_texts()
    assert headings == [f"level {i}, nats" for i in (5, 4, 3, 2, 1, 0)]
    captions = panel.locator(".cdrl-row.large figcaption").all_inner_texts()
    assert [text.split("\n")[0] for text in captions] == ["Sneaker"] * 3
    lowest = panel.locator(".cdrl-row.small").last.locator("figcaption").all_inner_texts()
    assert energies(panel) == [float(text) for text in lowest]
    shot(page, f"draw-{device}")


def test_long_work_can_be_stopped_and_a_wrong_wish_is_one_line(page: Any) -> None:
    panel = tab(page, "Draw")
    set_slider(panel, "Pictures", 8)
    set_slider(panel, "K, Langevin steps at each level", 30)
    press(panel, "Draw")
    panel.get_by_text("level 5, nats").wait_for()
    press(panel, "Stop")
    panel.get_by_role("status").filter(has_text="stopped").wait_for()
    assert panel.locator(".cdrl-row.small").count() < 6
    panel.get_by_label("Class").click()
    page.get_by_role("option", name="any").click()
    set_slider(panel, "Guidance", 3)
    press(panel, "Draw")
    assert "needs class_labels" in panel.get_by_role("alert").inner_text()


def test_compose(page: Any, device: str) -> None:
    panel = tab(page, "Compose")
    for name in ("red", "dress", "coat"):
        panel.get_by_label(name, exact=True).first.check()
    field = panel.get_by_label("Expression")
    page.wait_for_function(
        "() => document.querySelector('#cdrl-expression textarea').value == '(dress | coat) & red'"
    )
    panel.get_by_role("button", name="★ sneaker & red").click()
    panel.get_by_text("held out: no training picture shows sneaker & red").wait_for()
    assert field.input_value() == "sneaker & red"
    set_slider(panel, "Pictures", 2)
    press(panel, "Compose")
    done(panel)
    assert len(energies(panel)) == 2
    shot(page, f"compose-{device}")
    field.fill("sneaker & purple")
    panel.get_by_role("alert").filter(has_text="unknown concept 'purple'").wait_for()


def test_repair(page: Any, device: str, tmp_path: Path) -> None:
    panel = tab(page, "Repair")
    press(panel, "Fill")
    panel.get_by_role("alert").filter(has_text="draw or upload one").wait_for()
    press(panel, "Draw one")
    canvas = panel.locator("canvas.cdrl-mask")
    canvas.wait_for()
    press(panel, "Fill")
    panel.get_by_role("alert").filter(has_text="paint on the picture first").wait_for()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for share in (0.3, 0.4, 0.5, 0.6):
        page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + share * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + share * box["height"], steps=5)
        page.mouse.up()
    painted = page.evaluate("window.cdrlMask()")
    assert len(painted) == 28 * 28 and 0.1 < painted.count("1") / 28**2 < 0.5
    set_slider(panel, "Fillings", 3)
    press(panel, "Fill")
    done(panel)
    assert len(energies(panel)) == 3
    shot(page, f"repair-{device}")
    press(panel, "Clear the mask")
    page.wait_for_function("() => !window.cdrlMask().includes('1')")
    wrong = tmp_path / "notes.png"
    wrong.write_text("not a picture", encoding="utf-8")
    panel.locator("input[type=file]").set_input_files(wrong)
    panel.get_by_role("alert").filter(has_text="notes.png: expected a picture").wait_for()
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.jpg")
    panel.locator("input[type=file]").set_input_files(tmp_path / "red.jpg")
    canvas.wait_for()


def test_how_odd(page: Any, device: str, tmp_path: Path) -> None:
    panel = tab(page, "How odd?")
    press(panel, "Score examples instead")
    done(panel)
    cards = panel.locator(".cdrl-cards > section")
    assert cards.count() == 4
    words = cards.all_inner_texts()
    assert "ordinary" in words[0] and "odder than all" in words[3]
    assert panel.locator(".cdrl-plot img").evaluate("image => image.naturalWidth") > 300
    shot(page, f"odd-{device}")
    Image.new("RGB", (64, 48), "navy").save(tmp_path / "sea.png")
    (tmp_path / "notes.txt").write_text("not a picture", encoding="utf-8")
    panel.locator("input[type=file]").set_input_files(
        [tmp_path / "sea.png", tmp_path / "notes.txt"]
    )
    panel.get_by_text("sea.png").first.wait_for()
    press(panel, "Score")
    panel.get_by_role("alert").filter(has_text="notes.txt: expected a picture").wait_for()
    done(panel)
    assert cards.count() == 1


def test_an_upload_is_limited(page: Any, tmp_path: Path) -> None:
    panel = tab(page, "How odd?")
    (tmp_path / "large.png").write_bytes(bytes(11 * 2**20))
    panel.locator("input[type=file]").set_input_files(tmp_path / "large.png")
    page.get_by_text(re.compile("exceeds|too large|maximum", re.IGNORECASE)).first.wait_for()


def test_see_the_energy(page: Any, device: str) -> None:
    panel = tab(page, "See the energy")
    assert panel.locator(".cdrl-strip figure").count() == 8
    set_slider(panel, "Chains", 200)
    press(panel, "Walk")
    panel.get_by_role("status").filter(has_text=re.compile(r"^ ?level 1, step")).wait_for()
    assert panel.locator("circle").count() == 200
    shot(page, f"energy-{device}")
    done(panel)
    assert panel.locator(".cdrl-strip .now figcaption").inner_text() == "level 0"
    at = panel.locator("circle").first
    before = at.get_attribute("cx"), at.get_attribute("cy")
    press(panel, "Walk")
    panel.get_by_role("status").filter(has_text="level 6").wait_for()
    press(panel, "Stop")
    panel.get_by_role("status").filter(has_text="stopped").wait_for()
    assert (at.get_attribute("cx"), at.get_attribute("cy")) != before


def test_the_app_of_a_space_runs_as_the_page_has_it(tmp_path: Path, browser: Any) -> None:
    code = next(block.code for block in blocks(PAGE) if block.language == "python")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    with started(tmp_path, code, **served) as process:
        for line in process.stdout or ():
            if f"127.0.0.1:{port}" in line:
                break
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}")
        press(tab(page, "Draw"), "Draw")
        done(tab(page, "Draw"))
        page.close()


def test_it_listens_on_this_machine_alone_and_leaves_nothing(tmp_path: Path) -> None:
    with demo(tmp_path, "--model", "fashion-mnist") as (address, process):
        assert urlsplit(address).hostname == "127.0.0.1"
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith("cdrl-demo-")]
        process.terminate()
        assert process.wait(30) == 0
    assert not list(tmp_path.iterdir())
