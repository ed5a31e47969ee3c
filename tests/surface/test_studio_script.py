"""Script in whatever people and files say never runs in the page (W4); where the guard is out, it does."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin
from studio_browser import drop, make, open_page, settled
from studio_hands import COMMAND
from studio_server import serve_studio

from vitrail.studio import page as studio_page

SCRIPT = "<img src=x onerror=window.hit=1><script>window.hit=1</script>"
FILE_NAME = "<img src=x onerror=window.hit=1>"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    home = tmp_path_factory.mktemp("hostile")
    loras = home / "elsewhere" / "loras"
    loras.mkdir(parents=True)
    head = json.dumps({"__metadata__": {"ss_output_name": SCRIPT, "modelspec.title": SCRIPT}}).encode()
    (loras / f"{FILE_NAME}.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    _report(home / "work" / "reports" / f"evaluate-{FILE_NAME}")
    _run(home / "work" / "runs" / FILE_NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITRAIL_MODEL_FOLDERS", str(home / "elsewhere"))
        with serve_studio(home, hands=COMMAND) as server:
            yield server


def _report(folder: Path) -> None:
    folder.mkdir(parents=True)
    about = {
        "kind": "sets",
        "pictures": {"n": 2},
        "reference": {"name": SCRIPT},
        "about": {"created": SCRIPT},
    }
    verdict = [{"tone": "good", "en": SCRIPT, "zh": SCRIPT}]
    (folder / "report.json").write_text(json.dumps({**about, "metrics": {}, "verdict": verdict}))
    (folder / "report.html").write_text(
        f"<!doctype html><body>written by an evaluation{SCRIPT}<script>parent.hit=1;top.hit=1</script>"
    )


def _run(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(f"kind = {json.dumps(SCRIPT)}\nname = {json.dumps(SCRIPT)}\n")
    (folder / "metrics.jsonl").write_text(json.dumps({"images": 3, f"loss/{SCRIPT}": 0.5}) + "\n")


_ANOTHER_PICTURE = (
    "() => new Promise(done => { const image = new Image();"
    "image.onerror = () => setTimeout(done, 0); image.src = `x?${Math.random()}` })"
)
"""Ends when a picture that is asked for now has failed, as the one in :data:`SCRIPT` would have before it."""


def _ran(page: Any) -> bool:
    settled(page)
    for frame in page.frames:
        frame.evaluate(_ANOTHER_PICTURE)
    return any(frame.evaluate("() => window.hit === 1") for frame in page.frames)


def test_in_a_prompt_and_an_error(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url)
    make(page, SCRIPT)
    page.wait_for_selector("#stage img.result[alt*=onerror]")
    make(page, f"fail {SCRIPT}")
    page.wait_for_selector("#stage .bad")
    assert "onerror" in page.inner_text("#stage .bad")
    page.wait_for_selector("#queue .bad")
    assert not _ran(page)
    for view in ("gallery", "rate", "plot", "edit"):
        page.evaluate("view => { location.hash = view }", view)
        page.wait_for_selector(f"main.view-{view} > *")
        assert not _ran(page)
    page.evaluate("() => { location.hash = 'gallery' }")
    page.click(".tile:has(img[alt*=onerror])")
    page.click("dialog summary")
    assert "onerror" in page.inner_text("dialog pre")
    assert not _ran(page)
    page.close()


def test_in_what_a_dropped_picture_says(browser: Any, served: Any) -> None:
    png, jpeg = io.BytesIO(), io.BytesIO()
    about = PngImagePlugin.PngInfo()
    said = f"{SCRIPT}\nNegative prompt: {SCRIPT}\nSteps: 5, Sampler: {SCRIPT}, Seed: 1, Model: {SCRIPT}"
    about.add_text("parameters", said)
    Image.new("RGB", (8, 8)).save(png, "PNG", pnginfo=about)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + said.encode("utf-16-be")
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG", exif=exif)
    page = open_page(browser, served.url)
    for data, name in ((png, f"{FILE_NAME}.png"), (jpeg, "b.jpg")):
        page.evaluate("() => { const p = document.querySelector('#prompt'); if (p) p.value = '' }")
        drop(page, data.getvalue(), name)
        page.wait_for_function("() => document.querySelector('#prompt')?.value.includes('onerror')")
        page.wait_for_selector(".toast")
        assert not _ran(page)
    page.close()


def test_in_names_of_files_reports_and_runs(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, "models")
    page.wait_for_selector(".model h3:has-text('onerror')")
    assert not _ran(page)
    for view in ("train", "evaluate"):
        page.evaluate("view => { location.hash = view }", view)
        page.click(".runs a")
        page.wait_for_selector("iframe" if view == "evaluate" else ".curve")
        assert not _ran(page)
    frame = page.frames[-1]
    frame.wait_for_selector("text=written by an evaluation")
    assert not _ran(page)
    # The report is shown, as a page of no origin in which no script but its writer's runs.
    frame = page.frames[-1]
    frame.wait_for_selector("text=written by an evaluation")
    assert frame.evaluate("() => origin") == "null"
    page.close()


def test_the_report_answers_with_its_own_policy(served: Any) -> None:
    id = served.http.get("/api/studio/reports").json()["reports"][0]["id"]
    answer = served.http.get(f"/api/studio/reports/{id}/page")
    policy = answer.headers["content-security-policy"]
    assert "sandbox allow-scripts" in policy
    assert "allow-same-origin" not in policy
    assert "script-src 'sha256-" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_control_the_same_prompt_runs_where_text_is_written_as_markup(browser: Any, tmp_path: Path) -> None:
    """Both defences taken out, elements made of markup and no policy: it runs, so the tests can see it."""
    loose = "default-src * 'unsafe-inline' data: blob:"
    source = (studio_page.ASSETS / "dom.js").read_text()
    safe = "  element.append(...flat(children));"
    assert safe in source
    broken = source.replace(
        safe,
        "  for (const c of flat(children)) typeof c === 'string'"
        " ? element.insertAdjacentHTML('beforeend', c) : element.append(c);",
    )
    with serve_studio(tmp_path, workers=0, csp=loose) as server:  # the queue says it, drawn or not
        context = browser.new_context()
        context.route("**/dom.js", lambda route: route.fulfill(body=broken, content_type="text/javascript"))
        page = context.new_page()
        page.asked = set()
        page.goto(server.url)
        make(page, SCRIPT)
        page.wait_for_selector("#queue .job")
        assert _ran(page)
        context.close()
