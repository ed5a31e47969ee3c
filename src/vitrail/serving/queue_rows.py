"""Rows of the queue's tables as jobs and events, and the one way to change a job: by an event."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from vitrail.serving.jobs import Job, JobError, JobEvent, JobPicture
from vitrail.serving.queue_tables import EVENTS, INPUTS, JOBS, PICTURES, PREVIEWS

__all__ = ["Change", "change", "end", "event_of", "has_files", "job_of", "jobs_of", "tell"]

Row = sa.Row[Any]


class Change(NamedTuple):
    """A job as a change left it, and its row; ``seq``: of the event that tells the change."""

    job: Job
    seq: int
    row: Row


def _waiting_before(connection: sa.Connection, row: Row) -> int | None:
    """How many jobs of its lane are taken before this one; None if it does not wait."""
    if row.state != "queued":
        return None
    earlier = sa.or_(JOBS.c.place < row.place, sa.and_(JOBS.c.place == row.place, JOBS.c.n < row.n))
    return int(
        connection.execute(
            sa.select(sa.func.count())
            .select_from(JOBS)
            .where(JOBS.c.state == "queued", JOBS.c.lane == row.lane, earlier)
        ).scalar_one()
    )


def jobs_of(connection: sa.Connection, rows: Sequence[Row]) -> list[Job]:
    """The jobs of ``rows``, with their pictures and places in the queue, in the same order."""
    pictures: dict[str, list[JobPicture]] = {}
    made = sa.select(PICTURES).where(PICTURES.c.job.in_([row.id for row in rows])).order_by(PICTURES.c.number)
    for picture in connection.execute(made):
        pictures.setdefault(picture.job, []).append(_picture(picture))
    positions: dict[str, int] = {}
    if any(row.state == "queued" for row in rows):
        before: dict[str, int] = {}
        queue = (
            sa.select(JOBS.c.id, JOBS.c.lane).where(JOBS.c.state == "queued").order_by(JOBS.c.place, JOBS.c.n)
        )
        for id, lane in connection.execute(queue):
            positions[id] = before.get(lane, 0)
            before[lane] = positions[id] + 1
    return [job_of(row, pictures.get(row.id, []), positions.get(row.id)) for row in rows]


def job_of(row: Row, pictures: Sequence[JobPicture], position: int | None) -> Job:
    """The job of one row."""
    return Job(
        id=row.id,
        kind=row.kind,
        state=row.state,
        title=row.title,
        request=json.loads(row.request),
        created=_time(row.created),
        started=None if row.started is None else _time(row.started),
        ended=None if row.ended is None else _time(row.ended),
        position=position,
        step=row.step,
        steps=row.steps,
        eta=row.eta if row.state == "running" else None,
        attempts=row.attempts,
        pictures=tuple(pictures),
        hints=tuple(json.loads(row.hints)),
        error=None if row.code is None else JobError(code=row.code, message=row.message or ""),
    )


_CHANGES = ("state", "started", "ended", "position", "step", "steps", "eta", "attempts", "hints", "error")


def event_of(row: Row, job: Job) -> JobEvent:
    """The event of a row of the events' table; ``job`` is the job as it stands now."""
    then = json.loads(row.job_then)
    made = then.pop("pictures")
    known = {name: getattr(job, name) for name in ("id", "kind", "title", "request", "created")}
    return JobEvent(
        seq=row.seq,
        type=row.type,
        job=Job.model_validate({**known, **then, "pictures": job.pictures[:made]}),
        picture=row.picture,
        message=row.message,
    )


def change(
    connection: sa.Connection,
    id: str,
    type: str,
    at: float,
    values: dict[str, Any],
    *conditions: sa.ColumnElement[bool],
    pictures: Sequence[JobPicture] | None = None,
    picture: str | None = None,
    message: str | None = None,
) -> Change | None:
    """Change a job and tell it in an event; None, and nothing done, where ``conditions`` do not hold.

    ``pictures``: those it has, where they are known.
    """
    row = connection.execute(
        sa.update(JOBS)
        .where(JOBS.c.id == id, *conditions)
        .values(**values, seq=JOBS.c.seq + 1)
        .returning(JOBS)
    ).one_or_none()
    if row is None:
        return None
    if pictures is None:
        made = sa.select(PICTURES).where(PICTURES.c.job == id).order_by(PICTURES.c.number)
        pictures = [_picture(found) for found in connection.execute(made)]
    return tell(connection, row, type, at, pictures=pictures, picture=picture, message=message)


def tell(
    connection: sa.Connection,
    row: Row,
    type: str,
    at: float,
    *,
    pictures: Sequence[JobPicture] = (),
    picture: str | None = None,
    message: str | None = None,
    position: int | None = None,
) -> Change:
    """Write down the event that brought a job to ``row``; ``position``: in the queue, where it is known."""
    if position is None:
        position = _waiting_before(connection, row)
    job = job_of(row, pictures, position)
    then = job.model_dump(mode="json", include=set(_CHANGES)) | {"pictures": len(pictures)}
    event = {
        "job": row.id,
        "seq": row.seq,
        "type": type,
        "at": at,
        "job_then": json.dumps(then, separators=(",", ":"), ensure_ascii=False),
        "picture": picture,
        "message": message,
    }
    connection.execute(sa.insert(EVENTS), event)
    return Change(job, row.seq, row)


def end(
    connection: sa.Connection,
    id: str,
    at: float,
    values: dict[str, Any],
    *conditions: sa.ColumnElement[bool],
    pictures: Sequence[JobPicture] | None = None,
) -> Change | None:
    """Bring a job to its end, as :func:`change` does, and drop what only its work needed."""
    values = {"ended": at, "worker": None, "eta": None, **values}
    ended = change(connection, id, "state", at, values, *conditions, pictures=pictures)
    if ended is not None and has_files(ended.row):
        connection.execute(sa.delete(INPUTS).where(INPUTS.c.job == id))
    if ended is not None and ended.row.preview_seq:
        connection.execute(sa.delete(PREVIEWS).where(PREVIEWS.c.job == id))
    return ended


def has_files(row: Row) -> bool:
    """Whether files may have come with a job's request; not with those that may be drawn together."""
    return row.batch is None


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _picture(row: Row) -> JobPicture:
    return JobPicture(id=row.id, index=row.number, width=row.width, height=row.height, seed=row.seed)
