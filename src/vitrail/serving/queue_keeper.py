"""Keeps one working process: starts it, hands it jobs, notices when it hangs or is gone, starts another."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vitrail.cores import can_share
from vitrail.errors import VitrailError
from vitrail.serving.processes import cpu_seconds
from vitrail.serving.queue_claims import Claim
from vitrail.serving.queue_pipe import Line

__all__ = ["HandsLostError", "Keeper", "Patience", "StoppedError"]

_SPINS = {} if can_share() else {"GOMP_SPINCOUNT": "10000"}
"""How often a thread that computes looks for the others before it leaves its core to whoever can use it.

:mod:`vitrail.cores` sees to other programs. Where it cannot, spinning is dear: beside one busy program a
picture takes 4 s with 10,000 looks, 8 with 30,000, 21 with 100,000. Fewer looks than OpenMP's own number cost
a picture alone a tenth (10,000) or a twentieth (30,000).
"""

_ASLEEP = 1.0
"""Seconds without a look at the working process after which this one has not run: a laptop that slept."""

Handle = Callable[[dict[str, Any], bytes], bool]
"""Takes what the working process tells; False if the job that it is about should stop."""


class HandsLostError(VitrailError):
    """The working process died, or had to be ended; the message says of what."""


class StoppedError(VitrailError):
    """The worker stops; nothing is wrong with the job."""


class Patience:
    """How long a working process may give no sign of life, do nothing, or go on after a cancel, in seconds.

    ``silence``: no beat of its own thread. ``stall``: nothing told and (almost) no processor time used.
    ``cancel``: until a cancelled job has to have stopped by itself, ``cancel_long``: a long work. ``start``:
    until its first word. ``ask``: between two looks at what should stop.
    """

    def __init__(
        self,
        silence: float = 60.0,
        stall: float = 180.0,
        cancel: float = 4.0,
        start: float = 300.0,
        cancel_long: float = 60.0,
    ) -> None:
        self.silence, self.stall, self.cancel, self.start = silence, stall, cancel, start
        self.cancel_long = cancel_long
        self.ask = 0.2


class Keeper:
    """One working process at a time, of ``command``; it is started by :meth:`start` or by the first job."""

    def __init__(self, command: Callable[[int], Sequence[str]], patience: Patience) -> None:
        self._command = command
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Line | None = None
        self._started = False  # whether the process has said a word yet
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._look = threading.Event()
        # Linux ends a child with the *thread* that started it (processes.die_with_parent), so one that stays.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="vitrail-starter")

    @property
    def pid(self) -> int | None:
        """The working process, None if there is none now."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def start(self) -> None:
        """Start the process, so that it is ready when a job comes."""
        with self._lock:
            self._alive()

    def run(
        self,
        claims: Sequence[Claim],
        handle: Handle,
        unwanted: Callable[[], Collection[str]],
        more: Callable[[], Sequence[Claim]],
    ) -> set[str]:
        """Let the process do ``claims``; returns those that were cancelled and stopped only by ending it.

        ``more``: asked for further claims when half of a batch has ended. Its pictures are finished together,
        and so the process draws the next ones while these are put away. Raises :class:`HandsLostError` when
        it dies or hangs, :class:`StoppedError` after :meth:`stop`.
        """
        with self._lock:
            line = self._alive()
        try:
            return self._follow(line, claims, handle, unwanted, more)
        except EOFError:
            reason = self._end()
            if self._stopping.is_set():
                raise StoppedError("the worker stops") from None
            raise HandsLostError(reason) from None

    def look(self) -> None:
        """Ask at once, and not only when it is time, which jobs should stop."""
        self._look.set()

    def stop(self) -> None:
        """End the process now; :meth:`run` raises."""
        self._stopping.set()
        process = self._process
        if process is not None:  # whoever follows it notices, and closes the line
            process.kill()
            process.wait()
        self._starter.shutdown(wait=False)

    def retire(self) -> None:
        """End the process, which has nothing to do, to free its memory."""
        self._end(kill=True)

    def _follow(
        self,
        line: Line,
        claims: Sequence[Claim],
        handle: Handle,
        unwanted: Callable[[], Collection[str]],
        more: Callable[[], Sequence[Claim]],
    ) -> set[str]:
        _assign(line, claims)
        left, batch = {claim.id for claim in claims}, len(claims)
        cancelled: dict[str, float] = {}
        long = any(claim.lane == "long" for claim in claims)
        watch = _Watch(self._patience, self.pid, long=long, started=self._started)
        asked = time.monotonic()  # when they were claimed, nobody had cancelled them
        while left:
            if self._stopping.is_set():
                raise EOFError
            while left and line.waits(0.1 if not cancelled else 0.02):
                head, body = line.receive()
                watch.heard(head["tell"])
                self._started = True
                if head["tell"] in ("alive", "ready"):
                    continue
                if not handle(head, body) and head["job"] in left:
                    self._cancel(line, {head["job"]}, cancelled)
                if head["tell"] in ("done", "failed", "cancelled"):
                    left.discard(head["job"])
                    if batch > 2 and 2 * len(left) <= batch:
                        following = more()
                        batch = len(following)
                        if following:
                            _assign(line, following)
                            left |= {claim.id for claim in following}
                if self._time_to_ask(asked):
                    break
            if self._time_to_ask(asked):
                self._look.clear()
                asked = time.monotonic()
                self._cancel(line, left & set(unwanted()), cancelled)
            # A training finishes its step and writes a checkpoint, from which it goes on when asked again.
            enough = self._patience.cancel_long if long else self._patience.cancel
            late = [id for id in left if asked - cancelled.get(id, asked) > enough]
            if left and set(late) == left:
                self._end(kill=True)
                self.start()
                return left
            if (reason := watch.wrong()) is not None:
                self._end(kill=True)
                raise HandsLostError(reason)
        return set()

    def _time_to_ask(self, asked: float) -> bool:
        return self._look.is_set() or time.monotonic() - asked > self._patience.ask

    def _cancel(self, line: Line, ids: Collection[str], cancelled: dict[str, float]) -> None:
        for id in ids:
            if id not in cancelled:
                cancelled[id] = time.monotonic()
                line.send({"do": "cancel", "job": id})

    def _alive(self) -> Line:
        if self._stopping.is_set():
            raise StoppedError("the worker stops")
        if self._process is None or self._line is None or self._process.poll() is not None:
            self._close()
            self._started = False
            self._process, self._line = self._starter.submit(self._spawn).result()
        return self._line

    def _spawn(self) -> tuple[subprocess.Popen[bytes], Line]:
        ours, theirs = multiprocessing.Pipe()
        process = subprocess.Popen(
            self._command(theirs.fileno()),
            env={**_SPINS, **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        return process, Line(ours)

    def _end(self, kill: bool = False) -> str:
        """Make sure that the process is gone; returns what it died of."""
        with self._lock:
            process = self._process
            if process is None:
                return "it was ended"
            if kill:
                process.kill()
            try:
                code = process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            self._close()
            return _cause(code)

    def _close(self) -> None:
        if self._line is not None:
            self._line.close()
        self._process = self._line = None


class _Watch:
    """Notices a process that lives and does nothing."""

    def __init__(self, patience: Patience, pid: int | None, *, long: bool, started: bool) -> None:
        self._patience = patience
        self._pid = pid
        self._long = long  # it may wait for processes of its own, whose time is not its own
        self._beat = self._word = self._looked = time.monotonic()
        self._used = self._cpu()
        self._started = started

    def heard(self, tell: str) -> None:
        self._beat = time.monotonic()
        self._started = True
        if tell != "alive":
            self._word, self._used = self._beat, self._cpu()

    def wrong(self) -> str | None:
        now = time.monotonic()
        if (gap := now - self._looked) > _ASLEEP:  # we were stopped, and so was whoever we wait for
            self._beat, self._word = self._beat + gap, self._word + gap
        self._looked = now
        if now - self._beat > (self._patience.silence if self._started else self._patience.start):
            return f"it gave no sign of life for {now - self._beat:.0f} s"
        if self._started and not self._long and now - self._word > self._patience.stall:
            used = self._cpu()
            if used - self._used < 0.01 * (now - self._word):
                return f"it did nothing for {now - self._word:.0f} s"
            self._word, self._used = now, used
        return None

    def _cpu(self) -> float:
        return (cpu_seconds(self._pid) if self._pid is not None else None) or 0.0


def _assign(line: Line, claims: Sequence[Claim]) -> None:
    for claim in claims:
        for sha256, data in claim.files.items():
            line.send({"do": "file", "sha256": sha256}, data)
    jobs = [{"id": claim.id, "lane": claim.lane, "request": claim.request} for claim in claims]
    line.send({"do": "run", "jobs": jobs})


def _cause(code: int) -> str:
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    likely = {"SIGKILL": ", most likely for want of memory", "SIGBUS": ", a file it read was cut short"}
    return f"it was ended by {name}{likely.get(name, '')}"
