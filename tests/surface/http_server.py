"""A real server for tests: the durable engine behind the whole application, on a port of its own."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from vitrail.serving.durable import DurableEngine
from vitrail.serving.http import make_app


class Served:
    """``with Served(folder) as server``: ``server.url``, ``server.http`` (httpx), ``server.engine``.

    ``wrap`` puts something between uvicorn and the application, for negative controls; other settings go to
    :func:`make_app` and, those in ``engine``, to the engine. ``http``: the class of its connections.
    """

    def __init__(
        self,
        folder: Path,
        *,
        engine: dict[str, Any] | None = None,
        engine_class: type[DurableEngine] = DurableEngine,
        wrap: Callable[[Any], Any] = lambda app: app,
        http: Any = "h11",
        **settings: Any,
    ) -> None:
        self.engine = engine_class(str(folder), **{"workers": 0, "device": "cpu", **(engine or {})})
        self.gallery = self.engine.gallery
        self.app = make_app(self.engine, self.gallery, **settings)
        self.token: str | None = settings.get("token")
        config = uvicorn.Config(
            wrap(self.app),
            http=http,
            log_level="critical",
            ws="none",
            timeout_graceful_shutdown=1,
            proxy_headers=False,
        )
        self.server = uvicorn.Server(config)
        # Said to be TCP, as by the commands: on no other asyncio sends at once, and an answer whose head and
        # body go out apart would wait 40 ms.
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(512)
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False, headers=headers)

    def __enter__(self) -> Served:
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join(15)
        self.socket.close()
        self.engine.close()

    def wait(self, id: str, seconds: float = 120.0) -> dict[str, Any]:
        """The job ``id`` once it has ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            job: dict[str, Any] = self.http.get(f"/api/jobs/{id}").json()
            if job["state"] in ("succeeded", "failed", "cancelled"):
                return job
            time.sleep(0.05)
        raise AssertionError(f"job {id} has not ended: {job}")


def routes_of(app: Any) -> list[tuple[str, str]]:
    """(method, path) of every route, parameters filled in."""
    from fastapi.routing import iter_route_contexts

    found = set()
    for context in iter_route_contexts(app.routes):
        path = str(getattr(context, "path", ""))
        for part in ("{id}", "{name}"):
            path = path.replace(part, "0123456789abcdef")
        for method in getattr(context, "methods", None) or ():
            if path and method != "HEAD":
                found.add((str(method), path))
    return sorted(found)


def one_thread() -> None:
    """Workers of tests leave the machine's other cores alone."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
