"""Calls an ASGI application directly: thousands of requests in the time of a few over a network."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

__all__ = ["Answer", "Call", "call_all"]


@dataclass(frozen=True)
class Call:
    """A request; ``path`` may hold a query and escapes, as on the wire."""

    method: str
    path: str
    body: bytes = b""
    type: str = "application/json"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


async def _call(app: Any, call: Call) -> Answer:
    path, _, query = call.path.partition("?")
    headers = [(b"host", b"127.0.0.1"), (b"content-length", str(len(call.body)).encode())]
    if call.method != "GET":
        headers.append((b"content-type", call.type.encode()))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": call.method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("ascii", "replace"),
        "query_string": query.encode("ascii", "replace"),
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "extensions": {},
    }
    sent, status, found, parts = False, 0, {}, []
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await gone.wait()
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": call.body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, found
        if message["type"] == "http.response.start":
            status = message["status"]
            found = {name.decode(): value.decode("latin-1") for name, value in message["headers"]}
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                gone.set()

    await app(scope, receive, send)
    return Answer(status, found, b"".join(parts))


def call_all(app: Any, calls: Iterable[Call], at_once: int = 16) -> list[Answer]:
    """Make the calls, ``at_once`` at a time, and return their answers in order."""

    async def all_of_them() -> list[Answer]:
        room = asyncio.Semaphore(at_once)

        async def one(call: Call) -> Answer:
            async with room:
                return await asyncio.wait_for(_call(app, call), 60)

        return await asyncio.gather(*(one(call) for call in calls))

    return asyncio.run(all_of_them())
