"""Blind rating on the page: votes, the table of scores for each question, and its CSV."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from studio_browser import open_page, photograph
from studio_hands import COMMAND
from studio_server import serve_studio

WORDS, STYLES = ("a cat", "a dog", "a car"), ("noto", "twemoji")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with a picture of each words in each style, and answers about two models from before."""
    with serve_studio(tmp_path_factory.mktemp("rate"), hands=COMMAND) as server:
        for words in WORDS:
            for seed, style in enumerate(STYLES):
                request = {"prompt": words, "style": style, "seed": 40 * seed + len(words)}
                server.wait(server.http.post("/api/jobs", json=request).json()["id"])
        vote = {"left": "a" * 32, "right": "b" * 32, "left_name": "old model", "right_name": "new model"}
        server.http.post("/api/studio/votes", json={**vote, "winner": "right"}).raise_for_status()
        yield server


def _style(served: Any, page: Any, side: int) -> str:
    """The style of the picture that stands on a side; the page itself does not tell."""
    source = page.get_attribute(f".pairing button:nth-child({side}) img", "src")
    found = re.search(r"/pictures/([^/]+)/file", source)
    assert found
    picture = served.http.get(f"/api/pictures/{found[1]}").json()
    return str(picture["record"]["request"]["style"])


def test_votes_fill_the_table_of_their_own_question(browser: Any, served: Any, tmp_path: Path) -> None:
    page = open_page(browser, served.url, "rate")
    page.wait_for_selector("td:has-text('new model')")  # the answers about models
    page.select_option(".page-head + .field select", "style")
    page.wait_for_selector(".note:has-text('No answers yet')")
    points: Counter[str] = Counter()
    for left, how in ((3, "click"), (2, "key"), (1, "tie")):
        page.wait_for_selector(f"small:has-text('Pairs to go: {left}')")
        sides = [_style(served, page, 1), _style(served, page, 2)]
        assert set(sides) == set(STYLES)
        assert not any(style in page.inner_text("main") for style in STYLES) or left < 3  # blind
        photograph(page, f"rate-{left}")
        if how == "click":
            page.click(".pairing button:nth-child(1)")
            points[sides[0]] += 1
        elif how == "key":
            page.keyboard.press("ArrowRight")
            points[sides[1]] += 1
        else:
            page.keyboard.press("ArrowDown")
            points.update({style: 0.5 for style in STYLES})  # type: ignore[arg-type]
    page.wait_for_selector("td:has-text('twemoji') ~ td:last-child:has-text('3')")
    page.wait_for_selector("h2:has-text('All pairs are rated. Answers: 3.')")
    assert page.locator("tbody tr").count() == 2
    assert "new model" not in page.inner_text("table")
    photograph(page, "rate-scores")
    with page.expect_download() as download:
        page.click("a:has-text('Download CSV')")
    assert download.value.suggested_filename == "ratings-style.csv"
    download.value.save_as(tmp_path / "ratings.csv")
    rows = list(csv.DictReader((tmp_path / "ratings.csv").read_text().splitlines()))
    assert {row["name"]: float(row["wins"]) for row in rows} == {name: points[name] for name in STYLES}
    assert [row["votes"] for row in rows] == ["3", "3"]
    strengths = [float(row["strength"]) for row in rows]
    assert strengths == sorted(strengths, reverse=True)
    assert all(float(row["low95"]) <= float(row["strength"]) <= float(row["high95"]) for row in rows)
    shown = page.locator("tbody td:nth-child(2)").all_inner_texts()
    assert shown == [f"{strength:.2f}" for strength in strengths]

    page.reload()  # nothing is asked twice
    page.wait_for_selector("td:has-text('new model')")
    page.select_option(".page-head + .field select", "style")
    page.wait_for_selector("td:has-text('twemoji')")
    assert page.locator(".pairing").count() == 0
    assert (page.foreign, page.errors) == ([], [])
    page.close()


def test_contenders_that_never_met_are_told_in_place(browser: Any, served: Any) -> None:
    vote = {"left": "c" * 32, "right": "d" * 32, "left_name": "euler", "right_name": "heun"}
    other = {**vote, "left_name": "ddim", "right_name": "dpmpp_2m"}
    for one in (vote, other):
        answer = served.http.post("/api/studio/votes", json={**one, "winner": "left", "by": "sampler"})
        answer.raise_for_status()
    page = open_page(browser, served.url, "rate", locale="zh-CN")
    page.wait_for_selector("td:has-text('new model')")
    page.select_option(".page-head + .field select", "sampler")
    page.wait_for_selector("[role=status]:has-text('互不相干的几组')")
    page.close()
