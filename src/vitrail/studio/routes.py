"""Routes that only the page needs, under ``/api/studio``: its forms, models, dropped pictures, ratings.

They are mounted into the application that :mod:`vitrail.serving.http` makes, behind the same security.
"""

from __future__ import annotations

import threading
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from vitrail.errors import InputError, VitrailError
from vitrail.request_fields import Model, Name, Word
from vitrail.schema import SAMPLER_LABELS, SCHEDULE_LABELS, TextToImageRequest, describe
from vitrail.studio.ratings import Vote, as_csv, scores
from vitrail.studio.vote_book import VoteBook

__all__ = ["make_router"]

MAX_DROPPED = 64 << 20
"""Largest picture in bytes whose settings are read."""

PictureId = Annotated[str, Field(pattern=r"^[0-9a-z]{8,64}$")]


class VoteBody(Model):
    """A person's answer about two pictures of one prompt."""

    prompt: Annotated[str, Field(max_length=2000)] = ""
    left: PictureId
    right: PictureId
    left_name: Name
    right_name: Name
    winner: Literal["left", "right", "tie"]
    rater: Word = "me"


def make_router(votes: VoteBook) -> APIRouter:
    """Return the routes; ``votes`` keeps the answers of the rating page."""
    router = APIRouter(prefix="/api/studio", tags=["studio"])

    @router.get("/form")
    def form() -> dict[str, Any]:
        """Fields of a request with help in both languages, as the schema says them."""
        return {"fields": fields(), "samplers": SAMPLER_LABELS, "schedules": SCHEDULE_LABELS}

    @router.get("/models")
    def models() -> list[dict[str, Any]]:
        """Models on this machine, and those of the catalogue that could be fetched."""
        return [*_installed(), *_catalogue()]

    @router.post("/settings")
    async def settings(request: Request) -> dict[str, Any]:
        """Settings of a picture (the body), whoever made it, as values of the form."""
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > MAX_DROPPED:
                raise InputError(f"the picture is larger than {MAX_DROPPED >> 20} MiB")
        return settings_of_picture(bytes(data))

    @router.post("/votes", status_code=201)
    def vote(body: VoteBody) -> dict[str, int]:
        """Keep an answer."""
        return {"votes": votes.add(body.model_dump())}

    @router.get("/scores")
    def found() -> list[dict[str, Any]]:
        """Bradley-Terry scores with intervals, the best first."""
        return [vars(score) for score in scores(_votes(votes), resamples=300)]

    @router.get("/scores.csv")
    def table() -> Response:
        """The same as CSV."""
        return Response(
            as_csv(scores(_votes(votes))),
            media_type="text/csv; charset=utf-8",
            headers={"Content-Disposition": 'attachment; filename="ratings.csv"'},
        )

    return router


def fields() -> list[dict[str, Any]]:
    """The settings of a request for pictures from words, for the page's folded form."""
    return [row._asdict() for row in describe(TextToImageRequest)]


def settings_of_picture(data: bytes) -> dict[str, Any]:
    """Return ``{"program", "settings", "notes"}`` of a picture file.

    Only values that the form takes are returned; others become notes. Raises what
    :func:`vitrail.provenance.metadata.read` raises for a file that is no picture, :class:`InputError` for one
    that says nothing.
    """
    from vitrail.provenance.metadata import read

    info = read(data)
    found = info.settings
    if found is None:
        raise InputError("this picture does not say how it was made")
    notes = list(info.problems)
    if info.record is not None and isinstance(info.record.request, TextToImageRequest):
        again = info.record.again().model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
        return {"program": "vitrail", "settings": again, "notes": notes}
    names = (
        "prompt",
        "negative_prompt",
        "steps",
        "sampler",
        "schedule",
        "cfg_scale",
        "seed",
        "width",
        "height",
    )
    given = {name: getattr(found, name) for name in names}
    given = {name: value for name, value in given.items() if value not in (None, "")}
    if found.program == "vitrail" and found.extra.get("Style"):
        given["style"] = found.extra["Style"]
    settings: dict[str, Any] = {}
    for name, value in given.items():
        try:
            one = TextToImageRequest.model_validate({"prompt": "x", name: value})
        except ValueError:
            notes.append(f"{name} {str(value)[:40]!r} is left out: this program cannot serve it")
        else:
            settings[name] = getattr(one, name)
    if found.model:
        notes.append(f"made with the model {found.model[:80]}")
    return {"program": found.program, "settings": settings, "notes": notes}


_SHELF = threading.Lock()


def _installed() -> list[dict[str, Any]]:
    from vitrail.store.artifacts import available, read_manifest
    from vitrail.tasks.loading import style_names

    rows = []
    with _SHELF:
        for name, folder in available().items():
            try:
                manifest = read_manifest(folder, verify=False)
                styles = list(style_names(folder, manifest))
            except VitrailError as error:
                rows.append({"name": name, "here": True, "problem": str(error)})
                continue
            rows.append(
                {
                    "name": name,
                    "here": True,
                    "kind": manifest.kind,
                    "size": sum(entry.size for entry in manifest.files.values()),
                    "licence": str(getattr(manifest, "licence", "") or ""),
                    "styles": styles,
                }
            )
    return rows


def _catalogue() -> list[dict[str, Any]]:
    from vitrail.store.catalogue import CATALOGUE, installed

    return [
        {
            "name": entry.name,
            "here": installed(entry),
            "kind": entry.kind,
            "size": entry.size,
            "licence": entry.licence,
            "credit": entry.credit,
            "sources": [str(source) for source in entry.sources],
            "en": entry.english,
            "zh": entry.chinese,
            "catalogue": True,
        }
        for entry in CATALOGUE.values()
    ]


def _votes(book: VoteBook) -> list[Vote]:
    rows = [Vote(row["left_name"], row["right_name"], row["winner"]) for row in book.all()]
    return [vote for vote in rows if vote.left != vote.right]
