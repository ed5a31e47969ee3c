"""Connections that cost a server something and ask for nothing: bounded in number and in time.

This lies below :mod:`vitrail.serving.http_guard`, which sees a request once its head is whole. A stranger may
open connections and never finish a head, or ask for a stream and never read it; each holds a file descriptor,
and a server without one left answers nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Lines", "room_for_lines"]

_WANTED = 16384
_OWN = 256
"""Descriptors that are kept for the database, files and pipes."""


class Lines(H11Protocol):
    """A connection. One that brings no whole head in ``head_seconds`` ends, and one whose client reads
    nothing of what it is sent for ``read_seconds``. ``most``: connections at a time; one more takes the place
    of the oldest that nobody asks anything on.
    """

    head_seconds = 30.0
    read_seconds = 60.0
    most = 4096

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look after a new connection."""
        self._reading: asyncio.TimerHandle | None = None
        self._seen: object = None
        self._heads = asyncio.get_running_loop().call_later(self.head_seconds, self._look)
        super().connection_made(transport)
        self._since = self.loop.time()
        if len(self.connections) > self.most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._heads.cancel()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        super().pause_writing()
        if self._reading is None:
            self._reading = self.loop.call_later(self.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read something."""
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        super().resume_writing()

    def _make_room(self) -> None:
        open = [
            line for line in self.connections if isinstance(line, Lines) and not line.transport.is_closing()
        ]
        idle = [line for line in open if line._idle()]
        if len(open) > self.most and idle:
            min(idle, key=lambda line: line._since).transport.abort()

    def _idle(self) -> bool:
        cycle: Any = self.cycle
        return cycle is None or cycle.response_complete

    def _look(self) -> None:
        if self._idle() and self.cycle is self._seen:  # nothing was asked since the last look
            self.transport.abort()
            return
        self._seen = self.cycle
        self._heads = self.loop.call_later(self.head_seconds, self._look)


def room_for_lines() -> int:
    """Let this process open many files; returns how many connections it may have."""
    if sys.platform == "win32":
        return 512
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = _WANTED if hard == unlimited else min(_WANTED, hard)
    if soft != unlimited and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return Lines.most if soft == unlimited else max(64, min(Lines.most, soft - _OWN))
