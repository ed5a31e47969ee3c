"""Permits: a durable DBOS workflow for each job, which allows a worker to take the next one.

The order of jobs, their batches and their quarantine are in tables of our own (docs/architecture.md says
why); that somebody takes them up, whatever dies in between, is what DBOS is for. A permit is enqueued in the
very transaction that accepts the job, unless one that waits will do. A worker that gets it takes whatever job
is next, not the one it came with: all permits are alike, so jobs may be moved and taken together without
touching them. One that finds nothing to do is over at once.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import exc

from vitrail.errors import MissingExtraError, StorageError
from vitrail.files import shown
from vitrail.serving.queue_requests import Lane
from vitrail.store.database import Database

if TYPE_CHECKING:
    from dbos import DBOSClient, DBOSConfig

__all__ = ["Permits", "pace", "serve_permits", "set_pace", "stop_permits"]

_WORKFLOW = "vitrail.take"
_QUEUES: dict[Lane, str] = {"pictures": "vitrail-pictures", "long": "vitrail-long"}
#: Workers of any version take any permit: which work a version can do is said by the request itself.
_VERSION = "vitrail"
_POLL = 0.05
#: Where every worker is woken for every job, permits are for what went wrong, and can wait. In a file, for
#: others seldom put jobs into it; what they put there is found within 4 s (queue_worker.OVERDUE).
_POLL_WOKEN, _POLL_FILE = 1.0, 5.0
#: DBOS's own table: its client asks over a connection of its own, and takes ten times as long. The last
#: condition says nothing new; SQLite needs it to use the index of those that are queued.
_ENQUEUED = sa.text(
    "SELECT 1 FROM workflow_status WHERE queue_name = :queue AND status = 'ENQUEUED'"
    " AND status IN ('ENQUEUED', 'PENDING') LIMIT 1"
)
_KEEP = timedelta(minutes=10)


class Permits:
    """What the accepting side does with permits; for any number of threads.

    ``later``: leave DBOS, which takes a quarter of a second to import, to :meth:`prepare`.
    """

    def __init__(self, database: Database, *, later: bool = False) -> None:
        self._database = database
        self._preparing = threading.Lock()
        self._made: DBOSClient | None = None
        if not later:
            self.prepare()
        elif importlib.util.find_spec("dbos") is None:
            raise MissingExtraError("dbos", "server")

    def prepare(self) -> None:
        """Make sure that permits can be added; not from inside a transaction, for it may make tables.

        Raises :class:`~vitrail.errors.StorageError` where the database refuses them.
        """
        with self._preparing:
            if self._made is not None:
                return
            dbos = _dbos()
            url = address(self._database)
            try:
                dbos.DBOS.migrate(url)
            except exc.DBAPIError as error:
                raise _refused(self._database, error) from error
            self._made = dbos.DBOSClient(
                system_database_url=url,
                system_database_engine=self._database.lend(2),
                serializer=dbos.DBOSPortableJSONSerializer(),
                system_database_pool_size=2,
                lazy=True,
                retry_connection_errors=False,
            )

    @property
    def _client(self) -> DBOSClient:
        assert self._made is not None, "prepare() comes first"
        return self._made

    def waits(self, connection: sa.Connection, lane: Lane) -> bool:
        """Whether a permit of the lane waits, and will until the caller's transaction has ended; SQLite only,
        where writers take turns. Whoever takes it later sees what the caller has written.
        """
        return connection.execute(_ENQUEUED, {"queue": _QUEUES[lane]}).one_or_none() is not None

    def add(self, connection: sa.Connection, name: str, lane: Lane) -> None:
        """Enqueue a permit in the caller's transaction; a ``name`` that was used before adds none."""
        self._client.enqueue_in_transaction(
            connection,
            {
                "workflow_name": _WORKFLOW,
                "queue_name": _QUEUES[lane],
                "workflow_id": name,
                "app_version": _VERSION,
            },
            lane,
        )

    def tidy(self, living: Collection[str]) -> None:
        """Forget permits that were used up some time ago, or died with a worker that is not ``living``."""
        before = (datetime.now(UTC) - _KEEP).isoformat()
        ended = ["SUCCESS", "ERROR", "CANCELLED"]
        old = self._client.list_workflows(name=_WORKFLOW, end_time=before, status=ended, limit=1000)
        held = self._client.list_workflows(name=_WORKFLOW, end_time=before, status="PENDING", limit=1000)
        names = [workflow.workflow_id for workflow in old]
        names += [workflow.workflow_id for workflow in held if workflow.executor_id not in living]
        if names:
            self._client.delete_workflows(names)

    def close(self) -> None:
        """Close the connections."""
        if self._made is not None:
            self._made.destroy()


def serve_permits(database: Database, worker: str, take: Callable[[Lane], None]) -> None:
    """Let this process (one worker, called ``worker``) take permits: ``take`` is called for each.

    At most one call at a time runs for each lane. DBOS is one a process; :func:`stop_permits` ends it.
    """
    dbos = _dbos()
    logging.getLogger("dbos").setLevel(logging.CRITICAL)
    config: DBOSConfig = {
        "name": "vitrail",
        "system_database_url": address(database),
        "system_database_engine": database.lend(3),
        "sys_db_pool_size": 3,
        "log_level": "CRITICAL",
        "application_version": _VERSION,
        "executor_id": worker,
        "serializer": dbos.DBOSPortableJSONSerializer(),
        "use_listen_notify": False,
        "scheduler_polling_interval_sec": 3600.0,
        # We wait for no notification, but for the end of the thread that looks for them when we stop.
        "notification_listener_polling_interval_sec": 0.5 if database.sqlite else 2.0,
    }
    dbos.DBOS(config=config)

    def run(lane: str) -> None:
        take("long" if lane == "long" else "pictures")

    dbos.DBOS.workflow(name=_WORKFLOW)(run)
    dbos.DBOS.listen_queues(list(_QUEUES.values()))
    try:
        dbos.DBOS.launch()
        for queue in _QUEUES.values():
            dbos.DBOS.register_queue(
                queue, worker_concurrency=1, polling_interval_sec=_POLL, on_conflict="never_update"
            )
    except exc.DBAPIError as error:
        raise _refused(database, error) from error


def pace(workers: int, *, woken: bool = False, file: bool = False) -> float:
    """Seconds between two looks of one worker, in a fleet of so many: so that the database is asked at most
    500 times a second, and seldom where all of them are ``woken`` for every job. ``file``: it is SQLite's.
    """
    least = (_POLL_FILE if file else _POLL_WOKEN) if woken else _POLL
    return max(least, workers * len(_QUEUES) / 500)


def set_pace(wanted: float) -> None:
    """Let every worker look for permits every ``wanted`` seconds."""
    for name in _QUEUES.values():
        queue = _dbos().DBOS.retrieve_queue(name)
        if queue is not None and abs(queue.polling_interval_sec - wanted) > wanted / 4:
            queue.set_polling_interval_sec(wanted)


def stop_permits() -> None:
    """Take no more permits, and close what DBOS holds open."""
    _dbos().DBOS.destroy(workflow_completion_timeout_sec=5)


def address(database: Database) -> str:
    """The database's address as DBOS reads it."""
    url = database.url if database.sqlite else database.url.set(drivername="postgresql")
    return url.render_as_string(hide_password=False)


def _refused(database: Database, error: exc.DBAPIError) -> StorageError:
    return StorageError(f"the database {database.shown} refused DBOS's tables: {shown(error.orig or error)}")


def _dbos() -> Any:
    try:
        import dbos
    except ImportError as error:
        raise MissingExtraError("dbos", "server") from error
    return dbos
