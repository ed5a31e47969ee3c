"""Draw docs/studio/*.png: every page of the studio in both languages, and at a phone's width."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "surface"))
OUT = ROOT / "docs" / "studio"
PAGES = ("create", "gallery", "edit", "plot", "walk", "rate", "models")
PROMPTS = ("a cat sitting in a garden", "a red apple", "a smiling sun", "a blue heart")


def main() -> None:
    """Serve the page with a few pictures in it and photograph it."""
    from playwright.sync_api import sync_playwright
    from studio_server import Served

    OUT.mkdir(parents=True, exist_ok=True)
    with Served(Path(tempfile.mkdtemp())) as server, sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 820})
        page.goto(server.url)
        for prompt in PROMPTS:
            page.fill("#prompt", prompt)
            page.click("#go")
        page.wait_for_function(
            f"() => document.querySelectorAll('#queue [data-state=succeeded]').length == {len(PROMPTS)}"
        )
        first = page.evaluate("fetch('/api/pictures').then(r => r.json()).then(p => p.pictures[0].id)")
        for language, size, name in (
            ("en", (1280, 820), ""),
            ("zh", (1280, 820), "-zh"),
            ("en", (390, 844), "-phone"),
        ):
            page.set_viewport_size({"width": size[0], "height": size[1]})
            page.evaluate("l => localStorage.setItem('vitrail.lang', l)", language)
            page.reload()
            for view in PAGES:
                page.evaluate("v => { location.hash = v }", f"edit/{first}" if view == "edit" else view)
                page.wait_for_timeout(500)
                if view == "create":
                    page.locator("#queue .job button").first.click()
                    page.wait_for_timeout(300)
                page.screenshot(path=OUT / f"{view}{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
