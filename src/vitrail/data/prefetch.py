"""Batches made ahead of the training, in a thread: the same ones in the same order."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

__all__ = ["prefetched"]

T = TypeVar("T")


def prefetched(batches: Callable[[int], Iterator[T]], depth: int) -> Callable[[int], Iterator[T]]:
    """Prepare up to ``depth`` batches ahead in a background thread; order and content stay the same.

    batches: pictures seen so far -> the batches that follow; made and read in the thread alone, and closed
    there. With a ``depth`` of 0 it is returned as it is. An exception in the thread is raised where its batch
    is asked for, after the batches before it. Closing the iterator ends the thread.
    """
    if depth == 0:
        return batches

    def ahead(images_seen: int) -> Iterator[T]:
        ready: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(maxsize=depth)
        closed = threading.Event()

        def put(item: tuple[T] | BaseException | None) -> bool:
            while not closed.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put(item, timeout=0.1)
                    return True
            return False

        def work() -> None:
            source: Iterator[T] | None = None
            try:
                source = batches(images_seen)
                for batch in source:
                    if not put((batch,)):
                        return
                put(None)
            except BaseException as error:  # handed over: it is raised in the training thread
                put(error)
            finally:
                close = getattr(source, "close", None)
                if close is not None:  # a generator: it ends its own threads and files now
                    close()

        thread = threading.Thread(target=work, name="vitrail-batches", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item[0]
        finally:
            closed.set()
            # It may be in the middle of a slow read; it is a daemon and stops by itself.
            thread.join(timeout=1.0)

    return ahead
