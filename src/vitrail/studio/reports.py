"""Reports of evaluations: which there are, their figures side by side, each as the page it was written to be.

A report's page brings its own style and one small script. It is served into a sandbox of no origin, so that
whatever stands in it can neither read this page nor call its routes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import Response

from vitrail.errors import InputError
from vitrail.evaluation.catalogue import CATALOGUE
from vitrail.evaluation.report_page import POLICY, opened_in
from vitrail.studio.places import Places

__all__ = ["REPORT_CSP", "make_reports"]

REPORT_CSP = POLICY + "; sandbox allow-scripts; frame-ancestors 'self'"
"""The report's own policy (one script, by its hash), and a sandbox that is no origin's."""

_HEADERS = {"Content-Security-Policy": REPORT_CSP, "X-Frame-Options": "SAMEORIGIN"}
_MAX = 64 << 20


def make_reports(places: Places) -> APIRouter:
    """Return the routes below ``/reports``."""
    router = APIRouter()

    @router.get("/reports")
    def reports() -> dict[str, Any]:
        """Every report, the newest first, and what its figures are called and which way is better."""
        rows = [row for folder in _folders(places.reports) if (row := _short(folder)) is not None]
        metrics = {
            name: {"en": entry.label.en, "zh": entry.label.zh, "better": entry.better}
            for name, entry in CATALOGUE.items()
        }
        return {
            "reports": sorted(rows, key=lambda row: str(row["created"]), reverse=True),
            "metrics": metrics,
        }

    @router.get("/reports/{id}/page")
    def page(id: str, language: Literal["en", "zh"] | None = None) -> Response:
        """The report's page, sandboxed; it opens in ``language``, else in the one it was written for."""
        for folder in _folders(places.reports):
            if _id(folder) == id:
                try:
                    html = (folder / "report.html").read_bytes()
                except OSError as error:
                    raise InputError("the page of this report is gone") from error
                if language is not None:
                    html = opened_in(html, language)
                return Response(html, media_type="text/html; charset=utf-8", headers=_HEADERS)
        raise InputError("there is no such report; its folder may have been removed")

    return router


def _folders(home: Path) -> Iterator[Path]:
    for path in [*home.glob("*/report.json"), *home.glob("*/*/report.json")]:
        if not path.parent.is_symlink() and path.stat().st_size <= _MAX:
            yield path.parent


def _id(folder: Path) -> str:
    return hashlib.sha256(f"vitrail report {folder.resolve()}".encode()).hexdigest()[:20]


def _short(folder: Path) -> dict[str, Any] | None:
    """The report in short; None for a file of another program."""
    try:
        data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return {
            "id": _id(folder),
            "name": folder.name.removeprefix("evaluate-"),
            "kind": str(data["kind"]),
            "n": data["pictures"]["n"],
            "against": (data.get("reference") or {}).get("name"),
            "created": str(data["about"].get("created", "")),
            "metrics": {
                name: {"value": row["value"], "ci95": row.get("ci95"), "n": row["n"]}
                for name, row in data["metrics"].items()
                if name in CATALOGUE
            },
            "verdict": data.get("verdict", [])[:6],
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
