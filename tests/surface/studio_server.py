"""The studio as it is served: :mod:`http_server` with the page, for tests and for tools/screenshots.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from http_server import Served

from vitrail.studio.page import CSP, add_studio
from vitrail.studio.places import Places

__all__ = ["serve_studio"]


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
    return Served(folder, engine=engine, page_policy=csp, roots=roots, add=lambda app: add_studio(app, kept))
