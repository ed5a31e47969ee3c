"""The studio as it is served: :mod:`http_server` with the page, for tests and for tools/screenshots.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from http_server import Served

from vitrail.serving.durable import DurableEngine
from vitrail.serving.jobs import Job
from vitrail.studio.page import CSP, add_studio
from vitrail.studio.places import Places

__all__ = ["impatient_studio", "serve_studio"]


class _Studio(Served):
    """A server with the page, which knows the server's engine."""

    def __init__(self, folder: Path, places: Places, **more: Any) -> None:
        super().__init__(folder, add=lambda app: add_studio(app, places, self.engine), **more)


class _ImpatientEngine(DurableEngine):
    """The real one, which gives every job up at once: dialects that wait for a picture come back."""

    def submit(self, request: Any, *, key: str | None = None) -> Job:
        return self.cancel(super().submit(request, key=key).id)


def impatient_studio(folder: Path) -> Served:
    """A server with the page that takes any number of jobs and does none; a context manager."""
    places = Places(folder / "studio", roots=())
    return Served(
        folder,
        engine={"queue_limit": 100_000},
        engine_class=_ImpatientEngine,
        page_policy=CSP,
        add=lambda app: add_studio(app, places),
    )


def serve_studio(
    folder: Path, *, hands: Sequence[str] | None = None, csp: str = CSP, workers: int = 1, **places: Any
) -> Served:
    """A server with the page and a worker, everything below ``folder``; a context manager.

    ``hands``: command of the working process, where it is not the real one; ``csp``: the page's policy;
    ``places``: further fields of :class:`~vitrail.studio.places.Places`.
    """
    engine: dict[str, Any] = {"workers": workers} | ({} if hands is None else {"hands": tuple(hands)})
    kept = Places(folder / "studio", **places)
    roots = None if kept.roots is None else (*kept.roots, kept.uploads)
    return _Studio(folder, kept, engine=engine, page_policy=csp, roots=roots)
