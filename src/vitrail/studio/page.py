"""The page itself: its files, and the studio's routes, put onto an application that has the native API."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from vitrail.serving.jobs import JobEngine
from vitrail.studio.places import Places
from vitrail.studio.routes import make_router

__all__ = ["ASSETS", "CSP", "add_studio"]

ASSETS = Path(__file__).parent / "assets"

CSP = (
    "default-src 'self'; img-src 'self' blob:; frame-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""What the page needs and no more: no inline script or style, nothing from another machine."""


def add_studio(app: FastAPI, places: Places, engine: JobEngine | None = None) -> None:
    """Serve the page at ``/``, its files under ``/studio`` and its routes under ``/api/studio``.

    ``engine`` takes the page's jobs; without it the page does not say that nobody works on them.
    The application sets :data:`CSP` on answers that have no policy of their own.
    """

    @app.get("/", include_in_schema=False)
    def index() -> FileResponse:
        return FileResponse(ASSETS / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/studio", StaticFiles(directory=ASSETS), name="studio")
    app.include_router(make_router(places, engine))
