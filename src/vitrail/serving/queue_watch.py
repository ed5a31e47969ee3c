"""Tells those who follow jobs when something has happened, each of them about its own job alone.

A worker beside this process tells what it changes (:meth:`Watch.told`). What others change in the same
database is found by looking: one question for all jobs that somebody follows.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from vitrail.errors import StorageError
from vitrail.serving.queue_store import QueueStore

__all__ = ["Watch"]


class Watch:
    """Looks every ``seconds`` at the jobs that somebody follows, in a thread that lives no longer."""

    def __init__(self, store: QueueStore, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._lock = threading.Lock()
        self._followed: dict[str, _Followed] = {}
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    @contextlib.contextmanager
    def following(self, id: str) -> Iterator[None]:
        """In the block, :meth:`wait` may be asked about the job."""
        with self._lock:
            followed = self._followed.setdefault(id, _Followed(self._lock))
            followed.count += 1
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._look, name="vitrail-watch", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                followed.count -= 1
                if not followed.count:
                    del self._followed[id]

    def wait(self, id: str, after: int, timeout: float | None) -> bool:
        """Wait until the job has an event above ``after``; False after ``timeout``, or when all is closed."""
        with self._lock:
            followed = self._followed[id]
            followed.changed.wait_for(lambda: self._closed.is_set() or followed.newest > after, timeout)
            return not self._closed.is_set() and followed.newest > after

    def told(self, id: str, seq: int) -> None:
        """The job has an event of this number: nobody needs to wait for the next look."""
        with self._lock:
            followed = self._followed.get(id)
            if followed is not None and seq > followed.newest:
                followed.newest = seq
                followed.changed.notify_all()

    def close(self) -> None:
        """Let everybody who waits go."""
        self._closed.set()
        with self._lock:
            thread = self._thread
            for followed in self._followed.values():
                followed.changed.notify_all()
        if thread is not None:
            thread.join(5)

    def _look(self) -> None:
        while not self._closed.wait(self._seconds):  # who begins to follow a job looks at it first
            with self._lock:
                if self._closed.is_set() or not self._followed:
                    self._thread = None
                    return
                ids = list(self._followed)
            with contextlib.suppress(StorageError):  # the next look may find it well
                for id, seq in self._store.newest(ids).items():
                    self.told(id, seq)


class _Followed:
    """A job that ``count`` iterators follow; ``newest``: the number of the newest event that is known."""

    def __init__(self, lock: threading.Lock) -> None:
        self.count = 0
        self.newest = 0
        self.changed = threading.Condition(lock)
