"""The native API's jobs: accept, look, cancel, move, and their events as a stream that is taken up again."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from vitrail.errors import InputError, QueueFullError
from vitrail.request_fields import Model
from vitrail.serving.http_errors import NoPictureError, NotFoundError, documented, public
from vitrail.serving.http_models import Shelf
from vitrail.serving.http_pictures import there
from vitrail.serving.http_stream import Streams, shown_job
from vitrail.serving.http_wire import from_wire, load_json
from vitrail.serving.jobs import TERMINAL, Job, JobEngine, JobEvent, State
from vitrail.store.gallery import Gallery

__all__ = ["JobAnswer", "JobsAnswer", "job_router", "read_json"]

MAX_WAIT = 50.0
"""Seconds that a request may wait for its job's end; what stands between ends a silent one after 60."""

_WAIT = re.compile(r'(?:^|,)\s*wait(?:\s*=\s*"?([0-9]{1,9})"?)?\s*(?:$|[,;])', re.IGNORECASE)

SSE_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
EXAMPLES = {
    "words": {
        "summary": "Four pictures from words",
        "value": {"kind": "text_to_image", "prompt": "a cat sitting in a garden", "n": 4, "seed": 7},
    },
    "chinese": {
        "summary": "Words in Chinese",
        "value": {"kind": "text_to_image", "prompt": "一只猫坐在花园里"},
    },
    "edit": {
        "summary": "Draw over a picture",
        "value": {
            "kind": "edit",
            "prompt": "a green apple",
            "picture": {
                "name": "dot.png",
                "data": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==",  # noqa: E501
            },
        },
    },
}


class JobAnswer(Job):
    """A job as it stands, and where to ask again."""

    status: State = Field(description="The same as state.")
    poll_url: str = Field(examples=["/api/jobs/4f1c"])


class JobsAnswer(Model):
    """Jobs: those that wait in their order, then the others, the newest first."""

    jobs: tuple[JobAnswer, ...]
    next: str | None = Field(description="Give it as after for the ones behind these.")


class MoveBody(Model):
    """Where a waiting job is to stand."""

    before: Annotated[str, Field(max_length=80)] | None = Field(
        default=None, description="The job that it goes before; null for the end."
    )


class _Nothing(BaseModel):
    """An empty object."""


def answer_of(job: Job) -> JobAnswer:
    """``job`` as it is answered."""
    shown = shown_job(job)
    values = {name: getattr(shown, name) for name in Job.model_fields}
    return JobAnswer.model_construct(**values, status=job.state, poll_url=f"/api/jobs/{job.id}")


async def read_json(request: Request) -> Any:
    """The body as JSON, read strictly and away from the event loop where it is large."""
    data = await request.body()
    return load_json(data) if len(data) < 1 << 16 else await run_in_threadpool(load_json, data)


def job_router(engine: JobEngine, gallery: Gallery, shelf: Shelf, streams: Streams) -> APIRouter:
    """The routes under ``/api/jobs``."""
    router = APIRouter(prefix="/api/jobs", tags=["jobs"])

    @router.post(
        "",
        status_code=202,
        response_model=JobAnswer,
        responses={
            **documented(408, 409, 413, 415, 429),
            200: {
                "model": JobAnswer,
                "description": "With Prefer: wait, the job at its end, or its first picture.",
                "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
            },
        },
        openapi_extra={
            "parameters": [
                {
                    "name": "Prefer",
                    "in": "header",
                    "schema": {"type": "string", "examples": ["wait", "wait=20"]},
                    "description": "wait, or wait=SECONDS up to 50: answer at the job's end, if it comes.",
                }
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {"$ref": "#/components/schemas/JobRequest"},
                        "examples": EXAMPLES,
                    }
                },
            },
        },
    )
    async def submit(
        request: Request,
        response: Response,
        idempotency_key: Annotated[
            str | None,
            Header(
                min_length=1,
                max_length=255,
                pattern="^[!-~]+$",
                description="A retry with the same key and body returns the same job.",
            ),
        ] = None,
    ) -> Any:
        """Accept a request. When this answers, the job is on disk and outlives a restart.

        With Prefer: wait one request is enough: it is answered with the job at its end, or, where pictures
        are accepted and nothing else before them, with the first picture. 202 says that it takes longer.
        """
        body = await read_json(request)

        def take() -> Job:
            wanted = from_wire(body)
            shelf.check(wanted)
            return engine.submit(wanted, key=idempotency_key)

        job = await run_in_threadpool(take)
        response.headers["Location"] = address = f"/api/jobs/{job.id}"
        if (seconds := _patience(",".join(request.headers.getlist("prefer")))) is None:
            return answer_of(job)
        job = await ended(job, seconds, request)
        if job.state not in TERMINAL:
            return answer_of(job)
        response.status_code = 200
        response.headers["Preference-Applied"] = "wait"
        if not request.headers.get("accept", "").startswith("image/"):
            return answer_of(job)
        if not job.pictures:
            message = "the job ended without a picture; its address says more"
            raise NoPictureError(job.error.message if job.error else message, address)
        picture = job.pictures[0].id
        response.headers["Content-Location"] = f"/api/pictures/{picture}/file"

        def opened() -> Response:
            with there():
                found = gallery.file(picture)
                data = gallery.open(found)
            return Response(data, media_type=found.media_type, headers=dict(response.headers))

        return await run_in_threadpool(opened)

    async def ended(job: Job, seconds: float, request: Request) -> Job:
        """The job at its end, or as it stands after ``seconds``, or once nobody waits for the answer."""

        async def hung_up() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        waiting, gone = asyncio.ensure_future(streams.wait(job.id)), asyncio.ensure_future(hung_up())
        try:
            await asyncio.wait({waiting, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
        except QueueFullError:  # too many wait already
            pass
        finally:
            waiting.cancel()
            gone.cancel()
        return await run_in_threadpool(engine.job, job.id)

    @router.get("", response_model=JobsAnswer, responses=documented())
    def listed(
        state: Annotated[list[State] | None, Query(description="Only jobs in these states.")] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
        after: Annotated[str | None, Query(max_length=80, description="next of the page before.")] = None,
    ) -> JobsAnswer:
        """Jobs that wait, run and have ended."""
        states = frozenset(state) if state else None
        found = engine.jobs(states=states, limit=limit + 1, after=after)
        more = found[limit - 1].id if len(found) > limit else None
        return JobsAnswer.model_construct(jobs=tuple(answer_of(job) for job in found[:limit]), next=more)

    @router.get("/{id}", response_model=JobAnswer, responses=documented())
    def job(id: str) -> JobAnswer:
        """A job as it stands."""
        return answer_of(engine.job(id))

    @router.post("/{id}/cancel", response_model=JobAnswer, responses=documented(415))
    def cancel(id: str, body: _Nothing | None = None) -> JobAnswer:
        """Ask the job to stop; one that has ended stays as it is, and no other job is touched."""
        return answer_of(engine.cancel(id))

    @router.post("/{id}/move", response_model=JobAnswer, responses=documented(415))
    def move(id: str, body: MoveBody) -> JobAnswer:
        """Put a waiting job before another one, or last."""
        return answer_of(engine.move(id, before=body.before))

    @router.get(
        "/{id}/preview",
        response_class=Response,
        responses={**documented(), 200: {"content": {"image/png": {}}, "description": "The newest preview."}},
    )
    def preview(id: str, step: Annotated[str, Query(max_length=20)] = "") -> Response:
        """The newest preview of a running job. ``step`` is not read: it keeps caches apart."""
        data = engine.preview(id)
        if data is None:
            raise NotFoundError("this job has no preview now")
        return Response(data, media_type="image/png", headers={"Cache-Control": "no-store"})

    @router.get(
        "/{id}/events",
        response_class=StreamingResponse,
        responses={
            **documented(429),
            200: {
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
                "description": "Each event has its number as id, its type as event, and a JobEvent as data.",
            },
        },
    )
    async def events(
        id: str,
        last_event_id: Annotated[str | None, Header(max_length=40)] = None,
        after: Annotated[int, Query(ge=0, le=2**53 - 1)] = 0,
    ) -> StreamingResponse:
        """Events of a job until it ends. A stream that broke goes on after Last-Event-ID."""
        seen = int(last_event_id) if last_event_id and re.fullmatch("[0-9]{1,15}", last_event_id) else after
        told = streams.follow(id, after=seen)
        await anext(told, None)  # 404 before the stream begins
        return StreamingResponse(_lines(told), media_type="text/event-stream", headers=SSE_HEADERS)

    return router


def _patience(prefer: str) -> float | None:
    """Seconds that a Prefer header (RFC 7240) asks to wait, None if it does not."""
    found = _WAIT.search(prefer)
    return None if found is None else min(MAX_WAIT, float(found[1] or MAX_WAIT))


async def _lines(told: AsyncIterator[JobEvent | None]) -> AsyncIterator[str]:
    yield "retry: 1000\n\n"
    try:
        async for event in told:
            if event is None:
                yield ": still here\n\n"
                continue
            line = None if event.message is None else public(event.message)
            event = event.model_copy(update={"job": shown_job(event.job), "message": line})
            yield f"id: {event.seq}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
    except InputError:  # the job was forgotten meanwhile
        return
