"""Events of jobs for those who wait: from the engine's blocking iterators to the server's event loop.

A stream has a thread of its own, so that hundreds of waiting clients take none of the threads that answer
everybody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from vitrail.errors import QueueFullError, StorageError
from vitrail.serving.http_errors import public
from vitrail.serving.jobs import TERMINAL, Job, JobEngine, JobEvent

__all__ = ["Streams", "shown_job"]

MAX_STREAMS = 512
_PATIENCE = 4.0  # seconds after which a thread looks whether anybody still listens
_AHEAD = 64  # events that wait for a listener


def shown_job(job: Job) -> Job:
    """The job as strangers may see it: no folders in what went wrong."""
    if job.error is None:
        return job
    error = job.error.model_copy(update={"message": public(job.error.message)})
    return job.model_copy(update={"error": error})


@dataclass
class Streams:
    """Streams of ``engine``'s events; at most ``most`` at a time."""

    engine: JobEngine
    most: int = MAX_STREAMS
    open: int = 0
    _closed: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        """End every stream, as a server does that stops."""
        self._closed.set()

    async def follow(self, id: str, *, after: int = 0) -> AsyncGenerator[JobEvent | None, None]:
        """Yield the job's events with ``seq`` above ``after`` until it ends.

        None comes first, once it is sure that there is such a job, and every few seconds between. Raises
        :class:`QueueFullError` where too many listen already, and what the engine raises.
        """
        if self.open >= self.most:
            raise QueueFullError(f"{self.most} clients wait for events already; ask again later")
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[JobEvent | BaseException | bool | None] = asyncio.Queue()
        stop = threading.Event()

        def tell(item: JobEvent | BaseException | bool | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(told.put_nowait, item)

        def pump() -> None:
            last, over, known = after, False, False
            try:
                while not (stop.is_set() or self._closed.is_set()):
                    began = time.monotonic()
                    try:
                        events = self.engine.events(id, after=last, timeout=_PATIENCE)
                        known = True
                        tell(None)
                        for event in events:
                            last = max(last, event.seq)
                            tell(event)
                            while told.qsize() > _AHEAD and not stop.wait(0.1):
                                pass  # it reads slowly, or not at all; the events are kept elsewhere
                            if stop.is_set():
                                return
                            over = over or event.job.state in TERMINAL
                        if over:
                            break
                        if time.monotonic() - began < _PATIENCE / 2:  # an engine that is about to close
                            self._closed.wait(0.1)
                        over = self.engine.job(id).state in TERMINAL  # what it told last is asked once more
                    except StorageError:  # the database is away: whoever listens already waits with us
                        if not known:
                            raise
                        tell(None)
                        self._closed.wait(1.0)
                tell(True)
            except BaseException as error:  # handed to whoever listens
                tell(error)

        self.open += 1
        try:
            threading.Thread(target=pump, name="vitrail-stream", daemon=True).start()
            while True:
                item = await told.get()
                if isinstance(item, BaseException):
                    raise item
                if item is True:
                    return
                assert not isinstance(item, bool)
                yield item
        finally:
            self.open -= 1
            stop.set()

    async def wait(self, id: str) -> Job:
        """Wait until the job has ended and return it."""
        async with contextlib.aclosing(self.follow(id)) as told:
            async for event in told:
                if event is not None and event.job.state in TERMINAL:
                    return event.job
        return await asyncio.to_thread(self.engine.job, id)  # the server stops, or it ended without a word
