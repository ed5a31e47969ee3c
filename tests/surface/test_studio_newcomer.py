"""What a person meets in the first minutes: a phone, mistakes, missing models and LoRAs, no server."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from studio_browser import drop, make, open_page, photograph
from studio_hands import COMMAND
from studio_server import serve_studio

from vitrail.errors import DataError, InputError
from vitrail.store.catalogue import CATALOGUE

PHONE = {"width": 390, "height": 820}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with serve_studio(tmp_path_factory.mktemp("newcomer"), hands=COMMAND) as server:
        yield server


def _on_top(page: Any, selector: str) -> bool:
    """Whether a person sees the middle of what ``selector`` finds, and nothing over it."""
    return bool(
        page.evaluate(
            "selector => { const e = document.querySelector(selector), box = e.getBoundingClientRect();"
            "const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);"
            "return top !== null && e.contains(top) }",
            selector,
        )
    )


def test_on_a_phone_the_picture_lies_open_and_notes_hide_no_button(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, viewport=PHONE, locale="zh-CN", color_scheme="dark")
    make(page, "a cat")
    page.wait_for_selector("#stage img.result[alt='a cat']")
    assert _on_top(page, "#stage img.result")
    page.click(".strip .tile", trial=True)  # nothing lies over it, once it is scrolled to
    page.evaluate("() => scrollTo(0, 0)")
    drop(page, b"no picture at all, only words")
    page.wait_for_selector(".toast.bad:has-text('这个文件不是可读取的图片')")
    photograph(page, "phone-note")
    assert _on_top(page, ".toast.bad")
    assert _on_top(page, "#go")
    page.close()


def test_on_a_phone_what_is_painted_on_comes_before_what_is_set(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, "edit", viewport=PHONE)
    drop(page, _png((64, 64)))
    page.wait_for_selector(".paint")
    assert _on_top(page, ".paint")
    assert _on_top(page, "label[for=file]")
    page.close()


def _png(size: tuple[int, int], mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("locale", "unreadable", "large"),
    [
        (
            "en-GB",
            "This file is no picture that can be opened",
            "× 5000 pixels (50 megapixels); at most 40",
        ),
        ("zh-CN", "这个文件不是可以打开的图片", "10000 × 5000 像素（50 百万像素）；最多可处理 40 百万像素"),
    ],
)
def test_a_file_that_cannot_be_edited_is_named_in_the_pages_language(
    browser: Any, served: Any, locale: str, unreadable: str, large: str
) -> None:
    page = open_page(browser, served.url, "edit", locale=locale)
    page.wait_for_selector("#file", state="attached")
    for data in (b"", b"only words", b'<svg xmlns="http://www.w3.org/2000/svg"/>'):
        drop(page, data)
        page.wait_for_selector(f".toast.bad:has-text('{unreadable}')")
        page.evaluate("() => document.querySelector('.toasts').replaceChildren()")
    drop(page, _png((10_000, 5_000), "1"))
    page.wait_for_selector(f".toast.bad:has-text('{large}')")
    assert page.locator(".paint").count() == 0
    page.close()


def test_no_word_of_a_long_prompt_is_lost_without_being_told(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url)
    make(page, "word " * 1000)
    page.wait_for_selector(".toast.bad:has-text('too long; allowed are 2000 characters')")
    assert len(page.input_value("#prompt")) == 5000
    page.close()


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server without a worker, as ``vitrail studio --workers 0`` where nobody started one."""
    with serve_studio(tmp_path_factory.mktemp("idle"), workers=0) as server:
        yield server


def test_where_no_worker_takes_jobs_it_is_said_and_how_to_start_one(browser: Any, idle: Any) -> None:
    page = open_page(browser, idle.url)
    make(page, "a cat")
    for place in ("#stage .live", "#queue"):
        page.wait_for_selector(f"{place} .note:has-text('No worker takes jobs. Start one')")
    assert page.locator("#stage progress").count() == 0  # nothing goes on
    page.click(".brand .lang")
    for place in ("#stage .live", "#queue"):
        page.wait_for_selector(
            f"{place} .note:has-text('没有工作进程接任务。请在服务器上启动一个：vitrail worker')"
        )
    page.click("#stage .cancel")
    page.wait_for_selector("#queue .note:has-text('vitrail worker')", state="hidden")
    page.close()


def test_a_training_that_waits_is_listed_and_can_be_cancelled(browser: Any, idle: Any) -> None:
    ids = {}
    for name in ("first", "second"):
        request = {"kind": "train", "run": name, "data": "/nowhere"}
        ids[name] = idle.http.post("/api/jobs", json=request).json()["id"]
    page = open_page(browser, idle.url, "train")
    page.wait_for_selector(".runs a:has-text('second')")
    assert page.locator(".runs b").all_inner_texts() == ["first", "second"]
    page.click(".runs a:has-text('second')")
    page.wait_for_selector(".runs a[aria-current=page]:has-text('second')")
    page.wait_for_selector(".pane .note:has-text('No worker takes jobs')")
    page.click(".runs button[aria-label='Cancel: first']")
    page.wait_for_selector(".runs a:has-text('first')", state="detached")
    assert page.locator(".runs b").all_inner_texts() == ["second"]
    states = {name: idle.engine.job(id).state for name, id in ids.items()}
    assert states == {"first": "cancelled", "second": "queued"}
    page.close()


def test_an_empty_prompt_is_asked_for_in_the_pages_language(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, locale="en-GB")
    page.wait_for_selector("#model option", state="attached")
    page.click(".brand .lang")
    page.wait_for_selector("#go:has-text('生成')")
    page.click("#go")
    said = "() => document.querySelector('#prompt').validationMessage"
    assert page.evaluate(said) == "请先在这里写下想画的内容。"
    page.click("button:has-text('来点灵感')")
    assert page.evaluate(said) == ""
    page.close()


def test_keys_reach_a_file_chooser_whose_input_stays_unseen(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url)
    page.wait_for_selector("#settings-file", state="attached")
    page.focus("summary")
    page.keyboard.press("Tab")
    box = page.evaluate("() => document.activeElement.getBoundingClientRect().toJSON()")
    assert page.evaluate("() => document.activeElement.id") == "settings-file"
    assert (box["width"], box["height"]) == (1, 1)
    outline = "() => getComputedStyle(document.querySelector('label[for=settings-file]')).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.close()


_CHECKPOINT = {"name": "dreamy", "here": True, "kind": "checkpoint", "foreign": True, "draws": True}
_LORA = {"name": "styles/ink", "here": True, "kind": "lora", "foreign": True, "draws": False}
_RELATIVE = "a lighthouse, <lora:glow:0.8>, <lora:Ink:0.5>"


def _with_models(page: Any, url: str, *more: dict[str, Any]) -> None:
    """Let the page find further models on this machine."""
    models = httpx.get(f"{url}/api/studio/models", trust_env=False).json()
    page.route("**/api/studio/models", lambda route: route.fulfill(json=[*models, *more]))


def _settings(page: Any, program: str, **settings: Any) -> None:
    """Let the next picture that is dropped say this."""
    found = {"program": program, "settings": settings, "notes": []}
    page.route("**/api/studio/settings", lambda route: route.fulfill(json=found))
    drop(page, _png((8, 8)))


@pytest.mark.parametrize(
    ("locale", "said", "goes_on"),
    [
        ("en-GB", "Left out, because no such LoRA is on this machine: glow.", "Draw it without glow"),
        ("zh-CN", "本机没有这些 LoRA，已略去：glow。", "不用 glow，继续生成"),
    ],
)
def test_a_lora_that_is_not_here_is_said_and_gone_on_without(
    browser: Any, served: Any, locale: str, said: str, goes_on: str
) -> None:
    page = open_page(browser, served.url, "models", locale=locale)
    _with_models(page, served.url, _CHECKPOINT, _LORA)
    page.goto(f"{served.url}/#create/dreamy")
    page.wait_for_selector("#model option[value=dreamy]", state="attached")
    _settings(page, "a1111", prompt=_RELATIVE)
    page.wait_for_selector(f".toast:has-text('{said}')")
    assert page.input_value("#prompt") == "a lighthouse, <lora:Ink:0.5>"
    # Written by hand it is found out by the worker; the picture can be had without it.
    page.select_option("#model", "default")  # the checkpoint is one of the page alone
    page.fill("#prompt", "fail <lora:glow:0.8>")
    page.click("#go")
    page.wait_for_selector("#stage p.bad")
    with page.expect_request(lambda r: r.method == "POST" and r.url.endswith("/api/jobs")) as asked:
        page.click(f"#stage button:has-text('{goes_on}')")
    assert asked.value.post_data_json["prompt"] == "fail"
    assert page.input_value("#prompt") == "fail"
    # What failed for another reason is not asked for again.
    page.wait_for_selector("#stage p.bad:text-is('this cannot be drawn: fail')")
    assert page.locator("#stage button").count() == 0
    page.close()


def test_a_model_that_is_gone_is_named_and_another_draws(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, "create/gone")
    page.wait_for_selector(".toast:has-text('gone is not on this machine; default draws instead')")
    make(page, "a boat")
    page.wait_for_selector("#stage img.result[alt='a boat']")
    _settings(page, "vitrail", prompt="a tower", model="lost", steps=3)
    page.wait_for_selector(".toast:has-text('lost is not on this machine; default draws instead')")
    assert (page.input_value("#prompt"), page.input_value("#f-steps")) == ("a tower", "3")
    page.click("#go")
    page.wait_for_selector("#stage img.result[alt='a tower']")
    page.close()


def test_what_is_added_to_a_checkpoint_repairs_nothing(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url, "models")
    _with_models(page, served.url, _LORA)
    page.goto(f"{served.url}/#edit")
    page.check("input[value=repair]", force=True)
    page.wait_for_selector(".notice:has-text('needs the model migan')")
    assert page.is_disabled("#go")
    page.close()


def _ask_again(page: Any) -> None:
    """As when a person comes back to the page: it asks the server at once, rather than in some seconds."""
    page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")


def test_a_page_that_was_opened_while_nobody_answered_fills_itself(browser: Any, served: Any) -> None:
    page = open_page(browser, served.url)
    make(page, "a kite")
    page.wait_for_selector("#stage img.result[alt='a kite']")
    page.route("**/api/**", lambda route: route.abort("connectionrefused"))
    page.click(".views .nav-gallery")
    page.wait_for_selector(".toast.bad:has-text('cannot be reached')")
    _ask_again(page)
    page.wait_for_selector(".banner:visible")
    assert page.locator(".tile").count() == 0
    page.unroute("**/api/**")
    _ask_again(page)
    page.wait_for_selector(".tile img[alt='a kite']")
    assert page.is_hidden(".banner")
    # A form that was filled meanwhile is left alone.
    page.click(".views .nav-walk")
    page.fill("#stop-0", "my own words")
    page.route("**/api/**", lambda route: route.abort("connectionrefused"))
    _ask_again(page)
    page.wait_for_selector(".banner:visible")
    page.unroute("**/api/**")
    _ask_again(page)
    page.wait_for_selector(".banner", state="hidden")
    assert page.input_value("#stop-0") == "my own words"
    page.close()


@pytest.mark.parametrize(
    ("error", "line", "chinese"),
    [
        (
            DataError("cannot fetch x: WARNING: Retrying (Retry(total=4)); check the network, run it again"),
            "migan cannot be fetched: nobody who has it answers; check the network and try again",
            "无法获取 migan：提供它的站点都没有应答；请检查网络后重试",
        ),
        (InputError("there is no room left"), "there is no room left", "there is no room left"),
    ],
)
def test_a_fetch_that_fails_says_one_line_and_may_be_tried_again(
    served: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str, chinese: str
) -> None:
    calls, go = [], threading.Event()

    def pull(entry: Any, progress: Any) -> None:
        calls.append(entry.name)
        go.wait(20)
        raise error

    monkeypatch.setattr("vitrail.backends.pull.pull", pull)
    monkeypatch.setattr("vitrail.backends.pull.check_absent", lambda entry: None)
    for turn in (1, 2):
        go.clear()
        answer = served.http.post("/api/studio/models/pull", json={"name": CATALOGUE["migan"].name})
        assert answer.status_code == 202, answer.text
        state = _row(served)["fetching"]
        assert (state["error"], state["done"]) == (None, None)  # no error of the last time, no byte counted
        assert state["seconds"] is None or 0 <= state["seconds"] < 20
        go.set()
        while (state := _row(served)["fetching"])["running"]:
            pass
        assert (state["error"], len(calls)) == (line, turn)
    told = served.http.post("/api/studio/chinese", json={"text": line}).json()["text"]
    assert told == chinese


def _row(served: Any) -> dict[str, Any]:
    rows = served.http.get("/api/studio/models").json()
    return next(row for row in rows if row["name"] == "migan")


def test_what_is_no_picture_is_called_a_file_in_both_languages(served: Any, tmp_path: Path) -> None:
    for data, line, chinese in (
        (b"only words", "this file is not a picture that can be read", "这个文件不是可读取的图片"),
        (
            _png((10_000, 5_000), "1"),
            "this file is 10000x5000 pixels (50 megapixels); allowed are 40 megapixels",
            "这张图片为 10000x5000 像素（50 百万像素）；最多 40 百万像素",
        ),
    ):
        for language, words in (("en", line), ("zh", chinese)):
            answer = served.http.post(
                "/api/studio/settings",
                content=data,
                headers={"content-type": "application/octet-stream", "accept-language": language},
            )
            assert answer.status_code == 400
            assert json.loads(answer.text)["error"]["message"].startswith(words)
