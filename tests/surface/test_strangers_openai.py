"""Requests to OpenAI's images interface as programs send them that were written without this server in mind.

LangChain, LibreChat, Open WebUI, the AI SDK, and OpenAI's own clients of 2023 to 2026 in Python and
JavaScript: bodies and headers as they were seen on the wire, and of the answers what those programs read.
"""

from __future__ import annotations

import base64
import io
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

pytest.importorskip("dbos", reason="needs the extra server")
sys.path.insert(0, str(Path(__file__).parent))
from http_server import Served

from vitrail.serving.http_tickets import TICKET_SECONDS, ticket

TOKEN = "a-token-of-tests-0123456789"
SMALL = {"model": "tiny", "prompt": "x", "size": "32x32"}


def png(mode: str = "RGB", colour: Any = (200, 30, 30)) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (32, 32), colour).save(out, "PNG")
    return out.getvalue()


def made(server: Served, **body: Any) -> dict[str, Any]:
    answer = server.http.post("/v1/images/generations", json={**SMALL, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize(
    ("model", "format", "keys"),
    [
        ("tiny", "b64_json", {"b64_json"}),
        ("tiny", "url", {"url"}),
        ("dall-e-3", "url", {"url"}),
        ("gpt-image-1.5", None, {"b64_json"}),  # which knows no addresses, and whose clients would fetch one
        ("tiny", None, {"b64_json", "url"}),  # a name of ours: whoever asks may be of either age
        ("dall-e-3", None, {"b64_json", "url"}),  # LangChain reads url without having asked for it
        (None, None, {"b64_json", "url"}),
    ],
)
def test_pictures_come_as_their_clients_read_them(
    art_server: Served, model: str | None, format: str | None, keys: set[str]
) -> None:
    found = made(art_server, model=model, response_format=format)
    # A field that is not there is left out: schemas of JavaScript's programs take no null in its place.
    assert [one.keys() for one in found["data"]] == [keys]
    assert isinstance(found["created"], int)
    assert found["usage"]["total_tokens"] == 0
    assert found["usage"]["input_tokens_details"] == {"text_tokens": 0, "image_tokens": 0}
    if "url" in keys:
        file = httpx.get(found["data"][0]["url"], trust_env=False)
        assert Image.open(io.BytesIO(file.content)).format == "PNG"


def test_every_field_that_the_clients_know(art_server: Served) -> None:
    new = {
        **{"background": "auto", "moderation": "low", "output_compression": None, "output_format": "png"},
        **{"quality": "auto", "safety_identifier": "u", "user": "u", "style": "vivid", "stream": False},
        **{"partial_images": None, "n": 1, "complexity": "low", "input_fidelity": "high"},
    }
    assert len(made(art_server, **new)["data"]) == 1
    empty = {"quality": "", "style": "", "user": "", "response_format": "", "background": "", "size": ""}
    assert len(made(art_server, **empty)["data"]) == 1


def test_refusals_say_what_is_allowed(art_server: Served) -> None:
    for body, param, words in (
        ({"n": 11}, "n", "allowed 1 to 10"),
        ({"output_format": "gif"}, "output_format", "allowed are png, jpeg, webp"),
        ({"size": "wide"}, "size", "1024x1024"),
        ({"size": "1024×1024"}, "size", "1024x1024"),
        ({"prompt": None}, "prompt", "missing"),
        ({"partial_images": 9}, "partial_images", "allowed 0 to 3"),
    ):
        answer = art_server.http.post("/v1/images/generations", json={**SMALL, **body})
        assert answer.status_code == 400, answer.text  # what OpenAI's own answers, and its clients expect
        error = answer.json()["error"]
        assert (error["param"], error["type"]) == (param, "invalid_request_error")
        assert words in error["message"], error
        assert error["message"].count("\n") == 0
    chinese = art_server.http.post(
        "/v1/images/generations", json={**SMALL, "n": 11}, headers={"Accept-Language": "zh-CN"}
    )
    assert "1" in chinese.json()["error"]["message"]
    assert "allowed" not in chinese.json()["error"]["message"]


def test_forms_as_they_come(art_server: Served) -> None:
    ask = art_server.http
    fields = {"model": "tiny", "prompt": "x", "size": "auto", "quality": "auto", "n": "1"}
    for files in (
        {"image": ("a.png", png(), "image/png")},
        {"image[]": ("blob", png(), "application/octet-stream")},  # openai 0.28; form-data without a name
        {"image": ("a.jpg", png(), "image/jpeg")},  # the name is wrong, the picture is a PNG
    ):
        answer = ask.post("/v1/images/edits", data=fields, files=files)
        assert answer.status_code == 200, answer.text
    for files, words in (
        ([("image[]", ("a.png", png())), ("image[]", ("b.png", png()))], "several"),
        ([("mask", ("a.png", png()))], "missing"),
    ):
        answer = ask.post("/v1/images/edits", data=fields, files=files)
        assert answer.status_code == 400
        assert words in answer.json()["error"]["message"]
    text = ask.post("/v1/images/edits", json={"prompt": "x", "image": base64.b64encode(png()).decode()})
    assert text.status_code == 415
    assert "multipart/form-data" in text.json()["error"]["message"]


def test_what_is_not_here_is_refused_in_its_own_form(art_server: Served) -> None:
    for path in ("/v1/chat/completions", "/v1/responses", "/openai/deployments/tiny/images/generations"):
        answer = art_server.http.post(path, json={"model": "x"})
        assert answer.status_code == 404
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}, path
    assert made(art_server)["data"]
    version = art_server.http.post("/v1/images/generations?api-version=2024-02-01", json=SMALL)
    assert version.status_code == 200


# -- addresses of a server that asks for a token -------------------------------------------------------------


def test_the_token_as_its_clients_bring_it(tmp_path: Path) -> None:
    with Served(tmp_path, token=TOKEN) as server:
        ask = server.http
        ask.headers.pop("Authorization")
        for headers in ({"api-key": TOKEN}, {"x-api-key": TOKEN}, {"Authorization": f"Bearer {TOKEN}"}):
            assert ask.get("/v1/models", headers=headers).status_code == 200, headers
        for headers in ({}, {"api-key": "wrong"}, {"Authorization": "Bearer wrong"}):
            answer = ask.get("/v1/models", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"


def test_an_address_opens_one_picture_for_an_hour(tmp_path: Path) -> None:
    with Served(tmp_path, token=TOKEN) as server:
        ask = server.http
        ask.headers.pop("Authorization")
        path = f"/api/pictures/{'0' * 32}/file"
        now = int(time.time())
        right = ticket(TOKEN, path, now + 60)
        assert ask.get(f"{path}?{right}").status_code == 404  # let through: there is no such picture
        other = path.replace("0", "1")
        for address in (
            f"{other}?{right}",
            f"{path.replace('/file', '')}?{right}",
            f"{path.replace('/file', '/thumbnail')}?{right}",
            f"/api/pictures?{right}",
            f"{path}?{ticket('another token, as long', path, now + 60)}",
            f"{path}?{ticket(TOKEN, path, now - 1)}",
            f"{path}?{ticket(TOKEN, path, now + TICKET_SECONDS + 60)}",
            f"{path}?{right.replace('until=', 'until=9')}",
            f"{path}?{right}&{right}",
            f"{path}?until={now + 60}",
            f"{path}?until=x&key=%00",
            f"{path}?until=%C2%B2&key=%E2%80%94",
        ):
            assert ask.get(address).status_code in (400, 401), address
        assert (
            ask.request("DELETE", f"{path}?{right}", headers={"Content-Type": "application/json"}).status_code
            == 401
        )


def test_a_page_that_may_ask_reads_why_it_was_refused(tmp_path: Path) -> None:
    page = "https://page.example"
    with Served(tmp_path, token=TOKEN, origins=[page]) as server:
        ask = server.http
        ask.headers.pop("Authorization")
        before = ask.options(
            "/v1/images/generations",
            headers={
                "Origin": page,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
            },
        )
        assert before.status_code == 200
        assert before.headers["Access-Control-Allow-Origin"] == page
        refused = ask.get("/v1/models", headers={"Origin": page})
        assert refused.status_code == 401
        assert refused.headers["Access-Control-Allow-Origin"] == page
        answered = ask.get("/v1/models", headers={"Origin": page, "Authorization": f"Bearer {TOKEN}"})
        assert answered.headers.get_list("Access-Control-Allow-Origin") == [page]
        foreign = ask.get("/v1/models", headers={"Origin": "https://evil.example"})
        assert foreign.status_code == 403
        assert "Access-Control-Allow-Origin" not in foreign.headers
