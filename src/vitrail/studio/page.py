"""The page itself: its files, and the studio's routes, put onto an application that has the native API."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from vitrail.studio.routes import make_router
from vitrail.studio.vote_book import VoteBook

__all__ = ["ASSETS", "CSP", "add_studio"]

ASSETS = Path(__file__).parent / "assets"

CSP = "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
"""What the page needs and no more: no inline script or style, nothing from another machine."""


def add_studio(app: FastAPI, votes: Path) -> None:
    """Serve the page at ``/``, its files under ``/studio`` and its routes under ``/api/studio``.

    ``votes`` is the file of the rating page's answers.
    """
    app.include_router(make_router(VoteBook(votes)))

    @app.get("/", include_in_schema=False)
    def index() -> FileResponse:
        return FileResponse(ASSETS / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/studio", StaticFiles(directory=ASSETS), name="studio")
