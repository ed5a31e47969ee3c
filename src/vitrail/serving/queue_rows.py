"""Rows of the queue's tables as jobs and events, and the one way to change a job: by an event.

Statements that run for every picture are built once, here and in the queue's other modules: SQLAlchemy takes
five times as long to build one as to run it, on cores that the picture is drawn with.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from vitrail.serving.jobs import Job, JobError, JobEvent, JobPicture
from vitrail.serving.queue_tables import EVENTS, INPUTS, JOBS, PICTURES, PREVIEWS, WORKERS

__all__ = [
    *("Change", "Row", "alike", "as_parameters"),
    *("change", "end", "event_of", "has_files", "job_of", "jobs_of", "living", "tell"),
]

Row = sa.Row[Any]

_WAITS = JOBS.c.state == "queued"
_place, _n = sa.bindparam("place", type_=JOBS.c.place.type), sa.bindparam("n", type_=JOBS.c.n.type)
_BEFORE = (
    sa.select(sa.func.count())
    .select_from(JOBS)
    .where(_WAITS, JOBS.c.lane == sa.bindparam("lane"))
    .where(sa.or_(JOBS.c.place < _place, sa.and_(JOBS.c.place == _place, JOBS.c.n < _n)))
)
_MADE = (
    sa.select(PICTURES)
    .where(PICTURES.c.job.in_(sa.bindparam("jobs", expanding=True)))
    .order_by(PICTURES.c.number)
)
_QUEUE = sa.select(JOBS.c.id, JOBS.c.lane).where(_WAITS).order_by(JOBS.c.place, JOBS.c.n)
_TELL = sa.insert(EVENTS)
_LIVING = sa.select(sa.func.count()).select_from(WORKERS).where(WORKERS.c.until > sa.bindparam("now"))


class Change(NamedTuple):
    """A job as a change left it, and its row; ``seq``: of the event that tells the change."""

    job: Job
    seq: int
    row: Row


def _waiting_before(connection: sa.Connection, row: Row) -> int | None:
    """How many jobs of its lane are taken before this one; None if it does not wait."""
    if row.state != "queued":
        return None
    stands = {"lane": row.lane, "place": row.place, "n": row.n}
    return int(connection.execute(_BEFORE, stands).scalar_one())


def jobs_of(connection: sa.Connection, rows: Sequence[Row]) -> list[Job]:
    """The jobs of ``rows``, with their pictures and places in the queue, in the same order."""
    pictures: dict[str, list[JobPicture]] = {}
    for picture in connection.execute(_MADE, {"jobs": [row.id for row in rows]}):
        pictures.setdefault(picture.job, []).append(_picture(picture))
    positions: dict[str, int] = {}
    if any(row.state == "queued" for row in rows):
        before: dict[str, int] = {}
        for id, lane in connection.execute(_QUEUE):
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


def alike(names: Iterable[str]) -> list[sa.ColumnElement[bool]]:
    """Conditions that a job's columns of these ``names`` are what the parameters say; see
    :func:`as_parameters`.
    """
    return [JOBS.c[name] == sa.bindparam(f"is_{name}") for name in names]


def as_parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of :func:`alike`."""
    return {f"is_{name}": value for name, value in values.items()}


@functools.cache
def _change(values: tuple[tuple[str, sa.Column[Any] | None], ...], where: tuple[str, ...]) -> Any:
    """Sets columns, each to another one or else to its parameter ``new_...``, where :func:`alike`."""
    new = {
        name: sa.bindparam(f"new_{name}", type_=JOBS.c[name].type) if other is None else other
        for name, other in values
    }
    return sa.update(JOBS).where(*alike(where)).values(**new, seq=JOBS.c.seq + 1).returning(JOBS)


def change(
    connection: sa.Connection,
    id: str,
    type: str,
    at: float,
    values: Mapping[str, Any],
    where: Mapping[str, Any] | None = None,
    *,
    pictures: Sequence[JobPicture] | None = None,
    picture: str | None = None,
    message: str | None = None,
) -> Change | None:
    """Change a job and tell it in an event; None, and nothing done, unless it is as ``where`` says.

    ``values``: of columns; one of :data:`JOBS`' columns stands for what that one holds. ``pictures``: those
    it has, where they are known.
    """
    others = {name: value for name, value in values.items() if isinstance(value, sa.Column)}
    held = {"id": id, **(where or {})}
    statement = _change(tuple((name, others.get(name)) for name in values), tuple(held))
    new = {f"new_{name}": value for name, value in values.items() if name not in others}
    row = connection.execute(statement, new | as_parameters(held)).one_or_none()
    if row is None:
        return None
    if pictures is None:
        pictures = [_picture(found) for found in connection.execute(_MADE, {"jobs": [id]})]
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
    connection.execute(_TELL, event)
    return Change(job, row.seq, row)


def end(
    connection: sa.Connection,
    id: str,
    at: float,
    values: Mapping[str, Any],
    where: Mapping[str, Any] | None = None,
    *,
    pictures: Sequence[JobPicture] | None = None,
) -> Change | None:
    """Bring a job to its end, as :func:`change` does, and drop what only its work needed."""
    values = {"ended": at, "worker": None, "eta": None, **values}
    ended = change(connection, id, "state", at, values, where, pictures=pictures)
    if ended is not None and has_files(ended.row):
        connection.execute(sa.delete(INPUTS).where(INPUTS.c.job == id))
    if ended is not None and ended.row.preview_seq:
        connection.execute(sa.delete(PREVIEWS).where(PREVIEWS.c.job == id))
    return ended


def living(connection: sa.Connection, now: float) -> int:
    """How many workers live, wherever they are."""
    return int(connection.execute(_LIVING, {"now": now}).scalar_one())


def has_files(row: Row) -> bool:
    """Whether files may have come with a job's request; not with those that may be drawn together."""
    return row.batch is None


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _picture(row: Row) -> JobPicture:
    return JobPicture(id=row.id, index=row.number, width=row.width, height=row.height, seed=row.seed)
