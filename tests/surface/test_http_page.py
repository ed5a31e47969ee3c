"""The page at ``/docs`` as a newcomer uses it: every example is asked as it stands there."""

from __future__ import annotations

import html
import io
import re
import shlex
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

pytest.importorskip("dbos", reason="needs the extra server")
sys.path.insert(0, str(Path(__file__).parent))
from http_server import Served

from vitrail.schema import ImageRecord, SamplingDefaults, TextToImageRequest
from vitrail.serving.durable import DurableEngine
from vitrail.serving.jobs import Job

GIVEN_UP = "the job was cancelled before a picture was made"


class ImpatientEngine(DurableEngine):
    """The real one, which gives every job up at once: nothing is drawn, and dialects come back."""

    def submit(self, request: Any, *, key: str | None = None) -> Job:
        job = super().submit(request, key=key)
        return job if request.prompt == "wait" else self.cancel(job.id)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("page"), engine_class=ImpatientEngine) as served:
        yield served


def lines_of(server: Served, language: str = "en") -> list[str]:
    page = server.http.get("/docs", headers={"Accept-Language": language}).text
    blocks = re.findall(r"<pre><code>(.*?)</code></pre>", page, re.DOTALL)
    lines = [line for block in blocks for line in html.unescape(block).splitlines()]
    return [line for line in lines if not line.startswith("#")]


def asked(line: str, folder: Path) -> tuple[httpx.Request, str | None]:
    """What curl would send for ``line``, and the file that it would write."""
    words = iter(shlex.split(line)[1:])
    method, address, headers, body, written = "", "", {}, None, None
    fields: dict[str, str] = {}
    files: dict[str, Any] = {}
    for word in words:
        match word:
            case "-s" | "-sN":
                pass
            case "-X":
                method = next(words)
            case "-H":
                name, _, value = next(words).partition(": ")
                headers[name] = value
            case "-d":
                body = next(words).encode()
            case "-o":
                written = next(words)
            case "-F":
                name, _, value = next(words).partition("=")
                if value.startswith("@"):
                    files[name] = (value[1:], (folder / value[1:]).read_bytes())
                else:
                    fields[name] = value
            case _:
                assert word.startswith("http://"), (word, line)
                address = word
    method = method or ("POST" if body is not None or files else "GET")
    content: dict[str, Any] = {"content": body} if body is not None else {}
    if files:
        content = {"data": fields, "files": files}
    return httpx.Request(method, address, headers=headers, **content), written


def test_every_example_works_as_it_stands(server: Served, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "image.png")
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(tmp_path / "mask.png")
    ended = server.engine.submit(TextToImageRequest(prompt="x")).id
    request = TextToImageRequest(prompt="x", seed=1).resolve(
        SamplingDefaults(steps=2, cfg_scale=1.0, width=16, height=16)
    )
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "PNG")
    record = ImageRecord(
        **{"request": request, "index": 0, "seed": 1, "model_name": "x", "model_sha256": "0" * 64},
        created=datetime.now(UTC),
    )
    picture = server.gallery.add(out.getvalue(), ".png", record, id="0" * 32, job=ended).id
    lines = sorted(lines_of(server), key=lambda line: "-X DELETE" in line)
    assert len(lines) > 50
    for line in lines:
        waiting = "/move" in line or "/cancel" in line
        id = server.engine.submit(TextToImageRequest(prompt="wait")).id if waiting else ended
        id = "default" if "/v1/models/" in line else picture if "/api/pictures/" in line else id
        given, written = asked(line.replace("/ID", f"/{id}"), tmp_path)
        answer = server.http.send(given)
        if "/preview" in line:  # of a job that is being drawn
            assert answer.status_code == 404
        elif answer.status_code == 400:
            assert answer.json()["error"]["message"] == GIVEN_UP, line
        elif "/ready" in line:
            assert answer.status_code in (200, 503)
        else:
            assert answer.status_code < 300, (line, answer.text)
            is_picture = answer.headers["content-type"].startswith("image/")
            assert (written is not None) == is_picture, line  # a terminal shows no picture
        assert written is None or Path(written).suffix in (".png", ".webp")


def test_the_page_says_where_an_id_comes_from(server: Served) -> None:
    for language, words in (("en", "ID stands for"), ("zh-CN", "ID 表示")):
        page = server.http.get("/docs", headers={"Accept-Language": language}).text
        assert words in page
    assert sum("/api/jobs -H" in line for line in lines_of(server)) == 3  # words, Chinese words, a picture
