"""The report in a real browser: nothing overflows, nothing is asked of anybody, and axe finds no fault.

`make test-report` installs what this needs (Chromium, Playwright, axe-core) and runs it. The screenshots are kept in
the folder that STILLMARK_SHOTS names, to be looked at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from tests.test_golden import workspace
from tests.test_report import COMMANDS, HOSTILE, poison
from verify.evidence.report import write_report

WIDTHS: Final = {"phone": 360, "tablet": 768, "desktop": 1280}
CLIENT: Final = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BEYOND: Final = """() => [...document.body.querySelectorAll('*')].filter(e => {
    const r = e.getBoundingClientRect(), s = getComputedStyle(e);
    return r.width && s.position !== 'absolute' && !e.closest('svg, thead') && r.right > innerWidth + 1;
}).map(e => e.outerHTML.slice(0, 120))"""
"""Elements that stick out to the right of the window."""

CUT: Final = """() => [...document.querySelectorAll('svg text')].filter(e => {
    const r = e.getBoundingClientRect(), b = e.closest('svg').getBoundingClientRect();
    return r.left < b.left - 1 || r.right > b.right + 1 || r.top < b.top - 1 || r.bottom > b.bottom + 1;
}).map(e => e.textContent)"""
"""Words of pictures that stick out of their picture."""

SMALL: Final = """() => Math.min(...[...document.querySelectorAll('svg text')].map(
    e => parseFloat(getComputedStyle(e).fontSize) * e.closest('svg').getScreenCTM().a), 99)"""
"""The smallest text of a picture, in CSS pixels."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page for every kind of result, and one that is full of what strangers might put there."""
    folder = tmp_path_factory.mktemp("pages")
    made: dict[str, Path] = {}
    with workspace(tmp_path_factory.mktemp("made")) as here:
        (here.folder / "nothing.jsonl").write_text('{"output_ids": [1]}\n')
        for name, command in COMMANDS.items():
            found = here.run(command)["result"]
            write_report(found, folder / f"{name}.html")
            made[name] = folder / f"{name}.html"
            if name in ("copied", "text"):
                poison(found, HOSTILE[len(made) % 2] + HOSTILE[4] + HOSTILE[5])
                write_report(found, folder / f"hostile {name}.html")
                made[f"hostile {name}"] = folder / f"hostile {name}.html"
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found, "no Chromium: run `make test-report`, which installs it"
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=quiet)
        yield opened
        opened.close()


def look(browser: Browser, path: Path, width: int, scheme: Any = "light") -> tuple[Page, list[str]]:
    """The page opened at a width, and what it asked for or complained of."""
    seen = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    faults: list[str] = []
    seen.on("console", lambda message: faults.append(message.text))
    seen.on("pageerror", lambda error: faults.append(str(error)))
    seen.on("dialog", lambda dialog: faults.append(dialog.message))
    seen.on("request", lambda request: None if request.url == path.as_uri() else faults.append(request.url))
    seen.goto(path.as_uri(), wait_until="load")
    return seen, faults


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", [*COMMANDS, "hostile copied", "hostile text"])
def test_the_page_holds(name: str, scheme: str, pages: dict[str, Path], browser: Browser) -> None:
    """At three widths: nothing overflows or is cut, pictures are legible, no request, no error, no finding of axe."""
    for device, width in WIDTHS.items():
        page, faults = look(browser, pages[name], width, scheme)
        assert page.evaluate(CLIENT) == 0, (device, page.evaluate(BEYOND))
        assert page.evaluate(BEYOND) == [], device
        assert page.evaluate(CUT) == [], device
        assert page.evaluate(SMALL) >= 8, device
        assert page.locator("h1").count() == 1
        found = Axe().run(page)
        assert found.violations_count == 0, (device, found.generate_report())
        assert faults == []
        if folder := os.environ.get("STILLMARK_SHOTS"):
            Path(folder).mkdir(exist_ok=True)
            page.screenshot(path=Path(folder) / f"{name}-{device}-{scheme}.png", full_page=True)
        page.close()


@pytest.mark.parametrize("name", ["copied", "distilled", "cannot tell", "text", "hostile text"])
def test_it_prints_on_a4(name: str, pages: dict[str, Path], browser: Browser, tmp_path: Path) -> None:
    """Nothing is wider than the sheet, and the print has the words of the page, in black on white."""
    page, faults = look(browser, pages[name], 680, "dark")  # A4 less its margins, in CSS pixels
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(CLIENT) == 0
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    target = tmp_path / "page.pdf"
    page.pdf(path=target, format="A4", prefer_css_page_size=True)
    assert target.read_bytes().startswith(b"%PDF-")
    assert faults == []
    if folder := os.environ.get("STILLMARK_SHOTS"):
        Path(folder).mkdir(exist_ok=True)
        shutil.copy(target, Path(folder) / f"{name}.pdf")
    page.close()


def test_it_reads_without_colour_or_sight(pages: dict[str, Path], browser: Browser) -> None:
    """Every picture has words, and a green token has a line below it, not a colour alone."""
    page, _ = look(browser, pages["text"], 1280)
    pictures = page.locator("svg[role=img]")
    assert pictures.count() >= 3
    for i in range(pictures.count()):
        name = pictures.nth(i).get_attribute("aria-labelledby")
        assert len(page.locator(f"[id='{name}']").text_content() or "") > 40
    style = "e => getComputedStyle(e).borderBottomStyle"
    assert page.locator(".tokens .g").first.evaluate(style) == "solid"
    assert page.locator(".tokens .r").nth(1).evaluate(style) == "none"
    page.close()


def test_faults_are_seen(browser: Browser, tmp_path: Path) -> None:
    """The checks above can fail: a page that overflows, asks, complains, and has an unnamed picture."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<html><body><h1>x</h1><div style='width:3000px'>wide</div><img src='other.png'>"
        "<script>console.log('hello')</script></body></html>"
    )
    page, faults = look(browser, bad, 360)
    assert page.evaluate(CLIENT) > 0
    assert page.evaluate(BEYOND)
    assert any("other.png" in one for one in faults)
    assert "hello" in faults
    assert Axe().run(page).violations_count > 0
    page.close()
