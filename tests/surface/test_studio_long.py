"""Training and evaluation as a person does them on the page, with the real worker and its real work."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_server import one_thread
from PIL import Image, ImageDraw
from studio_browser import open_page, photograph
from studio_server import serve_studio

PATIENCE = 180_000
"""Milliseconds for what computes on a machine that is busy; on a quiet one it is seconds."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, networks: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITRAIL_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("VITRAIL_DATA", str(networks))
        one_thread()
        with serve_studio(tmp_path_factory.mktemp("long")) as server:
            yield server


def _pictures(folder: Path, count: int, turn: float = 0.0) -> Path:
    """A folder of coloured discs and squares, 32 pixels a side."""
    folder.mkdir()
    for i in range(count):
        red, green, blue = (int(255 * c) for c in colorsys.hls_to_rgb((turn + i / count) % 1, 0.5, 0.9))
        picture = Image.new("RGB", (32, 32), (245, 240, 230))
        box = (4 + i % 3, 5, 24 + i % 5, 27)
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if i % 2 else draw.rectangle)(box, fill=(red, green, blue))
        picture.save(folder / f"{i:02d}.png")
    return folder


def _shown(page: Any, selector: str) -> None:
    """Wait until the picture at ``selector`` has arrived and is drawn."""
    page.wait_for_selector(selector)
    page.wait_for_function("s => document.querySelector(s).naturalWidth > 16", arg=selector)


def test_a_folder_is_looked_at_trained_on_stopped_tried_and_gone_on_with(
    browser: Any, served: Any, tmp_path: Path
) -> None:
    folder = _pictures(tmp_path / "discs", 24)
    (folder / "24.png").write_bytes(b"not a picture")
    page = open_page(browser, served.url, "train")
    page.set_default_timeout(PATIENCE)
    page.fill("#folder", str(folder))
    page.click("#look")
    _shown(page, "img.sheet[alt='Contact sheet of 24 pictures']")
    assert page.inner_text(".figures > :nth-child(1)").split() == ["24", "usable", "pictures"]
    assert page.inner_text(".figures > :nth-child(2)").split() == ["1", "files", "left", "out"]
    photograph(page, "train-look")
    page.fill("#run-images", "400")
    page.click("#go")
    page.wait_for_selector(".curve[aria-label^='Loss']")
    _shown(page, "img.sheet[alt^=Samples]")
    photograph(page, "train-running")
    page.click("button:has-text('Stop')")
    page.wait_for_selector(".badge:has-text('stopped')")
    photograph(page, "train-stopped")
    (run,) = served.http.get("/api/studio/runs").json()
    assert (run["name"], run["source"], run["state"]) == ("discs", "discs", "stopped")
    assert 0 < run["images"] < 400

    page.click("button:has-text('Draw with it')")  # as it is now
    page.wait_for_function("() => document.querySelector('#model')?.value.startsWith('discs-at-')")
    model = page.input_value("#model")
    page.fill("#prompt", "a disc")
    page.click("#go")
    _shown(page, "#stage img.result")
    (made,) = served.http.get("/api/pictures").json()["pictures"]
    assert (made["model"], made["prompt"]) == (model, "a disc")

    page.click(".views a[href='#train']")
    page.click(".runs a:has-text('discs')")
    page.click("button:has-text('Go on')")
    page.wait_for_selector(".badge:has-text('finished')")
    assert page.inner_text(".pane.stack > .stack").count("400 of 400 pictures seen") == 1
    (run,) = served.http.get("/api/studio/runs").json()
    assert (run["images"], run["state"], run["share"]) == (400, "finished", 1.0)
    photograph(page, "train-finished")
    page.click("button:has-text('Draw with it')")
    page.wait_for_function("() => document.querySelector('#model')?.value === 'discs'")
    assert (page.foreign, page.errors) == ([], [])
    page.close()


def test_two_folders_are_compared_and_the_report_opens_in_the_readers_language(
    browser: Any, served: Any, tmp_path: Path
) -> None:
    judged, real = _pictures(tmp_path / "made", 10, 0.3), _pictures(tmp_path / "real", 12)
    page = open_page(browser, served.url, "evaluate", locale="zh-CN")
    page.set_default_timeout(PATIENCE)
    page.click(".chip:has-text('文件夹')")
    page.set_input_files("#folder-files", judged)
    page.wait_for_function("() => document.querySelector('select[aria-label]')?.value.length === 16")
    page.fill("#against", str(real))
    photograph(page, "evaluate-form")
    page.click("#go")
    page.wait_for_selector("iframe.report")
    report = page.frame_locator("iframe.report")
    report.locator("h2 [lang=zh]:visible", has_text="结论").wait_for()
    assert report.locator("h1").inner_text() == "made"
    assert report.locator("html").get_attribute("lang") == "zh"
    assert report.locator(".advice li:visible").count() > 0
    assert report.locator("h2 [lang=en]:visible").count() == 0
    photograph(page, "evaluate-report")
    (one,) = served.http.get("/api/studio/reports").json()["reports"]
    assert (one["name"], one["n"], one["against"]) == ("made", 10, "real")
    page.click(".brand .lang")  # the reader changes, and so does the report
    report.locator("h2 [lang=en]:visible", has_text="In short").wait_for()
    assert report.locator("h2 [lang=zh]:visible").count() == 0

    # While somebody fills in the next one, another ends: the form stays, and the queue leads to the report.
    page.click("a.button.main")
    page.fill("#limit", "77")
    request = {"kind": "evaluate", "pictures": str(real), "against": str(judged), "name": "others"}
    id = served.http.post("/api/jobs", json=request).json()["id"]
    page.wait_for_selector(".runs a:has-text('others')")
    assert page.input_value("#limit") == "77"
    page.click(f"#queue [data-job='{id}'] .what")
    page.wait_for_selector("iframe.report[title=others]")
    report.locator("h1", has_text="others").wait_for()
    page.click("a[href='#evaluate/compare']")
    page.wait_for_selector("thead th:has-text('others')")
    assert page.locator("tbody tr").count() > 0
    photograph(page, "evaluate-compare")
    assert (page.foreign, page.errors) == ([], [])
    page.close()
