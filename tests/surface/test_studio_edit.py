"""The brush gives the mask that was painted; pictures are marked, compared, deleted and brought back."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from studio_browser import drop, make, open_page, photograph
from studio_hands import COMMAND, SIDE
from studio_server import serve_studio


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[Any]:
    with serve_studio(tmp_path_factory.mktemp("edit"), hands=COMMAND) as server:
        page = open_page(browser, server.url)
        for words in ("a cat", "a dog"):
            make(page, words)
            page.wait_for_selector(f"#stage img.result[alt='{words}']")
        page.close()
        yield server


def _ids(served: Any) -> dict[str, str]:
    return {row["prompt"]: row["id"] for row in served.http.get("/api/pictures").json()["pictures"]}


def _sent(page: Any) -> dict[str, Any]:
    """Press Start and return what would be asked for; it is not."""
    bodies: list[dict[str, Any]] = []

    def refuse(route: Any) -> None:
        bodies.append(route.request.post_data_json)
        route.fulfill(status=400, json={"error": {"message": f"refused {len(bodies)}"}})

    page.route("**/api/jobs", refuse)
    page.click("#go")
    page.wait_for_selector(".toast:has-text('refused 1')")
    page.unroute("**/api/jobs")
    page.evaluate("() => document.querySelector('.toasts').replaceChildren()")
    return bodies[0]


def _mask(body: dict[str, Any]) -> Any:
    picture = Image.open(io.BytesIO(base64.b64decode(body["mask"]["data"])))
    assert picture.size == (SIDE, SIDE)
    return np.asarray(picture.convert("L"))


def _stroke(page: Any, x0: float, y0: float, x1: float, y1: float) -> None:
    """Draw a line; places are shares of the picture."""
    box = page.locator(".paint canvas").first.bounding_box()
    page.mouse.move(box["x"] + x0 * box["width"], box["y"] + y0 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + x1 * box["width"], box["y"] + y1 * box["height"], steps=4)
    page.mouse.up()


def test_the_mask_is_what_was_painted(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, f"edit/{_ids(served)['a cat']}/inpaint")
    page.wait_for_selector(".paint canvas")
    page.fill("#brush", "8")
    _stroke(page, 0.25, 0.5, 0.75, 0.5)
    body = _sent(page)
    assert (body["kind"], body["picture"]["name"]) == ("inpaint", "picture.png")
    mask = _mask(body)
    rows, columns = np.nonzero(mask > 127)
    # A line of 8 pixels with round ends from (16, 32) to (48, 32).
    assert (abs(rows.min() - 28) <= 1, abs(rows.max() - 35) <= 1) == (True, True)
    assert (abs(columns.min() - 12) <= 1, abs(columns.max() - 51) <= 1) == (True, True)
    assert mask[0].max() == 0
    assert mask[32, 32] == 255
    # The eraser takes out, undo brings back, a soft edge is grey on both sides of the old one.
    page.click("text=Eraser")
    _stroke(page, 0.5, 0.2, 0.5, 0.8)
    assert _mask(_sent(page))[32, 32] == 0
    page.keyboard.press("Control+z")
    assert _mask(_sent(page))[32, 32] == 255
    page.fill("#edge", "16")
    soft = _mask(_sent(page))[:, 32].astype(int)
    assert 0 < soft[26] < 128 < soft[31]
    assert (np.diff(soft[:32]) >= 0).all()
    page.close()


def test_nothing_is_asked_for_without_what_it_takes(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, "edit")
    page.wait_for_selector("#go")
    page.click("#go")
    page.wait_for_selector(".toast:has-text('Choose a picture')")
    page.goto(f"{served.url}/#edit/{_ids(served)['a cat']}/inpaint")
    page.wait_for_selector(".paint canvas")
    page.click("#go")
    page.wait_for_selector(".toast:has-text('Paint over')")
    page.check("input[name=mode][value=repair]", force=True)
    page.wait_for_selector(".notice:has-text('migan')")
    assert page.is_disabled("#go")
    page.close()


def test_a_missing_model_is_fetched_where_it_is_missed(browser: Any, served: Any) -> None:
    models = served.http.get("/api/studio/models").json()
    missing = next(model for model in models if model["name"] == "realesrgan-x4")
    told: list[dict[str, Any]] = [
        missing,
        {**missing, "fetching": {"done": 0, "total": 1000, "running": False, "error": "no way there"}},
        {**missing, "fetching": {"done": None, "total": 1000, "running": True, "seconds": 7, "error": None}},
        {**missing, "fetching": {"done": 400, "total": 1000, "running": True, "error": None}},
        {**missing, "here": True},
    ]
    step = 0
    page = open_page(browser, served.url, "gallery", locale="zh-CN")

    def list_models(route: Any) -> None:
        nonlocal step
        route.fulfill(json=[*(one for one in models if one is not missing), told[step]])
        step += 2 <= step < 4

    def pull(route: Any) -> None:
        nonlocal step
        assert route.request.post_data_json == {"name": "realesrgan-x4"}
        step += 1
        route.fulfill(status=202, json={"name": "realesrgan-x4"})

    page.route("**/api/studio/models", list_models)
    page.route("**/api/studio/models/pull", pull)
    page.goto(f"{served.url}/#edit/{_ids(served)['a cat']}/enlarge")
    page.wait_for_selector(".notice:has-text('需要模型 realesrgan-x4')")
    assert page.is_disabled("#go")
    page.click(".notice .fetch")
    page.wait_for_selector(".notice .bad:has-text('no way there')")  # and it can be tried again
    photograph(page, "edit-missing")
    page.click(".notice .fetch")
    page.wait_for_selector(".notice small:text-is('正在获取 1 kB，已用 7 秒')")  # a registry counts no bytes
    page.wait_for_selector(".notice progress[value='400']")
    photograph(page, "edit-fetching")
    page.wait_for_selector("#go:enabled")
    assert page.locator(".notice").count() == 0
    assert page.errors == []
    page.close()


def test_redraw_shows_before_and_after(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, f"edit/{_ids(served)['a cat']}")
    page.wait_for_selector(".paint canvas")
    page.fill("#prompt", "a blue cat")
    page.fill("#brush", "8")
    _stroke(page, 0.1, 0.5, 0.3, 0.5)
    page.click("#go")
    page.wait_for_selector(".compare")
    page.focus(".compare input")
    before = page.evaluate("() => document.querySelector('.compare').style.getPropertyValue('--cut')")
    page.keyboard.press("ArrowRight")
    after = page.evaluate("() => document.querySelector('.compare').style.getPropertyValue('--cut')")
    assert (before, after) == ("20%", "21%")  # what was painted over is seen on both sides of the edge
    newest = served.engine.jobs(limit=1)[0]
    assert (newest.kind, newest.request["strength"]) == ("edit", 0.6)
    page.close()


def test_two_pictures_are_compared_within_a_phones_width(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, "gallery", viewport={"width": 390, "height": 820})
    page.click("button:has-text('Compare two')")
    for name in ("a cat", "a dog"):
        page.click(f"[data-picture='{_ids(served)[name]}']")
    page.wait_for_function("() => document.querySelector('dialog .compare img')?.style.width")
    right = "e => document.querySelector(e).getBoundingClientRect().right"
    inner, outer = (page.evaluate(right, one) for one in ("dialog .compare", "dialog"))
    assert inner < outer <= 390
    assert page.locator(".toast").count() == 0  # what to do is no longer said once it is done
    page.close()


def test_a_large_picture_keeps_its_shape_and_one_without_words_offers_no_settings(
    browser: Any, served: Any
) -> None:
    page = open_page(browser, served.url, "gallery")
    box = page.evaluate(
        "async () => { const { image } = await import('/studio/picture.js');"
        "const shown = image({ id: 'x', width: 800, height: 1600 });"
        "document.querySelector('#main').replaceChildren(shown);"
        "return shown.firstChild.getBoundingClientRect().toJSON() }"
    )
    assert box["height"] < 500
    assert box["height"] == pytest.approx(2 * box["width"], abs=1)
    said = "async kind => (await import('/studio/picture.js')).actions({ id: 'x', kind }).textContent"
    offered = {kind: "Reuse" in page.evaluate(said, kind) for kind in ("edit", "upscale", "repair")}
    assert offered == {"edit": True, "upscale": False, "repair": False}
    page.close()


def _named_in_the_queue(page: Any, name: str) -> None:
    page.wait_for_selector(f"#queue [data-state=succeeded] .t:text-is('{name}')")


def test_a_picture_is_extended_and_its_settings_are_reused(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, f"edit/{_ids(served)['a cat']}/outpaint", locale="zh-CN")
    page.wait_for_selector(".paint canvas")
    for side, pixels in zip(page.locator(".edges input").all(), (16, 32, 0, 8), strict=True):
        side.fill(str(pixels))
    page.click("#go")
    # What has another shape is shown as it is, not over the old one; the queue calls it what was done.
    result = page.wait_for_selector("#stage img.result[alt='向外扩画']")
    page.wait_for_function("image => image.complete", arg=result)
    assert result.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [SIDE + 48, SIDE + 8]
    _named_in_the_queue(page, "向外扩画")
    request = served.engine.jobs(limit=1)[0].request
    assert request["expand"] == {"left": 16, "right": 32, "top": 0, "bottom": 8}
    page.click(".actions button:has-text('沿用设置')")
    page.wait_for_selector(".toast:has-text('已把这张图片的设置填入表单。')")
    assert page.input_value("#seed") == str(served.engine.jobs(limit=1)[0].pictures[0].seed)
    assert page.errors == []
    page.close()


def test_variations_are_made_of_a_picture_in_the_gallery(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, "gallery")
    page.click(f"[data-picture='{_ids(served)['a cat']}']")
    page.click("dialog button:has-text('Vary')")
    page.wait_for_selector(".paint canvas")
    page.fill(".slider input", "0.5")
    page.click(".chip:has-text('4')")
    page.click("#go")
    page.wait_for_function("() => document.querySelectorAll('#stage img.result').length == 4")
    _named_in_the_queue(page, "Variations")
    job = served.engine.jobs(limit=1)[0]
    assert (job.kind, job.request["amount"], len(job.pictures)) == ("vary", 0.5, 4)
    found = {picture.id for picture in served.engine.gallery.page(kind="vary").pictures}
    assert found == {picture.id for picture in job.pictures}
    assert page.errors == []
    page.close()


def test_the_queue_says_which_file_was_worked_on(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, "edit/x/variations")
    drop(page, served.http.get(f"/api/pictures/{_ids(served)['a cat']}/file").content, "holiday.png")
    page.wait_for_selector(".paint canvas")
    page.click("#go")
    _named_in_the_queue(page, "Variations · holiday.png")
    page.click(".brand .lang")
    _named_in_the_queue(page, "变体 · holiday.png")
    page.close()


def test_favourites_comparing_deleting_and_undoing(browser: Any, served: Any) -> None:
    ids = _ids(served)
    page = open_page(browser, served.url, "gallery")
    page.click(f"[data-picture='{ids['a dog']}']")
    page.click("dialog .star")
    page.wait_for_selector("dialog .star[aria-pressed=true]")
    assert served.http.get(f"/api/pictures/{ids['a dog']}").json()["favourite"]
    page.keyboard.press("Escape")
    page.click("button:has-text('Favourites')")
    page.wait_for_function("() => document.querySelectorAll('.tile').length == 1")
    page.click("button:has-text('Favourites')")
    page.fill("#search", "dog")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.tile img')].map(i => i.alt).join() == 'a dog'"
    )
    page.fill("#search", "")
    page.wait_for_function("() => document.querySelectorAll('.tile').length > 1")
    for undone in (True, False):
        page.click(f"[data-picture='{ids['a cat']}']")
        page.click("dialog .danger")
        page.wait_for_selector(f"[data-picture='{ids['a cat']}']", state="detached")
        if undone:
            page.click(".toast button")
            page.wait_for_selector(f"[data-picture='{ids['a cat']}']")
    page.reload()  # whoever leaves has decided
    page.wait_for_selector(".tile")
    for _ in range(100):
        if served.http.get(f"/api/pictures/{ids['a cat']}").status_code == 404:
            break
        page.wait_for_timeout(50)
    assert served.http.get(f"/api/pictures/{ids['a cat']}").status_code == 404
    assert served.http.get(f"/api/pictures/{ids['a dog']}").status_code == 200
    page.close()
