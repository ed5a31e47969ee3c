"""A database that several threads, processes and machines write to: SQLite in a file, or PostgreSQL.

SQLite runs with a write-ahead log, so that readers never wait for a writer, and every writing transaction
takes the write lock when it begins: one that reads first and asks for the lock later fails with "database is
locked" whatever the timeout, because what it has read is old by then (https://sqlite.org/wal.html, "Sometimes
queries return SQLITE_BUSY"). On PostgreSQL rows are locked by the statements themselves.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from vitrail.errors import InputError, MissingExtraError, StorageError, UnreachableError
from vitrail.files import ensure_folder, shown
from vitrail.store import postgres

__all__ = ["Database"]

BUSY_SECONDS = 30.0
"""How long a writer waits for another one before it gives up."""

_ATTEMPTS = 8

_SLOW = 2.0
"""A refusal that took so many seconds says that the server is silent, not that it is down."""

_CREATE_SECONDS = 600.0
"""How long tables may be made, or waited for while another process makes them."""


_CREATE_LOCK = 8614251


class Database:
    """Connections to one database, made when they are needed; for any number of threads.

    Parameters
    ----------
    url: ``postgresql://user:password@host/name``, ``sqlite:///path`` or None for the file ``default``.

    Raises :class:`InputError` for another kind of address, :class:`StorageError` where it cannot be reached.
    """

    def __init__(self, url: str | None, default: Path) -> None:
        address = _address(url, default)
        self.url = address
        self.sqlite = address.get_backend_name() == "sqlite"
        self.shown = (
            shown(address.database or "") if self.sqlite else address.render_as_string(hide_password=True)
        )
        if self.sqlite:
            ensure_folder(Path(str(address.database)).parent)
        # SQLite lets one writer in and has the others sleep and ask again, so that an unlucky thread among
        # many may wait for ever; threads of one process take turns here instead.
        self._turn: contextlib.AbstractContextManager[object] = (
            threading.Lock() if self.sqlite else contextlib.nullcontext()
        )
        self._engine = self._connect(address, durable=True)
        self._live = self._connect(address, durable=False)
        self._lent: list[sa.Engine] = []
        self._silent = ""
        self._asking = threading.Lock()

    def create(self, tables: sa.MetaData, *statements: str) -> None:
        """Make the tables that are not there yet, then run ``statements``."""
        with self._errors(), self._engine.begin() as connection:
            if not self.sqlite:
                postgres.patient(connection, _CREATE_SECONDS)
                # Two processes that start together would both find no table and both make it.
                self.take_turns(connection, _CREATE_LOCK)
            tables.create_all(connection)
            for statement in statements:
                connection.execute(sa.text(statement))
            if not self.sqlite:
                postgres.patient(connection, postgres.ANSWER_SECONDS)

    @contextlib.contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sa.Connection]:
        """A transaction that may write; committed at the end of the block, rolled back if it raises.

        With ``durable`` False the commit does not wait for the disk: a crash of the machine (not of the
        process) may undo it. For what is soon written again, such as progress.
        """
        engine = self._engine if durable else self._live
        writing = engine.execution_options(vitrail_write=True)
        with self._errors(), self._turn, writing.connect() as connection, connection.begin():
            if not durable and not self.sqlite:
                connection.execute(sa.text("SET LOCAL synchronous_commit = off"))
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads; on SQLite it sees the database as it stood when it began."""
        with self._errors(), self._engine.connect() as connection, connection.begin():
            yield connection

    def take_turns(self, connection: sa.Connection, lock: int) -> None:
        """Wait for who else took turns at this lock until the end of its transaction. For one that locks rows
        as it finds them, where another one would find them in another order and each wait for the other.
        """
        if not self.sqlite:  # its writers always do
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})

    @staticmethod
    def refused(error: StorageError) -> bool:
        """Whether it was a database that raised the error: it may be back soon, with all that was in it."""
        return isinstance(error, UnreachableError) or isinstance(error.__cause__, exc.SQLAlchemyError)

    def now(self, connection: sa.Connection) -> float:
        """Seconds since 1970 by the one clock that every process shares: the server's, where there is one."""
        if self.sqlite:
            return time.time()
        return float(connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    def check(self) -> str | None:
        """Return what is wrong with the database's file, None if nothing is (PostgreSQL checks itself)."""
        if not self.sqlite:
            return None
        with self.read() as connection:
            found = [str(row[0]) for row in connection.execute(sa.text("PRAGMA integrity_check"))]
        return None if found == ["ok"] else "; ".join(found[:5])

    def lend(self, size: int) -> sa.Engine | None:
        """Up to ``size`` connections for a library that keeps tables of its own here, bounded as ours are;
        None on SQLite, where it opens the file itself.
        """
        if self.sqlite:
            return None
        self._lent.append(postgres.connect(self.url, size=size, more=0))
        return self._lent[-1]

    def close(self) -> None:
        """Close every connection."""
        for engine in (self._engine, self._live, *self._lent):
            engine.dispose()

    def _connect(self, address: sa.URL, *, durable: bool) -> sa.Engine:
        try:
            if not self.sqlite:
                return postgres.connect(address, size=5, more=45)
            engine = sa.create_engine(
                address,
                connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
                pool_size=8,
                max_overflow=56,
            )
        except ImportError as error:
            raise MissingExtraError("psycopg", "server") from error

        @event.listens_for(engine, "connect")
        def _prepare(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # transactions begin where "begin" below says so
            cursor = connection.cursor()
            _patiently(cursor, "PRAGMA journal_mode = WAL")
            # FULL waits for the disk at every commit, NORMAL only now and then; either way the file is whole.
            cursor.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            cursor.execute("PRAGMA foreign_keys = ON")
            cursor.close()

        @event.listens_for(engine, "begin")
        def _begin(connection: sa.Connection) -> None:
            write = connection.get_execution_options().get("vitrail_write", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

        return engine

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """What the database refuses as a :class:`StorageError` line; broken constraints stay themselves.

        While a server is silent, one at a time finds out whether it is back, and the others do not wait.
        """
        asks = bool(self._silent)
        if asks and not self._asking.acquire(blocking=False):
            raise UnreachableError(self._silent)
        began = time.monotonic()
        try:
            yield
            self._silent = ""
        except (exc.IntegrityError, exc.ProgrammingError):
            raise  # for the caller to answer; and mistakes of our own
        except (exc.DatabaseError, exc.InterfaceError, exc.TimeoutError) as error:
            orig = getattr(error, "orig", None) or error
            cause = str(orig).splitlines()[0] if str(orig) else "no answer"
            if self.sqlite or not postgres.away(orig):
                line = f"the database {self.shown} refused: {shown(cause)}; {_advice(cause)}"
                raise StorageError(line) from error
            line = f"the database {self.shown} is away: {shown(cause)}; see whether its server is there"
            self._silent = line if time.monotonic() - began > _SLOW else ""
            raise UnreachableError(line) from error
        finally:
            if asks:
                self._asking.release()


def _advice(cause: str) -> str:
    """What to do when SQLite says ``cause``."""
    if "full" in cause:
        return "free some space"
    if "I/O" in cause:  # so it says, too, where there is no room for the file beside the file
        return "free some space, or see whether its disk is whole"
    if "readonly" in cause or "unable to open" in cause:
        return "let this user write the file and its folder, or choose another folder"
    if "malformed" in cause or "not a database" in cause:
        return "put a copy back, or move it away and run: vitrail gallery repair"
    return "see whether its disk or server is there"


def _patiently(cursor: Any, statement: str) -> None:
    """Run a statement that SQLite refuses at once while another process opens the same new file."""
    import sqlite3

    for attempt in range(_ATTEMPTS):
        try:
            cursor.execute(statement)
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.05 * 2**attempt)


def _address(url: str | None, default: Path) -> sa.URL:
    if url is None:
        return sa.URL.create("sqlite", database=str(default))
    try:
        address = sa.make_url(url)
    except (exc.ArgumentError, ValueError):
        raise InputError("the database address cannot be read; write postgresql://user@host/name") from None
    if address.get_backend_name() in ("postgresql", "postgres"):
        return address.set(drivername="postgresql+psycopg")
    if address.get_backend_name() == "sqlite" and address.database not in (None, "", ":memory:"):
        return address.set(drivername="sqlite")
    raise InputError(
        f"databases of kind {shown(address.get_backend_name(), 40)} are not supported; "
        "use postgresql://user@host/name, or leave it out for a file"
    )
