"""Routes that only the page needs, under ``/api/studio``: forms, models, folders, runs, reports, ratings.

They are mounted into the application that :mod:`vitrail.serving.http` makes, behind the same security.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from vitrail.chinese import in_chinese
from vitrail.errors import InputError
from vitrail.request_fields import Model, Name, Word
from vitrail.schema import SAMPLER_LABELS, SCHEDULE_LABELS, TextToImageRequest, describe
from vitrail.serving.jobs import JobEngine
from vitrail.store.gallery import ID_PATTERN
from vitrail.studio.codebook import make_codebook
from vitrail.studio.folders import MAX_PICTURE, body_of, make_folders
from vitrail.studio.places import Places
from vitrail.studio.ratings import Vote, as_csv, scores
from vitrail.studio.reports import make_reports
from vitrail.studio.runs import make_runs
from vitrail.studio.shelf import make_shelf
from vitrail.studio.vote_book import VoteBook

__all__ = ["make_router", "settings_of_picture"]

PictureId = Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]

By = Literal["model", "style", "sampler"]
"""What is compared. Each has scores of its own: a style never meets a model."""

_TAKEN = (
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


class VoteBody(Model):
    """A person's answer about two pictures of one prompt."""

    prompt: Annotated[str, Field(max_length=2000)] = ""
    left: PictureId
    right: PictureId
    left_name: Name
    right_name: Name
    winner: Literal["left", "right", "tie"]
    by: By = "model"
    rater: Word = "me"


class Line(Model):
    """A line of the server, to be put into Chinese."""

    text: Annotated[str, Field(max_length=2000)]


def make_router(places: Places, engine: JobEngine | None = None, *, described: bool = False) -> APIRouter:
    """Return all routes of the page; ``engine`` as in :func:`vitrail.studio.page.add_studio`.

    They change with the page and are promised to nobody else, so the OpenAPI document leaves them out unless
    ``described``, which is for tests.
    """
    router = APIRouter(prefix="/api/studio", tags=["studio"], include_in_schema=described)
    parts = (
        make_shelf(),
        make_folders(places),
        make_runs(places),
        make_reports(places),
        make_codebook(places),
    )
    for part in (*parts, _ratings(VoteBook(places.votes))):
        router.include_router(part)

    @router.get("/form")
    def form() -> dict[str, Any]:
        """Fields of a request with help in both languages, as the schema says them."""
        rows = [row._asdict() for row in describe(TextToImageRequest)]
        return {"fields": rows, "samplers": SAMPLER_LABELS, "schedules": SCHEDULE_LABELS}

    @router.get("/workers")
    def workers() -> dict[str, int | None]:
        """How many workers live anywhere, and how many this server keeps itself; None where nobody knows."""
        if engine is None:
            return {"living": None, "kept": None}
        return {"living": engine.workers(), "kept": engine.beside}

    @router.post("/settings")
    async def settings(request: Request) -> dict[str, Any]:
        """Settings of a picture (the body), whoever made it, as values of the form."""
        found = settings_of_picture(await body_of(request.stream(), MAX_PICTURE))
        if request.headers.get("accept-language", "")[:2].lower() == "zh":
            found["notes"] = [in_chinese(note) or note for note in found["notes"]]
        return found

    @router.post("/chinese")
    def chinese(body: Line) -> dict[str, str]:
        """A message in Chinese, where there is a translation; else as it is."""
        return {"text": in_chinese(body.text) or body.text}

    return router


def _ratings(votes: VoteBook) -> APIRouter:
    router = APIRouter()

    def counted(by: By) -> list[Vote]:
        rows = [row for row in votes.all() if row.get("by", "model") == by]
        given = [Vote(row["left_name"], row["right_name"], row["winner"]) for row in rows]
        return [vote for vote in given if vote.left != vote.right]

    @router.post("/votes", status_code=201)
    def vote(body: VoteBody) -> dict[str, int]:
        """Keep an answer."""
        return {"votes": votes.add(body.model_dump())}

    @router.get("/scores")
    def found(by: By = "model") -> list[dict[str, Any]]:
        """Bradley-Terry scores with intervals, the best first."""
        return [vars(score) for score in scores(counted(by), resamples=300)]

    @router.get("/scores.csv")
    def table(by: By = "model") -> Response:
        """The same as CSV."""
        return Response(
            as_csv(scores(counted(by), resamples=300)),
            media_type="text/csv; charset=utf-8",
            headers={"Content-Disposition": f'attachment; filename="ratings-{by}.csv"'},
        )

    return router


def settings_of_picture(data: bytes) -> dict[str, Any]:
    """Return ``{"program", "settings", "notes"}`` of a picture file.

    Only values that the form takes are returned; others become notes. Raises what
    :func:`vitrail.provenance.metadata.read` raises for a file that is no picture, :class:`InputError` for one
    that says nothing.
    """
    from vitrail.provenance.metadata import read

    info = read(data, name="this file")  # by whatever name it was dropped, the page has only its bytes
    found = info.settings
    if found is None:
        raise InputError("this picture does not say how it was made")
    notes = list(info.problems)
    if info.record is not None and isinstance(info.record.request, TextToImageRequest):
        again = info.record.again().model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
        return {"program": "vitrail", "settings": again, "notes": notes}
    given = {name: getattr(found, name) for name in _TAKEN}
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
