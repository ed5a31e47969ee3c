"""The page in a real browser over the real engine: pictures, queue, reloads, keyboard, language, looks."""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, PngImagePlugin
from studio_browser import drop, make, open_page, photograph, settled
from studio_hands import COMMAND
from studio_server import serve_studio

from vitrail.evaluation.catalogue import CATALOGUE
from vitrail.evaluation.image_sets import ImageSet
from vitrail.evaluation.report import write_report
from vitrail.evaluation.results import MetricResult
from vitrail.evaluation.suite import Evaluation
from vitrail.studio.page import ASSETS

VIEWS = ("create", "edit", "gallery", "plot", "walk", "codebook", "train", "evaluate", "rate", "models")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with serve_studio(tmp_path_factory.mktemp("quick"), hands=COMMAND) as server:
        yield server


def test_the_shipped_model_draws_and_nothing_comes_from_outside(browser: Any, tmp_path: Path) -> None:
    with serve_studio(tmp_path) as server:
        page = open_page(browser, server.url)
        make(page, "a red apple", steps=4)
        page.wait_for_selector("#stage img.result", timeout=120_000)
        page.wait_for_function("() => document.querySelector('#stage img.result').naturalWidth >= 64")
        page.click(".views a[href='#gallery']")
        page.wait_for_selector(".tile img[alt='a red apple']")
        # What another program drew at its own size and with its own LoRA, this model draws at its nearest.
        drop(page, _dropped(parameters=_A1111.replace("Steps: 31", "Steps: 4")))
        page.wait_for_function("() => document.querySelector('#prompt')?.value === 'a lighthouse'")
        page.click("#go")
        page.wait_for_selector("#stage img.result[alt='a lighthouse']", timeout=120_000)
        assert (page.foreign, page.errors) == ([], [])
        page.close()


def test_everything_the_page_begins_with_is_asked_for_at_once() -> None:
    """Else a module is asked for only when the one that needs it has been read, and so on down."""
    found, left = set(), ["main.js"]
    while left:
        module = left.pop()
        needs = re.findall(
            r'^(?:import|export|\}) .*from "\./(\w+\.js)";', (ASSETS / module).read_text(), re.M
        )
        left += [one for one in set(needs) if one not in found]
        found.update(needs)
    index = (ASSETS / "index.html").read_text()
    asked = re.findall(r'<link rel="modulepreload" href="/studio/(\w+\.js)" />', index)
    assert sorted(found - {"main.js"}) == asked
    assert {path.name for path in ASSETS.glob("*.js")} == found | {"main.js"}


@pytest.mark.alone
def test_twenty_reloads_and_a_dropped_stream_attach_again_within_two_seconds(
    browser: Any, quick: Any
) -> None:
    page = open_page(browser, quick.url)
    make(page, "slow blue heart", steps=200)
    page.wait_for_selector("#queue [data-state=running]")
    moved = (
        "b => { const p = document.querySelector('#stage .live progress');"
        "return p && (p.getAttribute('value') ?? b) != b }"
    )
    page.wait_for_function(moved, arg=None)
    waits = []
    for turn in range(21):
        if turn < 20:
            page.reload()
        else:
            page.context.set_offline(True)
            page.wait_for_selector(".banner:not([hidden])")
            page.context.set_offline(False)
        began = time.monotonic()
        page.wait_for_selector("#stage .live progress[value]")
        page.wait_for_function(moved, arg=page.get_attribute("#stage .live progress", "value"))
        waits.append(time.monotonic() - began)
    assert max(waits) < 2
    page.click("#stage .cancel")
    page.wait_for_selector("#queue [data-state=cancelled]", timeout=5000)
    make(page, "a blue heart", steps=1)
    page.wait_for_selector("#stage img.result")
    page.reload()
    page.wait_for_selector("#stage img.result", timeout=2000)
    page.close()


def test_the_queue_is_reordered_and_one_is_cancelled_on_every_page(browser: Any, quick: Any) -> None:
    page = open_page(browser, quick.url)
    make(page, "slow first", steps=100)
    page.wait_for_selector("#queue [data-state=running]")
    for words in ("second", "third"):
        make(page, words, steps=1)
        page.wait_for_selector(f"#queue .job:has-text('{words}')")
    page.click(".views a[href='#models']")
    page.click("#queue button[aria-label='Move up: third']")
    page.wait_for_function(
        "() => [...document.querySelectorAll('#queue [data-state=queued] .t')]"
        ".map(e => e.textContent).join() == 'third,second'"
    )
    waiting = [job.title for job in quick.engine.jobs(states=frozenset({"queued"}))]
    assert waiting == ["third", "second"]
    page.click("#queue button[aria-label='Cancel: second']")
    page.wait_for_selector("#queue [data-state=cancelled]:has-text('second')")
    page.click("#queue button[aria-label='Cancel: slow first']")
    page.wait_for_selector("#queue [data-state=succeeded]:has-text('third')")
    page.close()


def test_many_jobs_leave_the_connections_free(browser: Any, quick: Any) -> None:
    page = open_page(browser, quick.url, "plot")
    page.fill("#xs", "1, 2, 3, 4, 5, 6")
    page.fill("#ys", "noto, twemoji")
    page.click("#go")
    page.wait_for_function("() => document.querySelectorAll('.cell img').length == 12")
    assert page.evaluate("() => [...document.querySelectorAll('.cell img')].every(i => i.alt)")
    page.reload()
    page.wait_for_function("() => document.querySelectorAll('.cell img').length == 12")
    requests = [job.request for job in quick.engine.jobs(limit=12)]
    assert {(r["cfg_scale"], r["style"]) for r in requests} == {
        (c, s) for c in range(1, 7) for s in ("noto", "twemoji")
    }
    assert len({r["seed"] for r in requests}) == 1
    assert page.errors == []
    page.close()


def test_the_saved_sheet_says_what_the_page_says(browser: Any, quick: Any) -> None:
    page = open_page(browser, quick.url, "plot", locale="zh-CN")
    page.evaluate(
        "() => { const pen = OffscreenCanvasRenderingContext2D.prototype, write = pen.fillText;"
        "window.said = [];"
        "pen.fillText = function (text, ...more) { said.push(text); write.call(this, text, ...more) } }"
    )
    page.fill("#xs", "1, 2")
    page.fill("#ys", "noto")
    page.click("#go")
    page.wait_for_function("() => document.querySelectorAll('.cell img').length == 2")
    with page.expect_download() as download:
        page.click("text=保存为一张图")
    assert page.evaluate("() => said") == ["文字引导强度（CFG） 1", "文字引导强度（CFG） 2", "风格 noto"]
    heads = page.locator(".plot-out th").all_inner_texts()
    assert [" ".join(head.split()) for head in heads] == page.evaluate("() => said")
    with Image.open(download.value.path()) as sheet:
        assert sheet.size == (702, 320)
        if folder := os.environ.get("VITRAIL_PHOTOS"):
            sheet.save(Path(folder, "sheet.png"))
    page.close()


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with a report that has every figure. No worker: it is only read."""
    home = tmp_path_factory.mktemp("reported")
    results = {
        name: MetricResult(name=name, value=0.61, n=1000, ci95=(0.5, 0.7), interval="bootstrap")
        for name in CATALOGUE
    }
    (home / "pictures").mkdir()
    for name in "ab":
        Image.new("RGB", (32, 32)).save(home / "pictures" / f"{name}.png")
    measured = Evaluation("sets", ImageSet.from_folder(home / "pictures"), None, results)
    write_report(measured, home / "work" / "reports" / "evaluate-all")
    with serve_studio(home, workers=0) as server:
        yield server


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("language", ["en-GB", "zh-CN"])
def test_no_figure_of_a_report_is_cut_off(browser: Any, reported: Any, width: int, language: str) -> None:
    page = open_page(
        browser, reported.url, "evaluate", locale=language, viewport={"width": width, "height": 820}
    )
    page.click(".runs a")
    page.wait_for_selector("iframe")
    frame = page.frames[-1]
    frame.wait_for_selector(".numbers")
    wide = "() => [...document.querySelectorAll('.wide')].map(e => e.scrollWidth - e.clientWidth)"
    assert max(frame.evaluate(wide)[:1]) == 0
    frame.locator(".numbers").scroll_into_view_if_needed()
    photograph(page, f"report-{language}-{width}")
    page.close()


def test_a_walk_is_a_film_that_is_played_and_moved_through(browser: Any, quick: Any) -> None:
    page = open_page(browser, quick.url, "walk", reduced_motion="reduce")
    page.wait_for_selector("#go")
    page.fill("#stop-0", "a red apple")
    page.fill("#stop-1", "a moon")
    page.fill(".slider input", "6")
    page.click("#go")
    page.wait_for_selector("#queue [data-state=succeeded] .t:text-is('walk · a red apple → a moon')")
    page.wait_for_selector(".film output:text-is('1 / 6')")
    frame = "() => document.querySelector('.film img').src"
    first = page.evaluate(frame)
    page.fill(".film input", "3")
    page.wait_for_selector(".film output:text-is('4 / 6')")
    assert page.evaluate(frame) != first
    page.click(".film button[aria-label=Play]")
    page.wait_for_selector(".film output:text-is('6 / 6')")
    page.click(".film button[aria-label=Pause]")
    film = httpx.get(quick.url + page.get_attribute(".result-of a[download]", "href"), trust_env=False)
    assert Image.open(io.BytesIO(film.content)).n_frames == 6
    assert page.errors == []
    page.close()


def test_settings_of_a_picture_are_reused(browser: Any, quick: Any) -> None:
    page = open_page(browser, quick.url)
    page.wait_for_selector("#model option", state="attached")
    page.click(".chip:has-text('twemoji')")
    page.click(".chip:has(span:text-is('32'))")
    make(page, "an owl", steps=3)
    page.wait_for_selector("#stage img.result[alt='an owl']")
    made = quick.engine.jobs(limit=1)[0]
    page.evaluate("() => sessionStorage.removeItem('vitrail.form')")
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    page.click(".strip .tile:has(img[alt='an owl'])")
    page.click(".actions button:has-text('Reuse settings')")
    page.wait_for_selector(".toast:has-text('Settings of this picture')")
    assert (page.input_value("#prompt"), page.input_value("#f-steps")) == ("an owl", "3")
    assert page.locator(".chip:has(:checked)").all_inner_texts() == ["twemoji", "32", "1"]
    assert page.input_value("#seed") == str(made.pictures[0].seed)
    page.click("#go")
    page.wait_for_function("n => document.querySelectorAll('.strip img[alt=\"an owl\"]').length == n", arg=2)
    again = quick.engine.jobs(limit=1)[0]
    assert again.pictures[0].seed == made.pictures[0].seed
    assert page.errors == []
    page.close()


def test_everything_works_by_keyboard(browser: Any, quick: Any) -> None:
    page = open_page(browser, quick.url)
    page.wait_for_selector("#model option", state="attached")
    page.keyboard.press("/")
    page.keyboard.type("typed 3?")
    assert page.input_value("#prompt") == "typed 3?"
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#queue .job:has-text('typed 3?')")
    page.evaluate("() => document.activeElement.blur()")
    page.keyboard.press("3")
    page.wait_for_selector(".view-gallery .tile")
    page.focus(".tile")
    outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog .facts")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    page.uncheck("dialog .check input")
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    assert page.evaluate("() => location.hash") == "#gallery"
    page.close()


def test_language_follows_the_browser_and_the_switch_is_remembered(browser: Any, quick: Any) -> None:
    page = open_page(browser, quick.url, locale="zh-CN")
    page.wait_for_selector("#model option", state="attached")
    assert page.inner_text("#go").startswith("生成")
    assert page.get_attribute("html", "lang") == "zh-CN"
    page.click(".brand .lang")
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert page.inner_text("#go").startswith("Create")
    page.close()


def _dropped(**texts: str) -> bytes:
    about = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        about.add_text(key, text)
    out = io.BytesIO()
    Image.new("RGB", (32, 32)).save(out, "PNG", pnginfo=about)
    return out.getvalue()


_COMFY = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 77,
            "steps": 31,
            "cfg": 5.5,
            "sampler_name": "euler_ancestral",
            "scheduler": "karras",
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
            "model": ["10", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "dreamy.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "10": {
        "class_type": "LoraLoader",
        "inputs": {"lora_name": "glow.safetensors", "strength_model": 0.8, "model": ["4", 0]},
    },
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a lighthouse"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "fog"}},
}
_INVOKE = {
    "positive_prompt": "a lighthouse",
    "negative_prompt": "fog",
    "seed": 77,
    "steps": 31,
    "cfg_scale": 5.5,
    "scheduler": "euler_a",
    "width": 512,
    "height": 768,
    "loras": [{"model": {"model_name": "glow"}, "weight": 0.8}],
}
_A1111 = (
    "a lighthouse, <lora:glow:0.8>\nNegative prompt: fog\n"
    "Steps: 31, Sampler: Euler a, CFG scale: 5.5, Seed: 77, Size: 512x768"
)


def _choose(page: Any, data: bytes) -> None:
    """Choose the picture in the dialog that the button of Create opens."""
    page.click(".nav-create")
    with page.expect_file_chooser() as chooser:
        page.click("label[for=settings-file]")
    chooser.value.set_files({"name": "a.png", "mimeType": "image/png", "buffer": data})


@pytest.mark.parametrize("way", [drop, _choose], ids=["dropped", "chosen"])
@pytest.mark.parametrize(
    "texts",
    [
        pytest.param({"parameters": _A1111}, id="a1111"),
        pytest.param({"prompt": json.dumps(_COMFY)}, id="comfyui"),
        pytest.param({"invokeai_metadata": json.dumps(_INVOKE)}, id="invokeai"),
    ],
)
def test_a_picture_fills_the_form(
    browser: Any, quick: Any, texts: dict[str, str], way: Callable[[Any, bytes], None]
) -> None:
    page = open_page(browser, quick.url, "models")
    way(page, _dropped(**texts))
    page.wait_for_function("() => document.querySelector('#prompt')?.value === 'a lighthouse'")
    # Guidance that suits Stable Diffusion would burn a picture drawn on pixels: that stays the model's own.
    wanted = {"#seed": "77", "#f-steps": "31", "#f-cfg_scale": "", "#f-sampler": "euler_ancestral"}
    assert {name: page.input_value(name) for name in wanted} == wanted
    assert page.input_value("#f-negative_prompt") == "fog"
    # The model has no such size; the nearest is chosen where everybody sees it, and Create gives a picture.
    assert page.locator(".chip:has(:checked)").all_inner_texts() == ["house style", "128", "1"]
    said = page.inner_text(".toast")
    assert "default does not draw 512 × 768; the nearest that it does is 128 × 128." in said
    assert "default keeps its own guidance (CFG); 5.5 suits another kind of model." in said
    assert ("takes no LoRA: glow" in said) == ("parameters" in texts)
    page.click("#go")
    page.wait_for_selector("#stage img.result[alt='a lighthouse']")
    newest = quick.engine.jobs(limit=1)[0]
    assert (newest.request["width"], newest.request["height"]) == (128, 128)
    assert "model" not in newest.request or newest.request["model"] == "default"
    page.close()


_CHECKPOINT = {"name": "dreamy", "here": True, "kind": "checkpoint", "foreign": True, "draws": True}
_LORA = {"name": "glow", "here": True, "kind": "lora", "foreign": True, "draws": False}


def _with_models(page: Any, url: str, *more: dict[str, Any]) -> None:
    """Let the page find further models on this machine."""
    models = httpx.get(f"{url}/api/studio/models", trust_env=False).json()
    page.route("**/api/studio/models", lambda route: route.fulfill(json=[*models, *more]))


def test_a_picture_leaves_the_chosen_model_and_asks_of_it_what_it_can_serve(browser: Any, quick: Any) -> None:
    page = open_page(browser, quick.url, "models")
    _with_models(page, quick.url, {**_CHECKPOINT, "sizes": [[512, 512], [768, 512]]}, _LORA)
    page.goto(f"{quick.url}/#create/dreamy")
    page.wait_for_selector("#model option[value=dreamy]", state="attached")
    drop(page, _dropped(parameters=_A1111.replace("512x768", "640x960")))
    # A checkpoint draws any size and takes LoRAs that are here: the size has a chip, the tag stays.
    page.wait_for_selector(".chip:has(:checked):has-text('640 × 960')")
    assert page.input_value("#prompt") == "a lighthouse, <lora:glow:0.8>"
    assert page.input_value("#model") == "dreamy"
    assert page.input_value("#f-cfg_scale") == "5.5"
    photograph(page, "create-odd-size")
    # Chosen another model, the size goes with it.
    page.select_option("#model", "default")
    page.wait_for_selector(".toast:has-text('the nearest that it does is 128 × 128')")
    page.wait_for_selector(".chip:has(:checked):has-text('128')")
    # One that draws codes shares words and chance with those programs, and no more.
    page.select_option("#model", "vqgan")
    drop(page, _dropped(parameters=_A1111))
    page.wait_for_selector(
        ".toast:has-text('vqgan has no use for it: Steps, Sampler, Follow the words (CFG)')"
    )
    page.click("#go")
    page.wait_for_selector("#stage img.result[alt='a lighthouse']")
    request = quick.engine.jobs(limit=1)[0].request
    assert (request["model"], request["seed"], request.get("width")) == ("vqgan", 77, None)
    assert page.errors == []
    page.close()


def test_what_a_picture_says_beside_its_settings_is_told_in_chinese(browser: Any, quick: Any) -> None:
    page = open_page(browser, quick.url, locale="zh-CN")
    _choose(page, _dropped(parameters=f"{_A1111}, Model: dreamy"))
    page.wait_for_selector(".toast:has-text('所用模型：dreamy')")
    assert page.input_value("#prompt") == "a lighthouse"
    photograph(page, "create-chosen")
    _choose(page, _dropped())
    page.wait_for_selector(".toast.bad:has-text('这张图片没有说明它是怎样生成的')")
    assert page.input_value("#prompt") == "a lighthouse"
    page.close()


def test_no_page_is_wider_than_a_phone_and_none_logs_an_error(browser: Any, quick: Any) -> None:
    page = open_page(browser, quick.url, viewport={"width": 360, "height": 740}, locale="zh-CN")
    make(page, "一只猫")
    page.wait_for_selector("#stage img.result")
    seen = "() => document.querySelector('#stage img').getBoundingClientRect().top < innerHeight"
    assert page.evaluate(seen)  # it lies below the form, and is brought into view
    wide = {}
    for view in VIEWS:
        page.evaluate("view => { location.hash = view }", view)
        page.wait_for_selector(f"main.view-{view} > *")
        settled(page)
        wide[view] = page.evaluate("() => document.documentElement.scrollWidth")
    assert {view: width for view, width in wide.items() if width > 360} == {}
    assert page.errors == []
    page.close()


LOOKS = (Path(__file__).parent / "studio_looks.js").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_and_everything_has_a_name(browser: Any, quick: Any, scheme: str) -> None:
    page = open_page(browser, quick.url, color_scheme=scheme, reduced_motion="reduce")
    make(page, "a cat")
    page.wait_for_selector("#stage img.result")
    found: dict[str, Any] = {}
    for view in VIEWS:
        page.evaluate("view => { location.hash = view }", view)
        page.wait_for_selector(f"main.view-{view} > *")
        settled(page)
        found[view] = page.evaluate(LOOKS)
    assert {view: wrong for view, wrong in found.items() if wrong} == {}
    moving = "() => document.getAnimations().filter(a => a.effect.getComputedTiming().duration > 0).length"
    assert page.evaluate(moving) == 0
    # The check itself sees grey on grey, and a button that says nothing.
    page.evaluate("() => { document.querySelector('h2').style.cssText = 'color:#888;background:#999' }")
    page.evaluate("() => { document.querySelector('#main').append(document.createElement('button')) }")
    assert len(page.evaluate(LOOKS)) >= 2
    page.close()
