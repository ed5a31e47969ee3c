"""A headless Chromium for the page's tests, and pages that note what they should not do."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["FLAGS", "Chromium", "drop", "launched", "make", "open_page", "photograph", "settled"]

CHROMIUM = Path("/usr/bin/chromium")

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Chromium:
    """A running browser. Playwright calls its event loop the thread's own for as long as it is open.

    Only inside ``with chromium.awake()`` is that so: other tests of the process run loops of theirs between.
    """

    def __init__(self, browser: Any) -> None:
        self.browser = browser
        self._loop = asyncio.get_running_loop()
        asyncio._set_running_loop(None)

    @contextlib.contextmanager
    def awake(self) -> Iterator[Any]:
        """The browser, ready for use."""
        asyncio._set_running_loop(self._loop)
        try:
            yield self.browser
        finally:
            asyncio._set_running_loop(None)


def launched() -> Iterator[Chromium]:
    """The browser. Tests are skipped without one, unless VITRAIL_REQUIRE names "browser"."""
    if "browser" not in os.environ.get("VITRAIL_REQUIRE", ""):
        if not CHROMIUM.exists():
            pytest.skip(f"needs Chromium at {CHROMIUM}")
        pytest.importorskip("playwright.sync_api", reason="needs the extra dev")
    from playwright.sync_api import sync_playwright

    playwright = sync_playwright().start()
    chromium = Chromium(playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS))
    yield chromium
    with chromium.awake() as browser:
        browser.close()
        playwright.stop()


def open_page(browser: Any, url: str, view: str = "create", **more: Any) -> Any:
    """A fresh visitor's page; ``page.errors`` and ``page.foreign`` are what went wrong and went outside."""
    page = browser.new_page(locale=more.pop("locale", "en-GB"), **more)
    page.set_default_timeout(20_000)
    page.foreign, page.errors, page.asked = [], [], set()
    page.on("request", lambda r: r.url.endswith("/events") or page.asked.add(r))
    for end in ("requestfinished", "requestfailed"):
        page.on(end, lambda r: page.asked.discard(r))
    page.on("request", lambda r: r.url.startswith((url, "blob:", "data:")) or page.foreign.append(r.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda m: m.type == "error" and page.errors.append(m.text))
    page.goto(f"{url}/#{view}")
    page.wait_for_selector("#main > *")
    return page


def settled(page: Any) -> None:
    """Wait until the page has asked for nothing more, for a moment (a job's events apart, which go on)."""
    quiet = 0
    while quiet < 3:
        page.wait_for_timeout(20)
        quiet = 0 if page.asked else quiet + 1


def make(page: Any, prompt: str, steps: int | None = None) -> None:
    """Ask for a picture on the page of Create."""
    page.wait_for_selector("#model option", state="attached")
    page.fill("#prompt", prompt)
    if steps:
        page.evaluate("() => { document.querySelector('#more').open = true }")
        page.fill("#f-steps", str(steps))
    page.click("#go")


def photograph(page: Any, name: str) -> None:
    """Keep how the page looks, for people, in the folder that VITRAIL_PHOTOS names; else nothing."""
    if folder := os.environ.get("VITRAIL_PHOTOS"):
        page.screenshot(path=Path(folder, f"{name}.png"), full_page=True)


def drop(page: Any, data: bytes, name: str = "a.png") -> None:
    """Drop a file onto the page."""
    page.evaluate(
        "([bytes, name]) => { const d = new DataTransfer();"
        "d.items.add(new File([new Uint8Array(bytes)], name));"
        "dispatchEvent(new DragEvent('drop', {dataTransfer: d, cancelable: true})) }",
        [list(data), name],
    )
