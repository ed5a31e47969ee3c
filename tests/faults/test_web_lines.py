"""Hostile connections: heads that never end, streams that nobody reads, too many of them."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("dbos", reason="needs the extra server")
sys.path.insert(0, str(Path(__file__).parent.parent / "surface"))
from http_server import Served

from vitrail.serving.http_lines import Lines, room_for_lines


class Strict(Lines):
    head_seconds = 1.0
    read_seconds = 1.0
    most = 40


@pytest.fixture
def server(tmp_path: Path, defence: str) -> Iterator[Served]:
    with Served(tmp_path, http=Strict if defence == "in" else "h11") as served:
        yield served


DEFENCE = pytest.mark.parametrize("defence", ["in", "out"])


OPEN: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _all_closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def dial(port: int, head: bytes = b"", size: int | None = None) -> socket.socket:
    line = socket.socket()
    OPEN.append(line)
    if size is not None:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    line.settimeout(10)
    line.connect(("127.0.0.1", port))
    line.sendall(head)
    return line


def ended(line: socket.socket) -> bool:
    """Whether the server has ended it; what it had sent before is read away."""
    line.setblocking(False)
    try:
        while line.recv(1 << 16):
            pass
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def dripped(lines: list[socket.socket], seconds: float) -> int:
    """Send a byte of each head now and then; how many the server has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for line in lines:
            with contextlib.suppress(OSError):
                line.sendall(b"X")
        time.sleep(0.2)
    return sum(ended(line) for line in lines)


@DEFENCE
def test_a_head_that_drips_is_given_up_and_others_are_answered(server: Served, defence: str) -> None:
    begun = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
    lines = [dial(server.port, begun) for _ in range(30)]
    silent = dial(server.port)
    again = dial(server.port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")  # then a second one
    time.sleep(0.1)
    lines += [silent, again]
    assert server.http.get("/health").status_code == 200
    assert dripped(lines, 4.0) == (len(lines) if defence == "in" else 0)
    assert server.http.get("/health").status_code == 200


@DEFENCE
def test_far_too_many_take_no_place_from_those_who_ask(server: Served, defence: str) -> None:
    job = server.http.post("/api/jobs", json={"prompt": "an apple"}).json()["id"]
    stream = dial(server.port, f"GET /api/jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert stream.recv(15) == b"HTTP/1.1 200 OK"
    lines = [dial(server.port) for _ in range(60)]
    # On a line of its own: that of server.http is idle, and the oldest.
    assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
    until = time.monotonic() + (10.0 if defence == "in" else 0.5)
    while (gone := sum(ended(line) for line in lines)) <= 15 and time.monotonic() < until:
        time.sleep(0.05)
    assert (gone > 15) == (defence == "in")
    assert not ended(stream)


@DEFENCE
def test_a_stream_that_nobody_reads_ends(tmp_path: Path, defence: str) -> None:
    """Its client asks for a large picture's worth of events and reads none of it."""

    def talkative(app: Any) -> Any:
        async def told(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http" or scope["path"] != "/endless":
                await app(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(2000):
                await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        return told

    with Served(tmp_path, http=Strict if defence == "in" else "h11", wrap=talkative) as server:
        line = dial(server.port, b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n", 4096)
        time.sleep(2.5)
        state = server.server.server_state.connections
        assert len(state) == (0 if defence == "in" else 1)
        line.close()
        with server.http.stream("GET", "/endless") as answer:  # whoever reads gets all of it
            assert sum(len(data) for data in answer.iter_bytes()) == 2000 << 16


def test_a_body_of_two_lengths_is_refused(tmp_path: Path) -> None:
    """A proxy may take the other one, and what it takes for a body we would take for the next request."""
    body = b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = (
        "POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with Served(tmp_path) as server:
        line = dial(server.port, head.encode() + body)
        answer = b""
        while data := line.recv(1 << 16):
            answer += data
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1") == 1
        assert b"connection: close" in answer.lower()


def test_a_process_makes_room_for_connections() -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(700, before[1]), before[1]))
        room = room_for_lines()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert hard == before[1]
        assert soft >= min(16384, hard)
        assert 64 <= room < soft
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_body_that_breaks_off_is_no_mistake_of_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who leaves in the middle of an upload leaves nothing behind, and no pages of a traceback in the log."""
    head = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {}\r\nContent-Length: 100000\r\n\r\n{}"
    form = '--X\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + "x" * 2000
    halves = [
        head.format("/api/jobs", "application/json", '{"prompt": "'),
        head.format("/sdapi/v1/img2img", "application/json", '{"prompt": "'),
        head.format("/v1/images/edits", "multipart/form-data; boundary=X", form),
    ]
    with Served(tmp_path) as server:
        lines = [dial(server.port, half.encode()) for half in halves]
        before = {path for path in tmp_path.rglob("*") if not path.name.startswith("vitrail.sqlite")}
        time.sleep(0.2)
        while lines:
            lines.pop().close()
        OPEN.clear()
        assert server.http.post("/api/jobs", json={"prompt": "an apple"}).status_code == 202
        until = time.monotonic() + 10
        while server.server.server_state.connections and time.monotonic() < until:
            if len(server.server.server_state.connections) == 1:  # that of server.http
                break
            time.sleep(0.05)
        assert len(server.engine.jobs()) == 1
        after = {path for path in tmp_path.rglob("*") if not path.name.startswith("vitrail.sqlite")}
        assert after == before
    assert [record.getMessage() for record in caplog.records] == []
