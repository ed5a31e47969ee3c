"""The server: the native API, the two dialects that other programs speak, and what guards them all.

:func:`make_app` puts them together over any :class:`~vitrail.serving.jobs.JobEngine` and gallery; nothing
here loads a model or imports torch, so a server starts at once. The studio's page is added by its command
(:func:`vitrail.studio.page.add_studio`), inside the same guard.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import anyio.to_thread
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

import vitrail
from vitrail.serving.dialects import a1111, a1111_lists, openai
from vitrail.serving.http_errors import handle_errors
from vitrail.serving.http_guard import Guard, Limits
from vitrail.serving.http_hosts import LOOPBACK, check_bind, host_names
from vitrail.serving.http_jobs import job_router
from vitrail.serving.http_metrics import Metrics, status_router
from vitrail.serving.http_models import Shelf
from vitrail.serving.http_page import add_page
from vitrail.serving.http_pictures import model_router, picture_router
from vitrail.serving.http_stream import Streams
from vitrail.serving.http_wire import schema
from vitrail.serving.jobs import JobEngine
from vitrail.store.gallery import Gallery

__all__ = ["Server", "make_app"]

THREADS = 64
"""Requests that are worked on at the same time; streams and waiting clients do not count."""

ABOUT = """Pictures on your own machine. Ask for one at `/api/jobs`, follow it by its events, fetch it at
`/api/pictures`. Programs written for AUTOMATIC1111 (`/sdapi/v1`) and for OpenAI's images (`/v1/images`) work
as they are."""


class Server:
    """The guarded application. ``app`` is the FastAPI inside, for the studio's routes and for tests."""

    def __init__(self, app: FastAPI, guard: ASGIApp) -> None:
        self.app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, as ASGI has it."""
        await self._guard(scope, receive, send)


def make_app(
    engine: JobEngine,
    gallery: Gallery,
    *,
    token: str | None = None,
    hosts: Iterable[str] = (),
    addresses: bool = False,
    origins: Iterable[str] = (),
    roots: tuple[Path, ...] | None = (),
    page_policy: str | None = None,
    add: Callable[[FastAPI], None] | None = None,
    limits: Limits | None = None,
) -> Server:
    """Return the application over ``engine`` and ``gallery``.

    Parameters
    ----------
    token: what every request must bring (Bearer, a Basic password, or the page's cookie); None for none.
    hosts: names beside ``localhost`` under which it answers; ``addresses``: and any address of digits.
    origins: other pages that may use it, such as ``https://page.example``; none by default.
    roots: folders that long works may name; none by default, None for all: a server for its own machine.
    page_policy: Content-Security-Policy of the studio's page.
    add: puts further routes (the studio's) into the FastAPI application.
    """
    check_bind("localhost", token)
    shelf, streams = Shelf(roots), Streams(engine)
    metrics = Metrics(engine, gallery, streams)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield
        streams.close()

    app = FastAPI(
        title="vitrail",
        version=vitrail.__version__,
        description=ABOUT,
        docs_url=None,  # their pages fetch scripts from elsewhere; http_page makes one of our own
        redoc_url=None,
        lifespan=lifespan,
        separate_input_output_schemas=False,
    )
    handle_errors(app)
    if add is not None:
        add(app)  # first, for FastAPI builds what it passes on the way to a route: a page needs few of them
    app.include_router(job_router(engine, gallery, shelf, streams))
    app.include_router(picture_router(gallery))
    app.include_router(model_router(shelf))
    app.include_router(status_router(engine, gallery, metrics))
    app.include_router(a1111.make_router(engine, gallery, shelf, streams))
    app.include_router(a1111_lists.controlnet_router(shelf))
    app.include_router(openai.make_router(engine, gallery, shelf, streams, token))
    _describe(app)
    add_page(app)
    allowed = frozenset(origin.rstrip("/") for origin in origins)
    inner: ASGIApp = metrics.around(app)
    if allowed:
        from starlette.middleware.cors import CORSMiddleware

        inner = CORSMiddleware(
            inner, allow_origins=sorted(allowed), allow_methods=["GET", "POST", "DELETE"], allow_headers=["*"]
        )
    guard = Guard(
        inner,
        hosts=LOOPBACK | host_names(hosts),
        addresses=addresses,
        origins=allowed,
        token=token,
        page_policy=page_policy,
        limits=limits or Limits(),
    )
    return Server(app, guard)


def _describe(app: FastAPI) -> None:
    """Put the requests of the schema into the OpenAPI document, which FastAPI does not see."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            body, definitions = schema()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(definitions)
            schemas["JobRequest"] = {"title": "JobRequest", **body}
            schemas.pop("HTTPValidationError", None)
            schemas.pop("ValidationError", None)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
