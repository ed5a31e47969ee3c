"""The queue as those see it who ask for work: accept, look, cancel, move."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from vitrail.errors import InputError, QueueFullError, UnknownJobError
from vitrail.files import shown
from vitrail.request_fields import Model
from vitrail.serving.jobs import TERMINAL, Job, JobEvent, State
from vitrail.serving.queue_permits import Permits
from vitrail.serving.queue_requests import Stored, store_request
from vitrail.serving.queue_rows import Row, change, end, event_of, jobs_of, living, tell
from vitrail.serving.queue_tables import EVENTS, INPUTS, JOBS, PREVIEWS
from vitrail.store.database import Database

__all__ = ["QueueStore"]

MAX_KEY = 255
MAX_PAGE = 1000
#: A place between two others is halved until it is this narrow; then all places are dealt out anew.
_NARROW = 1e-5
#: What moves take turns at: each locks the whole queue, beginning with the jobs that it names.
_MOVE_LOCK = 8614252
_WAITS = JOBS.c.state == "queued"
_IN_ORDER = (JOBS.c.place, JOBS.c.n)

_JOB = sa.select(JOBS).where(JOBS.c.id == sa.bindparam("id"))
_JOB_LOCKED, _KNOWN = _JOB.with_for_update(), _JOB.with_only_columns(JOBS.c.id)
_KEYED = sa.select(JOBS).where(JOBS.c.key == sa.bindparam("key"))
_KEPT = (
    sa.select(EVENTS)
    .where(EVENTS.c.job == sa.bindparam("job"), EVENTS.c.seq > sa.bindparam("after"))
    .order_by(EVENTS.c.seq)
)
_NEWEST = sa.select(JOBS.c.id, JOBS.c.seq).where(JOBS.c.id.in_(sa.bindparam("ids", expanding=True)))
_same_lane = JOBS.c.lane == sa.bindparam("lane")
_WAITING = (
    sa.select(
        sa.func.count(), sa.func.count().filter(_same_lane), sa.func.max(JOBS.c.place).filter(_same_lane)
    )
    .select_from(JOBS)
    .where(_WAITS)
)
_ACCEPT, _KEEP = sa.insert(JOBS).returning(JOBS), sa.insert(INPUTS)


class QueueStore:
    """Jobs in ``database``; at most ``limit`` of them wait. For any number of threads and processes.

    ``beside``: workers that are told of every job. On SQLite, while there are no others, one permit that
    waits is enough, should a word be lost; elsewhere as many workers begin as there are permits.
    """

    def __init__(self, database: Database, permits: Permits, limit: int, *, beside: int = 0) -> None:
        self._database = database
        self._permits = permits
        self._limit = limit
        self._beside = beside if database.sqlite else 0

    def submit(self, request: Model, key: str | None) -> Job:
        """As :meth:`vitrail.serving.jobs.JobEngine.submit`."""
        if key is not None and not (0 < len(key) <= MAX_KEY and key.isprintable()):
            raise InputError(f"an idempotency key has 1 to {MAX_KEY} printable characters")
        stored = store_request(request)
        self._permits.prepare()
        try:
            return self._accept(stored, key)
        except exc.IntegrityError:  # the same key came in twice at the same moment
            return self._accept(stored, key)

    def job(self, id: str) -> Job:
        """Return the job; :class:`UnknownJobError` for any other id."""
        with self._database.read() as connection:
            return jobs_of(connection, [_row(connection, id)])[0]

    def check(self, id: str) -> None:
        """Raise :class:`UnknownJobError` for an id that no job has."""
        with self._database.read() as connection:
            _row(connection, id, _KNOWN)

    def jobs(self, states: frozenset[State] | None, limit: int, after: str | None) -> list[Job]:
        """As :meth:`vitrail.serving.jobs.JobEngine.jobs`."""
        if not 1 <= limit <= MAX_PAGE:
            raise InputError(f"limit {shown(limit, 40)} is out of range; allowed 1 to {MAX_PAGE}")
        others = [state for state in sorted(states or ()) if state != "queued"]
        rows: list[Row] = []
        with self._database.read() as connection:
            last = None if after is None else _row(connection, after)
            if (states is None or "queued" in states) and (last is None or last.state == "queued"):
                waiting = sa.select(JOBS).where(_WAITS).order_by(*_IN_ORDER).limit(limit)
                if last is not None:
                    waiting = waiting.where(sa.tuple_(*_IN_ORDER) > (last.place, last.n))
                rows += connection.execute(waiting).all()
            if len(rows) < limit and (states is None or others):
                rest = sa.select(JOBS).order_by(JOBS.c.n.desc()).limit(limit - len(rows))
                rest = rest.where(JOBS.c.state != "queued" if states is None else JOBS.c.state.in_(others))
                if last is not None and last.state != "queued":
                    rest = rest.where(JOBS.c.n < last.n)
                rows += connection.execute(rest).all()
            return jobs_of(connection, rows)

    def fresh(self, id: str, after: int) -> tuple[list[JobEvent], bool]:
        """Return the job's events above ``after``, in order, and whether no more will come."""
        with self._database.read() as connection:
            row = _row(connection, id)
            ended = row.state in TERMINAL
            if row.seq <= after:
                return [], ended
            job = jobs_of(connection, [row])[0]
            kept = connection.execute(_KEPT, {"job": id, "after": after})
            events = [event_of(found, job) for found in kept]
        if row.state == "running":
            if row.progress_seq > after:
                events.append(JobEvent(seq=row.progress_seq, type="progress", job=job))
            if row.preview_seq > after:
                events.append(JobEvent(seq=row.preview_seq, type="preview", job=job, picture=id))
        return sorted(events, key=lambda event: event.seq), ended

    def newest(self, ids: Collection[str]) -> dict[str, int]:
        """The number of the newest event of each job."""
        with self._database.read() as connection:
            return {id: seq for id, seq in connection.execute(_NEWEST, {"ids": list(ids)})}

    def preview(self, id: str) -> bytes | None:
        """The newest preview of a job as a PNG."""
        with self._database.read() as connection:
            _row(connection, id, _KNOWN)
            data = connection.execute(sa.select(PREVIEWS.c.data).where(PREVIEWS.c.job == id)).scalar()
        return None if data is None else bytes(data)

    def cancel(self, id: str) -> Job:
        """As :meth:`vitrail.serving.jobs.JobEngine.cancel`; whoever runs the job sees the mark."""
        with self._database.write() as connection:
            row = _row(connection, id, _JOB_LOCKED)
            if row.state == "queued":
                end(connection, id, self._database.now(connection), {"state": "cancelled"})
            elif row.state == "running":
                connection.execute(sa.update(JOBS).where(JOBS.c.id == id).values(cancel=True))
        return self.job(id)

    def move(self, id: str, before: str | None) -> Job:
        """As :meth:`vitrail.serving.jobs.JobEngine.move`."""
        with self._database.write() as connection:
            self._database.take_turns(connection, _MOVE_LOCK)
            moved = _waiting_row(connection, id)
            if before == id:
                raise InputError("a job cannot stand before itself; name another one")
            now = self._database.now(connection)
            if before is None:
                place = _behind(_waiting(connection, moved.lane)[2], now)
            else:
                target = _waiting_row(connection, before)
                if target.lane != moved.lane:
                    raise InputError("pictures and long works wait in queues of their own; name one of those")
                place = _place_before(connection, target, id)
            change(connection, id, "state", now, {"place": place}, {"state": "queued"})
        return self.job(id)

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state, those that ended too; read from an index alone."""
        states = sa.select(JOBS.c.state, sa.func.count()).group_by(JOBS.c.state)
        with self._database.read() as connection:
            return {state: count for state, count in connection.execute(states)}

    def workers(self) -> int:
        """How many workers live."""
        with self._database.read() as connection:
            now = self._database.now(connection)
            return living(connection, now)

    def _accept(self, stored: Stored, key: str | None) -> Job:
        with self._database.write() as connection:
            if key is not None:
                found = connection.execute(_KEYED, {"key": key}).one_or_none()
                if found is not None:
                    if found.digest != stored.digest:
                        raise InputError(
                            "this idempotency key was used for another request; use a fresh key for each"
                        )
                    return jobs_of(connection, [found])[0]
            waiting, position, last = _waiting(connection, stored.lane)
            if waiting >= self._limit:
                raise QueueFullError(
                    f"{waiting} jobs wait already, and {self._limit} are allowed; try again later"
                )
            id, now = secrets.token_hex(12), self._database.now(connection)
            job = {
                "id": id,
                "key": key,
                "digest": stored.digest,
                "kind": stored.kind,
                "lane": stored.lane,
                "title": stored.title,
                "request": stored.text,
                "batch": stored.batch,
                "state": "queued",
                "place": _behind(last, now),
                "created": now,
                "waiting": now,
                "seq": 1,
            }
            row = connection.execute(_ACCEPT, job).one()
            for sha256, data in stored.files.items():
                connection.execute(_KEEP, {"job": id, "sha256": sha256, "data": data})
            woken = self._beside and living(connection, now) <= self._beside
            if not (woken and self._permits.waits(connection, stored.lane)):
                self._permits.add(connection, id, stored.lane)
            return tell(connection, row, "state", now, position=position).job


def _row(connection: sa.Connection, id: str, asked: sa.Select[Any] = _JOB) -> Row:
    row = connection.execute(asked, {"id": str(id)[:80]}).one_or_none()
    if row is None:
        raise UnknownJobError("there is no such job; it may have been forgotten")
    return row


def _waiting_row(connection: sa.Connection, id: str) -> Row:
    row = _row(connection, id, _JOB_LOCKED)
    if row.state != "queued":
        raise InputError(f"this job is {row.state}; only jobs that wait can be moved, or moved before")
    return row


def _waiting(connection: sa.Connection, lane: str) -> tuple[int, int, float | None]:
    """How many jobs wait in all, how many in a lane, and the place of the last of these."""
    row = connection.execute(_WAITING, {"lane": lane}).one()
    return int(row[0]), int(row[1]), row[2]


def _behind(last: float | None, now: float) -> float:
    """A place behind the last one. Places are times, so that the last one is seldom asked for in vain."""
    return now if last is None else max(now, last + 0.001)


def _place_before(connection: sa.Connection, target: Row, moved: str) -> float:
    queue = (
        sa.select(JOBS.c.id, JOBS.c.place)
        .where(_WAITS, JOBS.c.lane == target.lane, JOBS.c.id != moved)
        .order_by(*_IN_ORDER)
    )
    order = [(str(id), float(place)) for id, place in connection.execute(queue.with_for_update())]
    index = next(i for i, (id, _) in enumerate(order) if id == target.id)
    if index == 0:
        return order[0][1] - 1.0
    if order[index][1] - order[index - 1][1] < _NARROW:
        # A second apart, and none later than it was: whoever comes next must still stand behind them.
        last = order[-1][1]
        order = [(id, last - (len(order) - 1 - i)) for i, (id, _) in enumerate(order)]
        for id, place in order:
            connection.execute(sa.update(JOBS).where(JOBS.c.id == id).values(place=place))
    return (order[index - 1][1] + order[index][1]) / 2
