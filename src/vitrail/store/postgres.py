"""Connections to a PostgreSQL server over a network that may be cut, also without a word to anybody.

A line that a firewall or a pulled cable cuts says nothing: whoever waits for an answer would wait for hours.
So each side asks whether the other one is there, and a statement that gets no answer in
:data:`ANSWER_SECONDS` ends its connection, as if the server had.
"""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event

if TYPE_CHECKING:
    import psycopg

__all__ = ["ANSWER_SECONDS", "away", "connect", "patient"]

CONNECT_SECONDS = 5
"""How long a server may take to answer at first."""

ANSWER_SECONDS = 15.0
"""How long it may take to answer a statement."""

_LOCK_SECONDS = 12
#: A machine that is cut off in the middle of a transaction must not keep its locks from the others: the
#: server ends a session that does nothing for ten seconds inside one, and notices that its client is gone.
_SESSION = {
    "idle_in_transaction_session_timeout": 10_000,
    "lock_timeout": _LOCK_SECONDS * 1000,
    "tcp_keepalives_idle": 10,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 3,
}
_LIMITS: dict[str, Any] = {
    "connect_timeout": CONNECT_SECONDS,
    "options": " ".join(f"-c {name}={value}" for name, value in _SESSION.items()),
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": int(1000 * ANSWER_SECONDS),
}


def connect(address: sa.URL, *, size: int, more: int) -> sa.Engine:
    """Connections to ``address``, up to ``size`` kept and ``more`` besides; ImportError without psycopg."""
    engine = sa.create_engine(
        address, connect_args=_LIMITS, pool_pre_ping=True, pool_size=size, max_overflow=more
    )
    bounded = _bounded()

    @event.listens_for(engine, "do_connect")
    def _connect(dialect: sa.Dialect, record: Any, arguments: Any, settings: Any) -> Any:
        return bounded.connect(*arguments, **settings)

    return engine


def patient(connection: sa.Connection, seconds: float) -> None:
    """Let statements of this connection take so long from now on."""
    driver: Any = connection.connection.driver_connection
    driver.answer_seconds = seconds


def away(error: BaseException) -> bool:
    """Whether what the driver raised says that the server is away: it has answered nothing, or farewell."""
    import psycopg

    if not isinstance(error, psycopg.OperationalError):
        return False
    return error.sqlstate is None or error.sqlstate.startswith(("08", "57P"))


@cache
def _bounded() -> type[psycopg.Connection[Any]]:
    """The class of a connection that does not wait for an answer for ever."""
    import psycopg

    class Bounded(psycopg.Connection[Any]):
        answer_seconds = ANSWER_SECONDS

        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            limit = self.answer_seconds if timeout is None else timeout
            until = time.monotonic() + limit
            try:
                return super().wait(gen, interval, limit)
            except psycopg.OperationalError as error:
                if time.monotonic() < until or timeout is not None:
                    raise
                self.pgconn.finish()  # what it might answer later is the answer to nothing any more
                raise psycopg.OperationalError(f"no answer for {limit:.0f} s") from error

    return Bounded
