"""Row E1 of the bar through the server's own doors: mutated files on every route that takes any.

What is sent gives an answer or one line of refusal, never a 5xx, and while it is looked at others are
answered. The controls take a defence out: a reader of the plain library gives 5xx, and a door that works on
the event loop keeps others waiting.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("dbos", reason="needs the extra server")
sys.path.insert(0, str(Path(__file__).parent.parent / "surface"))
from http_server import Served
from studio_server import impatient_studio
from test_hostile_mutations import mutated, picture, tensors
from web_call import Answer, Call, _call

from vitrail.serving.dialects import a1111

FEW, MANY = 20, 600
SECONDS = 1.0
"""How long anybody else may wait for an answer meanwhile."""

FORM = "multipart/form-data; boundary=b0b"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with impatient_studio(tmp_path_factory.mktemp("mutations")) as served:
        yield served


@pytest.fixture(scope="module")
def upload(server: Served) -> str:
    """The address that takes files into a folder of the studio's."""
    return f"/api/studio/folders/{server.http.post('/api/studio/folders', json={}).json()['id']}/files"


def as_json(path: str, body: dict[str, Any]) -> Call:
    return Call("POST", path, json.dumps(body).encode())


def form(path: str, parts: dict[str, bytes]) -> Call:
    content = b'--b0b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n'
    for name, data in parts.items():
        head = f'--b0b\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n\r\n'
        content += head.encode() + data + b"\r\n"
    return Call("POST", path, content + b"--b0b--\r\n", FORM)


def doors(data: bytes, upload: str, name: str) -> list[Call]:
    """Every way in for a file."""
    text = base64.b64encode(data).decode()
    file = {"name": name, "data": text}
    sound = base64.b64encode(picture("PNG")).decode()
    return [
        as_json("/api/jobs", {"kind": "edit", "prompt": "x", "picture": file}),
        as_json("/api/jobs", {"kind": "decode", "codes": file}),
        as_json("/sdapi/v1/png-info", {"image": text}),
        as_json("/sdapi/v1/img2img", {"prompt": "x", "init_images": [text]}),
        as_json("/sdapi/v1/img2img", {"prompt": "x", "init_images": [sound], "mask": text}),
        as_json("/sdapi/v1/extra-single-image", {"image": text}),
        as_json("/sdapi/v1/extra-batch-images", {"imageList": [file]}),
        form("/v1/images/edits", {"image": data}),
        form("/v1/images/edits", {"image[]": picture("PNG"), "mask": data}),
        form("/v1/images/variations", {"image": data}),
        Call("POST", f"{upload}?name={name}", data, "application/octet-stream"),
        Call("POST", "/api/studio/settings", data, "application/octet-stream"),
    ]


def told(app: Any, calls: list[Call], at_once: int = 4) -> tuple[list[Answer], float]:
    """The answers, and the longest that somebody waited who only asked how the server is, meanwhile."""
    longest = 0.0

    async def everything() -> list[Answer]:
        room = asyncio.Semaphore(at_once)

        async def one(call: Call) -> Answer:
            async with room:
                return await asyncio.wait_for(_call(app, call), 60)

        async def others() -> None:
            nonlocal longest
            while True:
                began = time.monotonic()
                answer = await _call(app, Call("GET", "/health"))
                assert answer.status == 200
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - began)

        waiting = asyncio.create_task(others())
        try:
            return await asyncio.gather(*(one(call) for call in calls))
        finally:
            waiting.cancel()

    return asyncio.run(everything()), longest


def message_of(answer: Answer) -> str:
    body = json.loads(answer.body)
    found = body["detail"] if "detail" in body else body["error"]["message"]
    assert isinstance(found, str)
    return found


def check(calls: list[Call], answers: list[Answer]) -> int:
    """Look at every answer; how many were refusals."""
    refused = 0
    for call, answer in zip(calls, answers, strict=True):
        assert 200 <= answer.status < 500, (call.path, answer, call.body[:2000])
        if answer.status < 400:
            continue
        refused += 1
        line = message_of(answer)
        assert line, call.path
        assert "\n" not in line
        assert len(line) <= 500
        for word in ("Traceback", 'File "', "site-packages", "/tmp/", "Error:"):
            assert word not in line, (call.path, line)
    return refused


def sources() -> dict[str, Callable[[], bytes]]:
    kinds: dict[str, Callable[[], bytes]] = {format: (lambda of=format: picture(of)) for format in FORMATS}  # type: ignore[misc]
    return {**kinds, "safetensors": tensors}


def files(server: Served, upload: str, kind: str, count: int) -> None:
    sound, random = sources()[kind](), np.random.default_rng(len(kind))
    name = f"a.{kind.lower()}"
    whole = doors(sound, upload, name)
    answers, _ = told(server.app, whole)
    if kind != "safetensors":  # the doors themselves are open: a sound picture is taken by all but one
        assert sum(answer.status < 400 for answer in answers) >= len(whole) - 6, answers
    calls = [call for _ in range(count) for call in doors(mutated(sound, random), upload, name)]
    answers, longest = told(server.app, calls)
    refused = check(calls, answers)
    assert refused > len(calls) / 10
    assert longest < SECONDS, longest


@pytest.mark.parametrize("kind", [*FORMATS, "safetensors"])
def test_mutated_files_at_every_door(server: Served, upload: str, kind: str) -> None:
    files(server, upload, kind, FEW)


@pytest.mark.soak
@pytest.mark.parametrize("kind", [*FORMATS, "safetensors"])
def test_many_mutated_files_at_every_door(server: Served, upload: str, kind: str) -> None:
    files(server, upload, kind, MANY)


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1)])
def test_the_thinnest_pictures_at_every_door(server: Served, upload: str, size: tuple[int, int]) -> None:
    """Made smaller in their shape, nothing would be left of one side."""
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, "PNG")
    calls = doors(out.getvalue(), upload, "thin.png")
    body = {"prompt": "x", "init_images": [base64.b64encode(out.getvalue()).decode()], "resize_mode": 2}
    calls.append(Call("POST", "/sdapi/v1/img2img", json.dumps(body).encode(), "application/json"))
    check(calls, told(server.app, calls)[0])


BODIES: dict[str, dict[str, Any]] = {
    "/api/jobs": {"kind": "text_to_image", "prompt": "a cat", "n": 2, "seed": 7, "steps": 4, "lora": []},
    "/sdapi/v1/txt2img": {"prompt": "a cat", "steps": 4, "override_settings": {"sd_vae": "Automatic"}},
    "/sdapi/v1/options": {"sd_model_checkpoint": "default"},
    "/v1/images/generations": {"prompt": "a cat", "n": 2, "size": "64x64", "response_format": "url"},
    "/api/studio/votes": {"left": "a", "right": "b", "winner": "left"},
    "/api/studio/chinese": {"text": "the token is missing or wrong"},
}


def bodies(server: Served, count: int) -> None:
    random = np.random.default_rng(9)
    calls = [
        Call("POST", path, mutated(json.dumps(body).encode(), random))
        for path, body in BODIES.items()
        for _ in range(count)
    ]
    answers, longest = told(server.app, calls)
    assert check(calls, answers) > len(calls) / 3
    assert longest < SECONDS, longest


def test_mutated_json(server: Served) -> None:
    bodies(server, FEW)


@pytest.mark.soak
def test_much_mutated_json(server: Served) -> None:
    bodies(server, MANY)


def test_mutated_forms(server: Served) -> None:
    random = np.random.default_rng(11)
    sound = form("/v1/images/edits", {"image": picture("PNG"), "mask": picture("PNG")})
    calls = [Call("POST", sound.path, mutated(sound.body, random), FORM) for _ in range(3 * FEW)]
    answers, longest = told(server.app, calls)
    assert check(calls, answers) > 0
    assert longest < SECONDS, longest


@pytest.mark.parametrize("lost", [1, 8, 60])
def test_a_form_that_is_cut_off_is_not_a_form_without_its_mask(server: Served, lost: int) -> None:
    whole = form("/v1/images/edits", {"image": picture("PNG"), "mask": picture("PNG")})
    for _ in range(2):  # what was kept of its files is closed, or the second collection of rubbish complains
        answers, _ = told(server.app, [Call("POST", whole.path, whole.body[: -3 - lost], FORM)])
        assert answers[0].status == 400
        assert message_of(answers[0]) == "the body cannot be read; send what the OpenAPI document says"


# -- controls ------------------------------------------------------------------------------------------------


def test_control_the_plain_library_behind_a_door(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(data: bytes) -> Any:
        with Image.open(io.BytesIO(data)) as image:
            return image.load()

    monkeypatch.setattr(a1111.metadata, "read", read)
    monkeypatch.setattr(
        a1111, "picture_file", lambda text: type("File", (), {"data": base64.b64decode(text)})
    )
    random = np.random.default_rng(3)
    calls = [
        as_json("/sdapi/v1/png-info", {"image": base64.b64encode(mutated(picture("PNG"), random)).decode()})
        for _ in range(FEW)
    ]
    statuses = {answer.status for answer in lenient(server.app, calls)}
    assert 500 in statuses


def lenient(app: Any, calls: list[Call]) -> list[Answer]:
    """Answers of an application whose mistakes go on to its server, as an ASGI application's do."""

    async def one(call: Call) -> Answer:
        try:
            return await _call(app, call)
        except Exception:
            return Answer(500, {}, b"")

    async def all_of_them() -> list[Answer]:
        return [await one(call) for call in calls]

    return asyncio.run(all_of_them())


def test_control_a_door_that_works_on_the_loop(server: Served) -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/v1/images/variations":
            time.sleep(1.3 * SECONDS)
        await server.app(scope, receive, send)

    _, longest = told(slow, [form("/v1/images/variations", {"image": b"x"})] * 2)
    assert longest > SECONDS
