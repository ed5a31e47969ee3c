"""What a person meets in the first hour: looks elsewhere and comes back, presses twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from studio_browser import drop, make, open_page, photograph
from studio_hands import COMMAND, picture
from studio_server import serve_studio

from vitrail.serving.save import picture_bytes


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with serve_studio(tmp_path_factory.mktemp("hour"), hands=COMMAND) as server:
        server.wait(server.http.post("/api/jobs", json={"prompt": "a cat"}).json()["id"])
        yield server


def _cat(served: Any) -> str:
    found = served.http.get("/api/pictures?query=a+cat").json()["pictures"]
    return str(found[-1]["id"])


def _stroke(page: Any) -> None:
    box = page.locator(".paint canvas").first.bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"], steps=4)
    page.mouse.up()


def _painted(page: Any) -> bool:
    """Whether there are strokes on the picture that is shown."""
    return bool(
        page.evaluate(
            "() => { const c = document.querySelector('.paint .strokes');"
            "if (c === null) return false;"
            "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(Boolean) }"
        )
    )


def test_another_view_takes_away_neither_words_nor_strokes_nor_the_result(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, f"edit/{_cat(served)}/inpaint")
    page.wait_for_selector(".paint canvas")
    page.fill("#prompt", "a red hat")
    _stroke(page)
    page.click(".nav-gallery")
    page.wait_for_selector(".tiles .tile")
    page.click(".nav-edit")
    page.wait_for_selector(".paint canvas")
    assert page.input_value("#prompt") == "a red hat"
    assert page.is_checked("[name=mode][value=inpaint]")
    assert _painted(page)
    page.click("#go")
    page.wait_for_selector(".compare")
    page.click(".lang")  # the page was empty here, because the result was there before its place
    page.wait_for_selector("[role=tab][aria-selected=true]:has-text('前后对比')")
    page.click("[role=tab]:has-text('原图')")
    assert _painted(page)
    assert page.get_attribute(".paint canvas", "aria-label") == "图片与涂抹区域"
    # A reload loses the strokes, and neither the words nor a picture of the gallery nor the result.
    page.reload()
    page.wait_for_selector(".compare")
    page.click("[role=tab]:has-text('原图')")
    page.wait_for_selector(".paint canvas")
    assert page.input_value("#prompt") == "a red hat"
    # Another picture takes the place of all that.
    drop(page, picture_bytes(picture(1), "png", None))
    page.wait_for_selector("[role=tab]", state="detached")
    page.wait_for_selector(".paint canvas")
    assert not _painted(page)
    assert page.errors == []
    page.close()


def test_from_an_edit_that_came_to_no_end_a_button_leads_back(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, f"edit/{_cat(served)}")
    page.wait_for_selector(".paint canvas")
    _stroke(page)
    for words, said in (("slow", "cancelled"), ("fail", "this cannot be drawn")):
        page.fill("#prompt", words)
        page.click("#go")
        if words == "slow":
            page.click("#stage .cancel")
        page.wait_for_selector(f"#stage:has-text('{said}')")
        photograph(page, f"edit-{said}")
        page.click("text=Back to the picture")
        assert _painted(page)
    page.close()


def test_a_job_that_was_left_does_not_come_back_over_another_picture(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, f"edit/{_cat(served)}")
    page.wait_for_selector(".paint canvas")
    page.fill("#prompt", "slow hat")
    page.click("#go")
    page.wait_for_selector("#stage .making")
    drop(page, picture_bytes(picture(2), "png", None))
    page.wait_for_selector(".paint canvas")
    page.wait_for_selector(".job[data-state=succeeded]:has-text('slow hat')")
    assert page.is_visible(".paint canvas")
    page.close()


def test_a_walk_is_there_when_one_comes_back(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, "walk")
    page.get_by_label("in an arc").check(force=True)
    page.click("#go")
    page.wait_for_selector(".film")
    page.click(".nav-gallery")
    page.wait_for_selector(".tiles .tile")
    page.click(".nav-walk")
    page.wait_for_selector(".film")
    page.wait_for_selector(".chip:has(:checked):has-text('in an arc')")
    assert page.errors == []
    page.close()


def test_the_gallery_shows_a_picture_that_took_a_moment(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, "gallery")
    page.wait_for_selector(".tiles .tile")
    served.wait(served.http.post("/api/jobs", json={"prompt": "a moment"}).json()["id"])
    page.wait_for_selector(".tiles .tile[title='a moment']")
    page.close()


def test_a_grid_is_asked_for_once_and_the_one_before_it_stays_until_then(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, "plot")
    page.fill("#prompt", "a grid")
    page.fill("#xs", "1, 2")
    page.fill("#ys", "noto, twemoji")
    page.evaluate("() => { for (let i = 0; i < 2; i += 1) document.querySelector('#go').click() }")
    page.wait_for_function("() => document.querySelectorAll('.plot-out .cell img').length === 4")
    made = [job for job in served.engine.jobs(limit=50) if job.request.get("prompt") == "a grid"]
    assert len(made) == 4
    page.fill("#prompt", " ")
    page.click("#go")
    page.wait_for_selector(".toast.bad:has-text('Say here what the picture should show')")
    page.click(".nav-gallery")
    page.click(".nav-plot")
    page.wait_for_function("() => document.querySelectorAll('.plot-out .cell img').length === 4")
    page.close()


@pytest.mark.parametrize(
    ("view", "filled"),
    [
        ("train", {"#folder": "/home/me/cats", "#run-name": "cats", "#run-images": "3000"}),
        ("evaluate", {"#prompts": "a cat", "#against": "emoji", "#limit": "20"}),
    ],
)
def test_a_form_that_is_half_filled_in_waits(
    browser: Any, served: Any, view: str, filled: dict[str, str]
) -> None:
    page = open_page(browser, served.url, view)
    for selector, text in filled.items():
        page.fill(selector, text)
    page.click(".nav-models")
    page.wait_for_selector(".view-models > *")
    page.click(f".nav-{view}")
    page.wait_for_selector("#go")
    assert {selector: page.input_value(selector) for selector in filled} == filled
    page.close()


def test_pairs_are_drawn_of_what_is_compared_and_come_by_themselves(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, "rate")
    page.select_option(".page-head + .field select", "sampler")
    page.wait_for_selector("label:has-text('Sampler 1')")
    page.fill("textarea", "an owl\na fox")
    page.click("text=Draw the pairs")
    page.wait_for_selector(".words:text-matches('an owl|a fox')")  # whichever both were drawn of first
    page.wait_for_selector("small:has-text('Pairs to go: 2')")  # the second one too
    rows = served.http.get("/api/pictures?query=an+owl").json()["pictures"]
    requests = [served.http.get(f"/api/pictures/{row['id']}").json()["record"]["request"] for row in rows]
    assert {one["sampler"] for one in requests} == {"euler", "euler_ancestral"}
    assert len({one["seed"] for one in requests}) == 1
    page.close()


def test_what_cannot_be_is_said_where_it_is_written(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url)
    page.wait_for_selector("#model option", state="attached")
    page.fill("#prompt", "  ")
    page.click("#go")
    page.wait_for_selector(".toast.bad:has-text('Say here what the picture should show')")
    page.fill("#prompt", "a seed")
    page.fill("#seed", "12x")
    page.click("#go")
    said = page.evaluate("() => document.querySelector('#seed').validationMessage")
    assert said == "A whole number from 0 to 9007199254740991, or nothing."
    page.click("[aria-label='Let chance decide again']")
    # Folded away it would be refused without a word.
    page.evaluate("() => { document.querySelector('#more').open = true }")
    page.fill("#f-steps", "99999")
    page.evaluate("() => { document.querySelector('#more').open = false }")
    page.click("#go")
    page.wait_for_selector("#more[open]")
    assert page.evaluate("() => document.activeElement.id") == "f-steps"
    page.fill("#f-steps", "2")
    page.click("#go")
    page.wait_for_selector("#stage img.result[alt='a seed']")
    page.close()


def test_a_film_says_its_words_and_gives_its_settings_back_to_walk(browser: Any, served: Any) -> None:
    stops = [{"prompt": "a moon"}, {"prompt": "a star"}]
    request = {"kind": "walk", "model": "vqgan", "stops": stops, "frames": 5, "loop": True}
    served.wait(served.http.post("/api/jobs", json=request).json()["id"])
    page = open_page(browser, served.url, "gallery")
    page.select_option("select[aria-label='every kind']", "animation")
    page.locator(".tiles .tile").first.click()
    page.wait_for_selector(".detail .words:has-text('a moon → a star')")
    page.click("text=Reuse settings")
    page.wait_for_selector("#stop-1")
    assert [page.input_value(f"#stop-{i}") for i in range(2)] == ["a moon", "a star"]
    assert page.is_checked("label:has-text('Back to the beginning') input")
    page.close()


def test_the_focus_goes_back_to_the_picture_that_was_seen_last(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, "gallery")
    page.wait_for_selector(".tiles .tile >> nth=1")
    page.locator(".tiles .tile").first.click()
    page.wait_for_selector(".detail .star")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('.detail .turn.back')?.disabled === false")
    page.keyboard.press("f")
    page.wait_for_selector(".tiles .starred")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    seen = "() => [...document.querySelectorAll('.tiles .tile')].indexOf(document.activeElement)"
    assert page.evaluate(seen) == 1
    page.close()


def test_on_a_phone_a_page_begins_at_its_top(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, viewport={"width": 390, "height": 820})
    make(page, "a boat")
    page.wait_for_selector("#stage img.result[alt='a boat']")
    page.evaluate("() => scrollTo(0, document.body.scrollHeight)")
    page.click("text=Use as input")
    page.wait_for_selector(".paint canvas")
    assert page.locator(".paint canvas").first.bounding_box()["y"] >= 0
    page.close()


def test_a_line_of_the_queue_is_not_cut_off(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url)
    make(page, "slow tree")
    line = page.locator(".job[data-state=running] .what small")
    line.filter(has_text="left").wait_for()
    assert line.evaluate("e => e.scrollWidth <= e.clientWidth")
    page.click(".job[data-state=running] .cancel")
    page.close()
