"""The queue's tables: jobs, what happened to them, what they made, and who works.

They lie in the same database as DBOS's own and the gallery's, so that a job and its permit
(:mod:`vitrail.serving.queue_permits`) are committed together or not at all. Times are seconds since 1970 by
:meth:`vitrail.store.database.Database.now`, the one clock that every process shares.
"""

from __future__ import annotations

import sqlalchemy as sa

__all__ = ["EVENTS", "INPUTS", "JOBS", "PICTURES", "PREVIEWS", "TABLES", "WORKERS"]

TABLES = sa.MetaData()

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TIME = sa.Double

JOBS = sa.Table(
    "jobs",
    TABLES,
    sa.Column("n", _BIG, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("key", sa.Text, unique=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("lane", sa.Text, nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("batch", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("place", sa.Double, nullable=False),
    sa.Column("alone", sa.Boolean, nullable=False, default=False),
    sa.Column("cancel", sa.Boolean, nullable=False, default=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("kills", sa.Integer, nullable=False, default=0),
    sa.Column("worker", sa.Text),
    sa.Column("created", _TIME, nullable=False),
    sa.Column("waiting", _TIME, nullable=False),
    sa.Column("started", _TIME),
    sa.Column("ended", _TIME),
    sa.Column("step", sa.Integer, nullable=False, default=0),
    sa.Column("steps", sa.Integer, nullable=False, default=0),
    sa.Column("eta", sa.Double),
    sa.Column("hints", sa.Text, nullable=False, default="[]"),
    sa.Column("code", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("seq", sa.Integer, nullable=False, default=0),
    sa.Column("progress_seq", sa.Integer, nullable=False, default=0),
    sa.Column("preview_seq", sa.Integer, nullable=False, default=0),
    sa.Index("jobs_waiting", "state", "lane", "place", "n"),
    sa.Index("jobs_worker", "worker", "state"),
    sqlite_autoincrement=True,
)
"""One row a job.

``n`` counts jobs as they came; those that wait are taken by ``place``, then ``n``. ``digest`` is the
request's, to tell a retry from another request under the same ``key``. ``lane``: pictures or long, which do
not wait for each other. Jobs of equal ``batch`` may be run in one pass, except those that must be ``alone``
because a worker died on them. ``attempts`` counts those who took it up and fences off late writers; ``kills``
the ones whose working process died of it. ``waiting``: since when it waits. ``seq`` is the newest event's
number; progress and previews are no rows of their own but numbers here, so that a long job costs no more
than a short one.
"""

INPUTS = sa.Table(
    "job_inputs",
    TABLES,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("sha256", sa.Text, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)
"""The files that a job works on, until it ends."""

EVENTS = sa.Table(
    "job_events",
    TABLES,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("at", _TIME, nullable=False),
    sa.Column("job_then", sa.Text, nullable=False),
    sa.Column("picture", sa.Text),
    sa.Column("message", sa.Text),
)
"""What must not be missed: states, pictures, lines of a log. ``job_then``: what had changed of the job."""

PICTURES = sa.Table(
    "job_pictures",
    TABLES,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
)

PREVIEWS = sa.Table(
    "job_previews",
    TABLES,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)
"""The newest preview of a job that runs."""

WORKERS = sa.Table(
    "workers",
    TABLES,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("machine", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("birth", sa.Text, nullable=False),
    sa.Column("until", _TIME, nullable=False),
)
"""Who takes jobs. One that has not said so again before ``until`` is taken for dead, and its jobs for lost.
``machine`` and ``birth`` tell a process from a later one of the same number.
"""
