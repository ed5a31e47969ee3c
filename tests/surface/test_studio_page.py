"""The page in a real browser: first picture, reload, cancel, language, script in what people write."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
CHROMIUM = Path("/usr/bin/chromium")
if not CHROMIUM.exists() and "browser" not in os.environ.get("VITRAIL_REQUIRE", ""):
    pytest.skip("needs Chromium at /usr/bin/chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra dev")
from studio_server import Served  # noqa: E402

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("studio"), slow=0.0) as server:
        yield server


def _open(browser: Any, url: str, **more: Any) -> Any:
    page = browser.new_page(locale=more.pop("locale", "en-GB"), **more)
    page.set_default_timeout(15_000)
    page.foreign = []
    page.on("request", lambda r: r.url.startswith((url, "blob:", "data:")) or page.foreign.append(r.url))
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda m: m.type == "error" and page.errors.append(m.text))
    page.goto(url)
    page.wait_for_selector("#go")
    return page


def _make(page: Any, prompt: str, steps: int | None = None) -> None:
    page.fill("#prompt", prompt)
    if steps:
        page.evaluate("document.querySelector('#more').open = true")
        page.fill("#f-steps", str(steps))
    page.click("#go")


def test_a_picture_appears_and_nothing_comes_from_outside(browser: Any, served: Served) -> None:
    page = _open(browser, served.url)
    _make(page, "a red apple")
    page.wait_for_selector("#stage img.result")
    page.wait_for_function("() => document.querySelector('#stage img.result').naturalWidth > 0")
    page.click("nav a[href='#gallery']")
    page.wait_for_selector(".tile img[alt='a red apple']")
    assert (page.foreign, page.errors) == ([], [])
    page.close()


def test_language_follows_the_browser_and_the_switch_is_remembered(browser: Any, served: Served) -> None:
    page = _open(browser, served.url, locale="zh-CN")
    assert page.inner_text("#go").startswith("生成")
    page.click(".brand .lang")
    page.wait_for_selector("#go")
    page.reload()
    page.wait_for_selector("#go")
    assert page.inner_text("#go").startswith("Create")
    page.close()


def test_twenty_reloads_attach_again_and_cancel_stops(browser: Any, tmp_path: Path) -> None:
    with Served(tmp_path, slow=0.25) as server:
        page = _open(browser, server.url)
        _make(page, "a blue heart", steps=200)
        page.wait_for_selector("[data-state=running]")
        slowest = 0.0
        for _ in range(20):
            page.reload()
            began = time.monotonic()
            page.wait_for_selector("#stage .live progress[value]")
            before = page.get_attribute("#stage .live progress", "value")
            page.wait_for_function(
                "b => document.querySelector('#stage .live progress')?.getAttribute('value') != b", arg=before
            )
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 2
        page.click("#queue .cancel")
        page.wait_for_selector("[data-state=cancelled]")
        page.close()


SCRIPT = "<img src=x onerror=window.hit=1><script>window.hit=1</script>"


def test_script_in_a_prompt_stays_text(browser: Any, served: Served) -> None:
    page = _open(browser, served.url)
    _make(page, SCRIPT)
    page.wait_for_selector("#stage img.result[alt*=onerror]")
    page.click("nav a[href='#gallery']")
    page.click(".tile:has(img[alt*=onerror])")
    page.wait_for_selector("dialog .words")
    assert "onerror" in page.inner_text("dialog")
    assert page.evaluate("window.hit") is None
    page.close()


def test_control_the_same_text_runs_where_nothing_guards(browser: Any, tmp_path: Path) -> None:
    with Served(tmp_path, csp="default-src * 'unsafe-inline'") as server:
        page = _open(browser, server.url)
        page.evaluate("text => { document.body.innerHTML = text }", SCRIPT)
        page.wait_for_function("() => window.hit === 1")
        page.close()


def test_a_dropped_picture_fills_the_form(browser: Any, served: Served) -> None:
    from io import BytesIO

    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    said = "a lighthouse\nNegative prompt: fog\nSteps: 31, Sampler: Euler a, CFG scale: 5.5, Seed: 77"
    text.add_text("parameters", said)
    out = BytesIO()
    Image.new("RGB", (32, 32)).save(out, "PNG", pnginfo=text)
    page = _open(browser, served.url)
    page.evaluate(
        "bytes => { const d = new DataTransfer(); d.items.add(new File([new Uint8Array(bytes)], 'a.png'));"
        "dispatchEvent(new DragEvent('drop', {dataTransfer: d, cancelable: true})) }",
        list(out.getvalue()),
    )
    page.wait_for_function("() => document.querySelector('#prompt')?.value === 'a lighthouse'")
    assert page.input_value("#seed") == "77"
    assert page.input_value("#f-steps") == "31"
    assert page.input_value("#f-sampler") == "euler_ancestral"
    page.close()
