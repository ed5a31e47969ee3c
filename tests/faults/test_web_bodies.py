"""Hostile bodies: numbers, texts, pictures and forms that are refused early, in few bytes, with no echo."""

from __future__ import annotations

import base64
import contextlib
import gc
import io
import json
import socket
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("dbos", reason="needs the extra server")
sys.path.insert(0, str(Path(__file__).parent.parent / "surface"))
from http_server import Served, routes_of
from web_call import Call, call_all

from vitrail.serving.http_guard import _WITHOUT_BODY as BARE
from vitrail.serving.http_guard import Limits

CANARY = "Zq9canary"
QUICK = Limits(json=1 << 16, files=4 << 20, seconds=1.0, rate=1 << 30, pause=0.5)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("bodies"), engine={"queue_limit": 100_000}) as served:
        yield served


def picture_bytes(size: tuple[int, int] = (16, 16), format: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size).save(out, format)
    return out.getvalue()


PNG = base64.b64encode(picture_bytes()).decode()

#: Values that no field takes, as JSON text.
HOSTILE = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-1e400",
    "1" * 5000,
    "-" + "9" * 5000,
    "1e20",
    "1000000000",
    "-1",
    "1.5",
    "true",
    f'"{CANARY}\\ud800"',
    f'"{CANARY}\\u0000"',
    f'"{CANARY * 400}"',
    "[" * 5000 + "]" * 5000,
    f'{{"{CANARY}": {{"{CANARY}": 1}}}}',
    f'["{CANARY}"]',
    f'"<script>{CANARY}</script>"',
    f'"{CANARY}/../../etc/passwd"',
    "{}",
    "[null]",
]
BODIES: dict[str, dict[str, Any]] = {
    "/api/jobs": {"kind": "text_to_image", "prompt": "x"},
    "/sdapi/v1/txt2img": {"prompt": "x"},
    "/sdapi/v1/img2img": {"prompt": "x", "init_images": [PNG], "mask": PNG},
    "/v1/images/generations": {"prompt": "x"},
}
FIELDS = {
    "/api/jobs": "kind prompt negative_prompt n seed steps cfg_scale sampler schedule shift width height "
    "subseed_strength hires_scale model style lora control vae embedding clip_skip guidance_interval",
    "/sdapi/v1/txt2img": "width height steps cfg_scale batch_size n_iter sampler_name scheduler",
    "/sdapi/v1/img2img": "init_images mask width height steps denoising_strength resize_mode",
    "/v1/images/generations": "prompt n size model output_format partial_images output_compression",
}
WHOLE = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"\xff\xfe{}",
    b"\x00",
    b"NaN",
    b'{"prompt": NaN}',
    b'{"a":' * 3000 + b"1" + b"}" * 3000,
    b"[" * 100_000,
    b'{"prompt":"' + b"\xed\xa0\x80" + b'"}',
    json.dumps({CANARY: CANARY, "prompt": 5}).encode(),
    b'{"prompt": "x", "width": 1' + b"0" * 5000 + b"}",
]


def check(answer: Any, what: object) -> None:
    assert 400 <= answer.status < 500, (what, answer)
    assert len(answer.body) <= 2048, (what, len(answer.body))
    body = answer.body.decode()
    assert CANARY not in body, (what, body)
    for word in ("Traceback", 'File "', "/usr/", "/work/", "site-packages", "pydantic", "0" * 40):
        assert word not in body, (what, body)
    assert answer.headers["content-type"] == "application/json", what
    json.loads(body)


def text_of(body: dict[str, Any], field: str, value: str) -> bytes:
    """The JSON of ``body`` with ``field`` set to a value that JSON itself may not be able to say."""
    rest = json.dumps({name: given for name, given in body.items() if name != field})[1:-1]
    return f'{{"{field}": {value}{", " + rest if rest else ""}}}'.encode()


#: What is right where it stands among the hostile values: (field, value).
FINE = {
    ("prompt", f'"<script>{CANARY}</script>"'),
    ("negative_prompt", f'"<script>{CANARY}</script>"'),
    ("prompt", f'"{CANARY}/../../etc/passwd"'),
    ("negative_prompt", f'"{CANARY}/../../etc/passwd"'),
    ("seed", "1000000000"),
    ("cfg_scale", "1.5"),
    ("shift", "1.5"),
    ("hires_scale", "1.5"),
    ("model", f'"{CANARY}/../../etc/passwd"'),
}


@pytest.mark.parametrize("path", BODIES)
def test_hostile_values_in_every_field(server: Served, path: str) -> None:
    cases = [(field, value) for field in FIELDS[path].split() for value in HOSTILE]
    if path != "/api/jobs":  # whose routes wait for their pictures: what is valid would wait for a worker
        cases = [case for case in cases if case[1] not in ("true", "1.5", "-1", "{}", "[null]")]
        cases = [case for case in cases if case[0] != "prompt" or "ud800" in case[1] or "{" in case[1]]
    calls = [Call("POST", path, text_of(BODIES[path], field, value)) for field, value in cases]
    for (field, value), answer in zip(cases, call_all(server.app, calls), strict=True):
        if answer.status == 202 and ((field, value) in FINE or value in ("{}", "[null]", "true")):
            assert (field, value) in FINE, (field, value)
            continue
        check(answer, (path, field, value[:60]))


def test_hostile_bodies_on_every_route(server: Served) -> None:
    routes = [(method, path) for method, path in routes_of(server.app.app) if method == "POST"]
    cases = [(path, body) for _, path in routes for body in WHOLE]
    calls = [
        Call(
            "POST",
            path,
            body,
            "multipart/form-data; boundary=x" if "/images/e" in path else "application/json",
        )
        for path, body in cases
    ]
    for (path, body), answer in zip(cases, call_all(server.app, calls), strict=True):
        if answer.status in (200, 202):
            takes_nothing = path.rpartition("/")[2] in ("interrupt", "skip", "options") or path in BARE
            assert takes_nothing, (path, body[:40], answer)
        else:
            check(answer, (path, body[:60]))


def test_every_refusal_is_of_one_shape(server: Served) -> None:
    for path, keys in (
        ("/api/jobs", {"error"}),
        ("/api/nothing", {"error"}),
        ("/sdapi/v1/txt2img", {"error", "detail", "body", "errors"}),
        ("/v1/images/generations", {"error"}),
    ):
        for body in (b"{", b"[]", b'{"steps": "x"}'):
            answer = call_all(server.app, [Call("POST", path, body)])[0]
            found = json.loads(answer.body)
            assert found.keys() == keys, (path, found)
            if path.startswith("/api"):
                assert found["error"].keys() == {"code", "message"}
            if path.startswith("/v1"):
                assert found["error"].keys() == {"message", "type", "param", "code"}


def test_a_mistake_of_our_own_tells_nothing(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"{CANARY} at /work/secret")

    monkeypatch.setattr(server.engine, "jobs", broken)
    for path in ("/api/jobs", "/sdapi/v1/progress"):
        answer = server.http.get(path)
        if path == "/api/jobs":
            assert answer.status_code == 500
            assert answer.json()["error"]["code"] == "InternalError"
        assert CANARY not in answer.text
        assert "secret" not in answer.text


# -- how much, and how fast ----------------------------------------------------------------------------------


def raw(
    port: int, head: str, body: bytes = b"", *, drip: float = 0.0, wait: float = 6.0
) -> tuple[bytes, float]:
    """Send a request by hand, ``drip`` seconds between the bytes of its body; the answer and its time."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        connection.sendall(head.encode())
        began = time.monotonic()
        try:
            if drip:
                connection.settimeout(drip)
                for at in range(len(body)):
                    connection.sendall(body[at : at + 1])
                    try:
                        early = connection.recv(65536)
                        return early, time.monotonic() - began
                    except TimeoutError:
                        if time.monotonic() - began > wait:
                            return b"", wait
            else:
                connection.sendall(body)
            connection.settimeout(wait)
            return connection.recv(65536), time.monotonic() - began
        except TimeoutError:
            return b"", time.monotonic() - began
        except ConnectionError:
            return b"gone", time.monotonic() - began


def head(path: str, length: int | None, type: str = "application/json") -> str:
    size = f"Content-Length: {length}" if length is not None else "Transfer-Encoding: chunked"
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {type}\r\n{size}\r\n\r\n"


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("strict"), limits=QUICK) as served:
        yield served


@pytest.mark.parametrize("path", ["/api/jobs", "/sdapi/v1/img2img", "/v1/images/edits", "/sdapi/v1/options"])
def test_a_large_body_is_refused_by_what_it_says(strict: Served, path: str) -> None:
    type = "multipart/form-data; boundary=x" if "edits" in path else "application/json"
    for length in (5 << 20, 10**12, 10**17):
        answer, seconds = raw(strict.port, head(path, length, type))  # and not one byte of it is sent
        assert answer.startswith(b"HTTP/1.1 413"), answer[:100]
        assert seconds < 2


def test_a_body_of_unknown_length_is_counted(strict: Served) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    answer, _ = raw(strict.port, head("/api/jobs", None), chunk * 200)
    assert answer.startswith((b"HTTP/1.1 413", b"gone")), answer[:100]
    small, _ = raw(strict.port, head("/sdapi/v1/options", None), chunk * 2)
    assert small.startswith((b"HTTP/1.1 413", b"gone")), small[:100]


def test_a_body_that_stops_is_given_up(strict: Served) -> None:
    answer, seconds = raw(strict.port, head("/api/jobs", 100), b"{")
    assert answer.startswith(b"HTTP/1.1 408"), answer[:100]
    assert seconds < 4


def test_a_body_that_drips_is_given_up(strict: Served) -> None:
    answer, seconds = raw(strict.port, head("/api/jobs", 1000), b" " * 1000, drip=0.1)
    assert answer.startswith((b"HTTP/1.1 408", b"gone")), answer[:100]
    assert seconds < 5


def test_control_without_the_guard_a_slow_body_is_waited_for(tmp_path: Path) -> None:
    with Served(tmp_path, wrap=lambda app: app.app) as bare:
        answer, _ = raw(bare.port, head("/api/jobs", 100), b"{", wait=3)
        assert answer == b""
        large, _ = raw(bare.port, head("/api/jobs", 5 << 20), wait=2)
        assert large == b""  # no 413: it waits for all of it


def form(parts: int, size: int = 1, name: str = "x") -> bytes:
    one = f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{"y" * size}\r\n'.encode()
    return one * parts + b"--b--\r\n"


def test_ten_thousand_parts_are_refused(server: Served) -> None:
    type = "multipart/form-data; boundary=b"
    file = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\nx\r\n'
    bodies = [form(10_000), form(10_000, name="image[]"), file * 10_000 + b"--b--\r\n", form(1, 1 << 20)]
    for path in ("/v1/images/edits", "/v1/images/variations"):
        began = time.process_time()
        for answer in call_all(server.app, [Call("POST", path, body, type) for body in bodies]):
            check(answer, path)
        assert time.process_time() - began < 5


def test_a_form_that_is_none(server: Served) -> None:
    for type in ("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=b"):
        for body in (
            b"",
            b"--b",
            b"--b\r\n\r\n",
            b"\x00" * 100,
            form(1)[:-8],
            b"--b\r\nX: y\r\n\r\nz\r\n--b--",
        ):
            answer = call_all(server.app, [Call("POST", "/v1/images/edits", body, type)])[0]
            check(answer, (type, body))


# -- pictures ------------------------------------------------------------------------------------------------


def bomb_png(width: int, height: int) -> bytes:
    """A sound PNG of ``width`` x ``height`` black pixels in a few kilobytes; too large ones are cut short."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = min(height, 40)
    data = zlib.compress(b"\0" * (rows * (width // 8 + 1)), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def endless_gif() -> bytes:
    """A GIF whose comment never ends."""
    return b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0, 0, 0) + b"!\xfe" + (b"\xff" + b"x" * 255) * 6000


BOMBS = {
    "png of 900 Mpx": bomb_png(30_000, 30_000),
    "png of 41 Mpx": bomb_png(41_000, 1000),
    "png of 4 Gpx": bomb_png(65_535, 65_535),
    "gif without end": endless_gif(),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "html": b"<html><script>alert(1)</script></html>",
    "tiff": b"II*\0" + b"\0" * 100,
    "half a png": picture_bytes()[:20],
    "text of 17 MB before the pixels": b"\x89PNG\r\n\x1a\n"
    + struct.pack(">I", 13)
    + b"IHDR"
    + struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    + b"\0\0\0\0"
    + struct.pack(">I", 17 << 20)
    + b"tEXt"
    + b"x" * (17 << 20),
}


def highest_memory() -> int:
    """The most memory in bytes that this process had resident since :func:`forget_memory`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def forget_memory() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_on_their_header(server: Served, name: str) -> None:
    content = base64.b64encode(BOMBS[name]).decode()
    calls = [
        Call("POST", path, json.dumps(body).encode())
        for path, body in (
            ("/api/jobs", {"kind": "edit", "prompt": "x", "picture": {"name": "a.png", "data": content}}),
            ("/sdapi/v1/img2img", {"prompt": "x", "init_images": [content]}),
            ("/sdapi/v1/png-info", {"image": content}),
            ("/sdapi/v1/extra-single-image", {"image": content}),
        )
    ]
    call_all(server.app, [Call("POST", "/sdapi/v1/png-info", json.dumps({"image": PNG}).encode())])
    forget_memory()
    before = highest_memory()
    for call in calls:
        least = 9.0
        for _ in range(3 if len(content) < 1 << 20 else 1):
            gc.collect()  # what an earlier refusal's traceback holds is not this one's
            began = time.thread_time()
            answer = call_all(server.app, [call])[0]
            least = min(least, time.thread_time() - began)
            check(answer, (name, call.path))
        # What the transport and JSON need for a large body is theirs: bombs are small.
        assert least < 0.1 or len(content) > 1 << 20, (name, call.path, least)
    # A body, its text and its bytes are copies, and the C library keeps some that other threads freed.
    grown = highest_memory() - before - 8 * len(content)
    assert grown < 20 << 20, (name, grown)


def test_control_a_decoder_alone_pays_for_the_bomb() -> None:
    forget_memory()
    before = highest_memory()
    with contextlib.suppress(OSError):  # cut off, which it sees only once the memory is taken
        Image.open(io.BytesIO(bomb_png(9_000, 9_000))).convert("RGB").load()
    assert highest_memory() - before > 20 << 20
