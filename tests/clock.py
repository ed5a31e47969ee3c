"""Limits of time that a busy machine does not turn red."""

from __future__ import annotations

import time
from collections.abc import Callable


def quickest(call: Callable[[], object], limit: float, tries: int = 3) -> float:
    """Processor seconds of ``call`` on this thread; the least of ``tries`` where it takes ``limit`` or more.

    A first import, a collection of garbage or a neighbour who empties the caches makes one call slow,
    whatever it reads. What is slow by itself is slow every time.
    """
    best = float("inf")
    for _ in range(tries):
        started = time.thread_time()
        call()
        best = min(best, time.thread_time() - started)
        if best < limit:
            break
    return best
