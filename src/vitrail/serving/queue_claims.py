"""The queue as those see it who work: claim, tell, finish, give back; and take back what the dead held.

A claim names the worker and the number of the attempt. Every word about a job holds only while both are still
the job's: a worker that was cut off for long, and whose job another one has taken up, changes nothing.

Of all that is said about a job only its end waits for the disk. What a crash of the machine undoes before it
(a claim, a picture told) is done again with the same outcome, and the commit of the end keeps all of it.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa

from vitrail.errors import VitrailError
from vitrail.serving.jobs import JobPicture
from vitrail.serving.processes import Identity, alive
from vitrail.serving.queue_permits import Permits
from vitrail.serving.queue_requests import Lane
from vitrail.serving.queue_rows import Change, Row, alike, as_parameters, change, end, has_files, living
from vitrail.serving.queue_tables import INPUTS, JOBS, PREVIEWS, WORKERS
from vitrail.store.database import Database
from vitrail.store.gallery import Picture

__all__ = ["LEASE", "MAX_KILLS", "Claim", "Claims", "Ending", "LostClaimError", "take_back_lost"]

LEASE = 15.0
"""Seconds without a sign of life after which a worker is taken for dead."""

_FAR = 120.0
"""Seconds: no lease lasts so long, unless the clock was set back after it was given."""

_JUMP = 2.0
"""Seconds by which a clock differs from what has passed since it was last read, if somebody has set it."""

MAX_KILLS = 3
"""Workers that a job may kill before it is given up."""


Ending = Literal["succeeded", "failed", "cancelled"]


_NOTE = sa.text(
    "INSERT INTO job_pictures (job, number, id, width, height, seed)"
    " VALUES (:job, :number, :id, :width, :height, :seed) ON CONFLICT (job, number) DO UPDATE"
    " SET id = excluded.id, width = excluded.width, height = excluded.height, seed = excluded.seed"
)
"""Notes a picture. It may be noted already: before a crash, or by a commit whose answer was lost. As text,
since SQLAlchemy has this for one kind of database at a time, and loads 45 ms for PostgreSQL's.
"""

_NEXT = (
    sa.select(JOBS)
    .where(JOBS.c.state == "queued", JOBS.c.lane == sa.bindparam("lane"))
    .order_by(JOBS.c.place, JOBS.c.n)
    .limit(sa.bindparam("most", type_=sa.Integer))
    .with_for_update(skip_locked=True)
)
_TOGETHER = JOBS.c.batch == sa.bindparam("batch")
_WITH_IT = _NEXT.where(_TOGETHER, ~JOBS.c.alone, JOBS.c.id != sa.bindparam("first"))
_AS_MANY = sa.select(sa.func.count()).select_from(JOBS).where(JOBS.c.state == "queued", _TOGETHER)
_FILES = sa.select(INPUTS.c.sha256, INPUTS.c.data).where(INPUTS.c.job == sa.bindparam("job"))
_WANTED = sa.select(JOBS.c.id, JOBS.c.attempts, JOBS.c.worker, JOBS.c.state, JOBS.c.cancel).where(
    JOBS.c.id.in_(sa.bindparam("ids", expanding=True))
)


@functools.cache
def _held(where: tuple[str, ...]) -> sa.Select[Any]:
    """The row of a job that is as the parameters say (:func:`alike`), locked."""
    return sa.select(JOBS).where(*alike(where)).with_for_update()


@functools.cache
def _newer(what: Literal["progress_seq", "preview_seq"], where: tuple[str, ...]) -> Any:
    """Gives a job that is as the parameters say the newest ``what``."""
    values: dict[str, Any] = {what: JOBS.c.seq + 1, "seq": JOBS.c.seq + 1}
    if what == "progress_seq":
        values |= {name: sa.bindparam(f"new_{name}") for name in ("step", "steps", "eta")}
    return sa.update(JOBS).where(*alike(where)).values(values).returning(JOBS.c.cancel, JOBS.c.seq)


class LostClaimError(VitrailError):
    """The job is another worker's by now, or nobody's."""


@dataclass(frozen=True)
class Claim:
    """A job that a worker has taken up."""

    id: str
    attempt: int
    lane: Lane
    request: str
    files: dict[str, bytes] = field(repr=False)


def _to_nobody(id: str, seq: int) -> None:
    """Tell nobody."""


class Claims:
    """What worker ``worker`` does in the queue; for any number of threads.

    ``tell`` hears (job, number of its newest event) after each change, so that who waits for it need not ask.
    """

    def __init__(
        self,
        database: Database,
        permits: Permits,
        worker: Identity,
        lease: float = LEASE,
        tell: Callable[[str, int], None] = _to_nobody,
    ) -> None:
        self._tell = tell
        self._database = database
        self._permits = permits
        self._worker = worker
        self._lease = lease
        self._ahead: float | None = None
        self._jumped = float("-inf")

    def beat(self) -> int:
        """Say that this worker lives; returns how many do."""
        me = self._worker
        with self._database.write(durable=False) as connection:
            now = self._database.now(connection)
            ahead = now - time.monotonic()
            if self._ahead is not None and abs(ahead - self._ahead) > _JUMP:
                self._jumped = time.monotonic()
            self._ahead = ahead
            changed = connection.execute(
                sa.update(WORKERS).where(WORKERS.c.id == me.name).values(until=now + self._lease)
            )
            if not changed.rowcount:
                connection.execute(
                    sa.insert(WORKERS).values(
                        id=me.name, machine=me.machine, pid=me.pid, birth=me.birth, until=now + self._lease
                    )
                )
            return living(connection, now)

    def take_back_lost(self) -> int:
        """As :func:`take_back_lost`. A clock that was set, or a machine that slept, makes leases lapse that
        their workers had no time to renew: until they had, only processes that are gone are taken for dead.
        """
        steady = time.monotonic() - self._jumped > self._lease
        return take_back_lost(self._database, self._permits, leases=steady)

    def leave(self) -> None:
        """Say that this worker takes no more jobs."""
        with self._database.write() as connection:
            connection.execute(sa.delete(WORKERS).where(WORKERS.c.id == self._worker.name))

    def living(self) -> set[str]:
        """The names of all workers that live."""
        with self._database.read() as connection:
            now = self._database.now(connection)
            found = connection.execute(sa.select(WORKERS.c.id).where(WORKERS.c.until > now))
            return {str(name) for (name,) in found}

    def claim(self, lane: Lane, most: int, *, together: bool = False) -> list[Claim]:
        """Take up the next job, and up to ``most`` in all that may be run in one pass with it.

        No more than make ``most`` pictures, however many the first one makes. So many are taken only if they
        are more than the workers: while others are idle, each takes its share. ``together``: none if the next
        one is to run without others.
        """
        with self._database.write(durable=False) as connection:
            first = connection.execute(_NEXT, {"lane": lane, "most": 1}).one_or_none()
            if first is None:
                return []
            rows = [first]
            single = first.batch is None or first.alone
            if together and single:
                return []
            if not single and most > 1:
                share = self._share(connection, first.batch, most) - 1
                if share > 0:
                    about = {"lane": lane, "most": share, "batch": first.batch, "first": first.id}
                    others = connection.execute(_WITH_IT, about).all()
                    rows = _so_many_pictures([first, *others], most)
            now = self._database.now(connection)
            claims = [self._take(connection, row, now) for row in rows]
        for row in rows:
            self._tell(row.id, row.seq + 1)
        return claims

    def progress(self, claim: Claim, step: int, steps: int, eta: float | None) -> bool:
        """Tell how far the work is; False if it should stop."""
        with self._database.write(durable=False) as connection:
            mine = self._mine(claim)
            new = {"new_step": step, "new_steps": steps, "new_eta": eta}
            told = _newer("progress_seq", tuple(mine))
            row = connection.execute(told, new | as_parameters(mine)).one_or_none()
        if row is None:
            return False
        self._tell(claim.id, row.seq)
        return not row.cancel

    def preview(self, claim: Claim, data: bytes) -> None:
        """Show how the work stands; ``data`` is a PNG."""
        with self._database.write(durable=False) as connection:
            mine = self._mine(claim)
            row = connection.execute(_newer("preview_seq", tuple(mine)), as_parameters(mine)).one_or_none()
            if row is not None:
                connection.execute(sa.delete(PREVIEWS).where(PREVIEWS.c.job == claim.id))
                connection.execute(sa.insert(PREVIEWS).values(job=claim.id, data=data))
        if row is not None:
            self._tell(claim.id, row.seq)

    def log(self, claim: Claim, line: str) -> None:
        """Tell a line of a long work's progress."""
        with self._database.write(durable=False) as connection:
            now = self._database.now(connection)
            told = change(connection, claim.id, "log", now, {}, self._mine(claim), message=line[:2000])
        self.changed(told)

    def finish(
        self,
        claim: Claim,
        state: Ending,
        *,
        hints: Sequence[str] = (),
        code: str | None = None,
        message: str | None = None,
    ) -> None:
        """Bring the job to its end; ``code`` and ``message`` say why it failed."""
        with self._database.write() as connection:
            ended = self.end(connection, claim, state, hints=hints, code=code, message=message)
        self.changed(ended)

    def end(
        self,
        connection: sa.Connection,
        claim: Claim,
        state: Ending,
        *,
        hints: Sequence[str] = (),
        code: str | None = None,
        message: str | None = None,
        pictures: Sequence[JobPicture] | None = None,
    ) -> Change | None:
        """As :meth:`finish` in the caller's transaction, who then calls :meth:`changed`.

        ``pictures``: those of the job, where they are known.
        """
        values: dict[str, Any] = {"state": state, "hints": json.dumps(list(hints))}
        values |= {"code": code, "message": message}
        if state == "succeeded":
            values["step"] = JOBS.c.steps
        now = self._database.now(connection)
        return end(connection, claim.id, now, values, self._mine(claim), pictures=pictures)

    def picture(self, connection: sa.Connection, claim: Claim, index: int, picture: Picture) -> Change | None:
        """Note a picture in the transaction that keeps it, and which :meth:`hold` began; then call
        :meth:`changed`.
        """
        shown = {name: getattr(picture, name) for name in ("id", "width", "height", "seed")}
        connection.execute(_NOTE, {"job": claim.id, "number": index, **shown})
        now = self._database.now(connection)
        return change(connection, claim.id, "picture", now, {}, self._mine(claim), picture=picture.id)

    def changed(self, change: Change | None) -> None:
        """Tell a change that has been committed."""
        if change is not None:
            self._tell(change.job.id, change.seq)

    def give_back(self, claim: Claim, killed: str | None = None) -> None:
        """Let another one begin the job again, or give it up: ``killed`` says what its worker died of."""
        with self._database.write() as connection:
            row = self._held(connection, claim)
            if row is not None:
                now = self._database.now(connection)
                _wait_again(connection, self._permits, row, now, killed)

    def give_back_all(self, lane: Lane) -> None:
        """Let all jobs of a lane wait again that this worker holds: of a claim that was cut off in its commit
        it does not know. Only for one that has none in hand.
        """
        held = sa.select(JOBS).where(
            JOBS.c.state == "running", JOBS.c.worker == self._worker.name, JOBS.c.lane == lane
        )
        held = held.order_by(JOBS.c.place.desc(), JOBS.c.n.desc())  # each to the head of the queue
        with self._database.write() as connection:
            now = self._database.now(connection)
            for row in connection.execute(held.with_for_update()).all():
                _wait_again(connection, self._permits, row, now, None)

    def hold(self, connection: sa.Connection, claim: Claim) -> None:
        """See in the caller's transaction that the job is this worker's, and keep it so until its end.

        Raises :class:`LostClaimError`: the worker was cut off for too long.
        """
        if self._held(connection, claim) is None:
            raise LostClaimError("the job was taken back meanwhile")

    def unwanted(self, claims: Sequence[Claim]) -> set[str]:
        """Ids of those claims whose work should stop: cancelled, or no longer this worker's."""
        if not claims:
            return set()
        ids = [claim.id for claim in claims]
        with self._database.read() as connection:
            rows = {row.id: row for row in connection.execute(_WANTED, {"ids": ids})}
        mine = (self._worker.name, "running", False)
        return {
            claim.id
            for claim in claims
            if (row := rows.get(claim.id)) is None
            or (row.worker, row.state, row.cancel) != mine
            or row.attempts != claim.attempt
        }

    def overdue(self, lane: Lane, seconds: float) -> bool:
        """Whether a job has waited for so long; then its permit may have been used up while it was held."""
        with self._database.read() as connection:
            before = self._database.now(connection) - seconds
            late = sa.select(JOBS.c.id).where(JOBS.c.state == "queued", JOBS.c.lane == lane)
            return connection.execute(late.where(JOBS.c.waiting < before).limit(1)).one_or_none() is not None

    def renew_permit(self, lane: Lane, name: str | None = None) -> None:
        """Enqueue one more permit; without a ``name`` one every five seconds at most, whoever asks for it."""
        with self._database.write() as connection:
            now = self._database.now(connection)
            self._permits.add(connection, f"{lane}-{name or int(now // 5)}", lane)

    def _held(self, connection: sa.Connection, claim: Claim) -> Row | None:
        mine = self._mine(claim)
        return connection.execute(_held(tuple(mine)), as_parameters(mine)).one_or_none()

    def _mine(self, claim: Claim) -> Mapping[str, Any]:
        """What the columns of a job say that this worker holds."""
        mine = {"state": "running", "worker": self._worker.name, "attempts": claim.attempt}
        return {"id": claim.id, **mine}

    def _share(self, connection: sa.Connection, batch: str, most: int) -> int:
        count = connection.execute(_AS_MANY, {"batch": batch}).scalar_one()
        if count < 2:
            return 1
        workers = living(connection, self._database.now(connection))
        return min(most, -(-int(count) // max(1, workers)))

    def _take(self, connection: sa.Connection, row: Row, now: float) -> Claim:
        values = {
            "state": "running",
            "worker": self._worker.name,
            "attempts": row.attempts + 1,
            "started": now if row.started is None else row.started,
            "step": 0,
            "steps": 0,
            "eta": None,
        }
        change(connection, row.id, "state", now, values, pictures=None if row.attempts else ())
        files: dict[str, bytes] = {}
        if has_files(row):
            files = {sha256: bytes(data) for sha256, data in connection.execute(_FILES, {"job": row.id})}
        return Claim(row.id, row.attempts + 1, row.lane, row.request, files)


def _so_many_pictures(rows: Sequence[Row], most: int) -> list[Row]:
    """The first one of ``rows``, and those after it with which it makes up to ``most`` pictures."""
    left = most
    for count, row in enumerate(rows):
        left -= int(json.loads(row.request).get("n", 1))
        if left < 0 and count:
            return list(rows[:count])
    return list(rows)


def take_back_lost(database: Database, permits: Permits, *, leases: bool = True) -> int:
    """Let all jobs wait again that a worker held which is no more; returns how many there were.

    ``leases``: whether one that has not said in time that it lives is taken for dead.
    """

    def lapsed(until: float) -> bool:
        return leases and not now < until <= now + _FAR

    with database.read() as connection:
        workers = connection.execute(sa.select(WORKERS)).all()
        now = database.now(connection)
        running = connection.execute(sa.select(JOBS.c.worker).where(JOBS.c.state == "running")).all()
    dead = [row.id for row in workers if lapsed(row.until) or not alive(row.machine, row.pid, row.birth)]
    living = {row.id for row in workers} - set(dead)
    if not dead and all(worker in living for (worker,) in running):
        return 0
    with database.write() as connection:
        # Asked again under the lock: a worker may have said in between that it lives after all.
        now = database.now(connection)
        late = sa.or_(WORKERS.c.until <= now, WORKERS.c.until > now + _FAR, WORKERS.c.machine == _machine())
        gone = sa.and_(WORKERS.c.id.in_(dead), late)
        connection.execute(sa.delete(WORKERS).where(gone))
        lost = sa.select(JOBS).where(JOBS.c.state == "running", ~JOBS.c.worker.in_(sa.select(WORKERS.c.id)))
        # Each comes back to the head of the queue, so the last first.
        lost = lost.order_by(JOBS.c.place.desc(), JOBS.c.n.desc())
        rows = connection.execute(lost.with_for_update(skip_locked=True)).all()
        for row in rows:
            _wait_again(connection, permits, row, now, None)
    return len(rows)


def _machine() -> str:
    return Identity.mine("").machine


def _wait_again(
    connection: sa.Connection, permits: Permits, row: Row, now: float, killed: str | None
) -> None:
    kills = row.kills + (killed is not None)
    if row.cancel:
        end(connection, row.id, now, {"state": "cancelled"})
    elif kills >= MAX_KILLS:
        message = f"{kills} workers died while they worked on this job ({killed}); it is not tried again"
        end(
            connection,
            row.id,
            now,
            {"state": "failed", "kills": kills, "code": "WorkerLost", "message": message},
        )
    else:
        waits = (JOBS.c.state == "queued", JOBS.c.lane == row.lane)
        first = connection.execute(sa.select(sa.func.min(JOBS.c.place)).where(*waits)).scalar()
        values = {
            "state": "queued",
            "place": row.place if first is None else first - 1.0,  # it has waited already
            "worker": None,
            "waiting": now,
            "kills": kills,
            "alone": row.alone or killed is not None,
            "step": 0,
            "steps": 0,
            "eta": None,
        }
        change(connection, row.id, "state", now, values)
        permits.add(connection, f"{row.id}-{row.attempts}", row.lane)
