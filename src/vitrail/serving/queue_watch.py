"""Tells those who follow jobs when something has happened: one question to the database for all of them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from vitrail.errors import StorageError
from vitrail.serving.queue_store import QueueStore

__all__ = ["Watch"]


class Watch:
    """Looks every ``seconds`` at the jobs that somebody follows, in a thread that lives no longer."""

    def __init__(self, store: QueueStore, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._changed = threading.Condition()
        self._followers: dict[str, int] = {}
        self._newest: dict[str, int] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextlib.contextmanager
    def following(self, id: str) -> Iterator[None]:
        """In the block, :meth:`wait` may be asked about the job."""
        with self._changed:
            self._followers[id] = self._followers.get(id, 0) + 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="vitrail-watch", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._followers[id] -= 1
                if not self._followers[id]:
                    del self._followers[id]
                    self._newest.pop(id, None)

    def wait(self, id: str, after: int, timeout: float | None) -> bool:
        """Wait until the job has an event above ``after``; False after ``timeout``, or when all is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._newest.get(id, 0) > after, timeout)
            return not self._closed and self._newest.get(id, 0) > after

    def told(self, id: str, seq: int) -> None:
        """This very process has changed the job: nobody needs to wait for the next look."""
        with self._changed:
            if id in self._followers:
                self._newest[id] = max(seq, self._newest.get(id, 0))
                self._changed.notify_all()

    def close(self) -> None:
        """Let everybody who waits go."""
        with self._changed:
            self._closed = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None:
            thread.join(5)

    def _look(self) -> None:
        while True:
            with self._changed:
                if self._closed or not self._followers:
                    self._thread = None
                    return
                ids = list(self._followers)
            with contextlib.suppress(StorageError):  # the next look may find it well
                newest = self._store.newest(ids)
                with self._changed:
                    if any(newest[id] > self._newest.get(id, 0) for id in newest):
                        self._newest.update((id, newest[id]) for id in newest if id in self._followers)
                        self._changed.notify_all()
            time.sleep(self._seconds)
