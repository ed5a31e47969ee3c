"""Cores that other programs want too: how threads that compute wait for each other.

The threads of a layer meet thousands of times a picture. GNU's OpenMP, which torch computes with on Linux,
lets one that is early spin: quickest while every thread has a core, and ruinous where one of them lost its
core to another program, for the others then burn theirs in waiting for it. It spins briefly once it manages
more threads than there are cores (``gomp_throttled_spin_count_var`` in libgomp's ``config/linux/wait.h``). So
while cores are wanted elsewhere we give it a team of threads that sleep, and take it away again later.

Measured with the shipped model on two cores: .50 s a picture alone; beside one busy program 2.0 to 3.3 s
spinning, 1.0 s with the team. Always with the team it would be .86 s alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import time
from collections import deque
from collections.abc import Iterator

__all__ = ["can_share", "sharing"]

_TASKS = "/proc/self/task"
_LOOK = 0.05
"""Seconds between two looks at what the threads had to wait for a core."""
_CROWDED, _LOOKS = 0.4, 4
"""Cores' worth of waiting, the mean of so many looks: .01 to .2 alone, .5 to 1.2 beside a busy program."""
_AGAIN, _AGAIN_AT_MOST = 1.0, 8.0
"""Seconds until it is tried whether the cores are free again; doubled each time they are not."""


def can_share() -> bool:
    """Tell whether this system says how long a thread waited for a core (Linux, most kernels)."""
    return os.path.exists("/proc/self/schedstat")


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """While this lasts, threads that compute leave their cores to whoever else wants them.

    It changes no result. Without effect where OpenMP is not GNU's, where it has one thread, and where the
    system cannot tell (:func:`can_share`).
    """
    watch = _watch(os.getpid())
    if watch is None:
        yield
        return
    with watch.busy():
        yield


@functools.cache
def _watch(_process: int) -> _Watch | None:
    """The one of this process; a fork has threads of its own, and so it has another."""
    if not can_share():
        return None
    try:
        openmp = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)  # the one that torch loaded
    except OSError:
        return None
    threads = openmp.omp_get_max_threads()
    return _Watch(openmp, threads) if threads > 1 else None


class _Watch:
    """Looks, while something is computed, at what its threads wait for; :meth:`busy` says when."""

    def __init__(self, openmp: ctypes.CDLL, threads: int) -> None:
        self._openmp = openmp
        self._sleepers = max(2, len(os.sched_getaffinity(0)) - threads + 2)
        self._count = 0
        self._lock = threading.Lock()
        self._computing = threading.Event()
        self._team: threading.Event | None = None
        threading.Thread(target=self._run, name="vitrail-cores", daemon=True).start()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Something is computed."""
        with self._lock:
            self._count += 1
            self._computing.set()
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1
                if not self._count:
                    self._computing.clear()

    def _run(self) -> None:
        waits, mind = _Waits(), Mind()
        while True:
            self._computing.wait()
            waits.fresh()
            began = time.monotonic()
            time.sleep(_LOOK)
            now = time.monotonic()
            self._give_way(mind(waits.fresh() / (now - began), now))

    def _give_way(self, wanted: bool) -> None:
        if wanted and self._team is None:
            self._team = threading.Event()
            threading.Thread(target=self._sleep, args=(self._team,), daemon=True).start()
        elif not wanted and self._team is not None:
            self._team.set()
            self._team = None

    def _sleep(self, ended: threading.Event) -> None:
        """Hold a team: it begins with one pass over nothing (``free(NULL)``) and goes with this thread."""
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
        self._openmp.GOMP_parallel(nothing, None, self._sleepers, 0)
        ended.wait()


class Mind:
    """Decides whether to give way, from how many cores' worth of threads waited."""

    def __init__(self) -> None:
        self._looks: deque[float] = deque(maxlen=_LOOKS)
        self._giving = False
        self._since = self._until = float("-inf")
        self._pause = _AGAIN

    def __call__(self, waiting: float, now: float) -> bool:
        """Take a look's result, at ``now`` (seconds of a steady clock); True while it is to give way."""
        if self._giving:
            # Threads that sleep and wake wait for cores even where nobody else wants them: only a try tells.
            if now >= self._until:
                self._giving, self._since = False, now
                self._looks.clear()
            return self._giving
        self._looks.append(min(waiting, 1.0))  # a moment, however crowded, decides nothing
        if len(self._looks) == _LOOKS and sum(self._looks) > _LOOKS * _CROWDED:
            soon = now - self._since < 10 * _LOOK
            self._pause = min(_AGAIN_AT_MOST, 2 * self._pause) if soon else _AGAIN
            self._giving, self._until = True, now + self._pause
        return self._giving


class _Waits:
    """How long the threads of this process were ready to run and had no core."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int]] = {}  # of each thread: its open file, nanoseconds

    def fresh(self) -> float:
        """Seconds since the last call, over all threads that are still there."""
        fresh, there = 0, set(os.listdir(_TASKS))
        for gone in self._known.keys() - there:
            os.close(self._known.pop(gone)[0])
        for name in there:
            try:
                file, before = self._known.get(name) or (
                    os.open(f"{_TASKS}/{name}/schedstat", os.O_RDONLY),
                    0,
                )
                waited = int(os.pread(file, 128, 0).split()[1])  # run time, waiting time, turns
            except OSError:  # it has just ended
                continue
            self._known[name] = file, waited
            fresh += waited - before
        return fresh / 1e9
