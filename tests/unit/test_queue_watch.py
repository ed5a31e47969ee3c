"""Who follows a job hears of it at once from a worker beside it, and by looking from all others."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from typing import cast

from vitrail.serving.queue_store import QueueStore
from vitrail.serving.queue_watch import Watch


class Rows:
    """The newest events as a database would tell them."""

    def __init__(self) -> None:
        self.newest_of: dict[str, int] = {}
        self.asked = 0

    def newest(self, ids: Collection[str]) -> dict[str, int]:
        self.asked += 1
        return {id: self.newest_of[id] for id in ids if id in self.newest_of}


def watch_of(rows: Rows, seconds: float) -> Watch:
    return Watch(cast(QueueStore, rows), seconds)


def test_what_a_worker_tells_is_heard_before_the_next_look() -> None:
    watch = watch_of(Rows(), 60.0)
    with watch.following("a"):
        threading.Timer(0.1, watch.told, ("a", 4)).start()
        began = time.monotonic()
        assert watch.wait("a", 3, 30.0)
        assert time.monotonic() - began < 20.0
        assert not watch.wait("a", 4, 0.05)
    watch.close()


def test_others_are_not_told() -> None:
    watch = watch_of(Rows(), 60.0)
    with watch.following("a"), watch.following("b"):
        watch.told("b", 9)
        watch.told("nobody follows this", 9)
        assert not watch.wait("a", 0, 0.05)
        assert watch.wait("b", 8, 0.05)
    watch.close()


def test_what_nobody_tells_is_found_by_looking() -> None:
    rows = Rows()
    watch = watch_of(rows, 0.02)
    with watch.following("a"):
        threading.Timer(0.1, rows.newest_of.__setitem__, ("a", 2)).start()
        assert watch.wait("a", 1, 30.0)
    asked = rows.asked
    time.sleep(0.2)
    assert rows.asked <= asked + 1  # nobody follows: nobody looks
    watch.close()


def test_a_second_who_follows_does_not_end_with_the_first() -> None:
    watch = watch_of(Rows(), 60.0)
    with watch.following("a"):
        with watch.following("a"):
            pass
        watch.told("a", 1)
        assert watch.wait("a", 0, 0.05)
    watch.close()


def test_a_close_lets_everybody_go() -> None:
    watch = watch_of(Rows(), 60.0)
    with watch.following("a"):
        threading.Timer(0.1, watch.close).start()
        began = time.monotonic()
        assert not watch.wait("a", 0, 30.0)
        assert time.monotonic() - began < 20.0
