"""The engine whose queue survives anything: jobs on disk, done by processes of their own, here or elsewhere.

:class:`DurableEngine` accepts, tells and cancels; it does no work itself. That is for workers
(:mod:`vitrail.serving.queue_worker`): those it starts beside itself, and any number of ``vitrail worker``
processes on machines that share its database. docs/architecture.md draws how the parts belong together.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from vitrail.errors import InputError, StorageError
from vitrail.files import ensure_folder, shown
from vitrail.request_fields import Model
from vitrail.serving.failures import complain
from vitrail.serving.jobs import Job, JobEvent, State
from vitrail.serving.processes import unsignalled
from vitrail.serving.queue_claims import LEASE, take_back_lost
from vitrail.serving.queue_requests import Lane, lane_of
from vitrail.serving.queue_store import QueueStore
from vitrail.serving.queue_watch import Watch
from vitrail.serving.queue_worker import HANDS, WorkerSettings
from vitrail.store.database import Database
from vitrail.store.gallery import Gallery

__all__ = ["DurableEngine"]

MAX_WORKERS = 64
_WORKER = (sys.executable, "-m", "vitrail.serving.queue_worker")


class DurableEngine:
    """A :class:`~vitrail.serving.jobs.JobEngine` over a database; a context manager.

    Parameters
    ----------
    folder: where everything lies that is not put elsewhere: ``vitrail.sqlite``, ``pictures/``, ``work/``.
    database: None for the file in ``folder``, or ``postgresql://...`` for a queue that machines share.
    pictures: folder or fsspec address (``s3://bucket/name``) of the pictures; None for ``folder``.
    device, precision: of the workers beside it, as everywhere.
    memory_budget: MiB of models that each of them keeps loaded; None lets it choose.
    queue_limit: jobs that may wait; one more is refused.
    workers: how many worker processes to start and keep running, 0 for none.
    preview_every: steps between previews, 0 for none.
    format: of the pictures.
    warm: models that the workers load before the first job comes.
    batch: jobs that a worker may take for one pass.
    hands, lease, silence, stall: see :class:`vitrail.serving.queue_worker.WorkerSettings`.
    started: False leaves the workers, and on SQLite what takes long to load, to :meth:`start`.

    Raises :class:`InputError` for settings that cannot be, :class:`~vitrail.errors.StorageError` where the
    database or a folder cannot be written.
    """

    def __init__(
        self,
        folder: str,
        *,
        database: str | None = None,
        pictures: str | None = None,
        device: str = "auto",
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        memory_budget: int | None = None,
        queue_limit: int = 1000,
        workers: int = 1,
        preview_every: int = 2,
        format: Literal["png", "jpeg", "webp"] = "png",
        warm: Sequence[str] = (),
        batch: int = 16,
        hands: Sequence[str] = HANDS,
        lease: float = LEASE,
        silence: float = 60.0,
        stall: float = 180.0,
        started: bool = True,
    ) -> None:
        if not 0 <= workers <= MAX_WORKERS:
            raise InputError(f"workers {shown(workers, 20)} is out of range; allowed 0 to {MAX_WORKERS}")
        if queue_limit < 1:
            raise InputError(
                f"queue-limit {shown(queue_limit, 20)} is too small; allow at least 1 job to wait"
            )
        settings = WorkerSettings(
            folder=str(ensure_folder(folder)),
            database=database,
            pictures=pictures,
            device=device,
            precision=precision,
            memory_budget=memory_budget,
            preview_every=preview_every,
            format=format,
            warm=tuple(warm),
            batch=batch,
            hands=tuple(hands),
            lease=lease,
            silence=silence,
            stall=stall,
            beside=workers,
        )
        # Whoever begins later looks at a page first. A server's refusal is to be told at once, though.
        later = not started and (database is None or database.startswith("sqlite"))
        self._database, self._gallery, self._permits = settings.open(later=later)
        self._store = QueueStore(self._database, self._permits, queue_limit, beside=workers)
        self._work = settings.work
        # Workers beside us tell what they do; looking is for those elsewhere, who may share the queue.
        self._watch = Watch(self._store, _looks(workers, self._database.sqlite))
        self._starting: threading.Thread | None = None
        self._workers = [_Beside(settings, number, self._watch.told) for number in range(workers)]
        if started:
            self._start()

    def __enter__(self) -> DurableEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin the work of an engine that was not ``started``, beside the caller's own; once."""

        def begin() -> None:
            with contextlib.suppress(StorageError):  # whoever asks for work next is told
                self._start()

        self._starting = threading.Thread(target=begin, name="vitrail-start", daemon=True)
        self._starting.start()

    def _start(self) -> None:
        try:
            self._permits.prepare()
            take_back_lost(self._database, self._permits)
        finally:
            for worker in self._workers:
                worker.start()

    @property
    def gallery(self) -> Gallery:
        """The pictures that jobs made, under the ids that their events name."""
        return self._gallery

    @property
    def database(self) -> Database:
        """The database that everything lies in."""
        return self._database

    @property
    def work(self) -> Path:
        """The folder in which long works of this machine's workers leave what they make."""
        return self._work

    def submit(self, request: Model, *, key: str | None = None) -> Job:
        """As :meth:`vitrail.serving.jobs.JobEngine.submit`."""
        job = self._store.submit(request, key)
        for worker in self._workers:
            worker.say(lane_of(job.kind))
        return job

    def job(self, id: str) -> Job:
        """As :meth:`vitrail.serving.jobs.JobEngine.job`."""
        return self._store.job(id)

    def jobs(
        self, *, states: frozenset[State] | None = None, limit: int = 100, after: str | None = None
    ) -> list[Job]:
        """As :meth:`vitrail.serving.jobs.JobEngine.jobs`."""
        return self._store.jobs(states, limit, after)

    def events(self, id: str, *, after: int = 0, timeout: float | None = None) -> Iterator[JobEvent]:
        """As :meth:`vitrail.serving.jobs.JobEngine.events`; an unknown id is refused at the call."""
        self._store.check(id)
        return self._events(id, after, timeout)

    def _events(self, id: str, after: int, timeout: float | None) -> Iterator[JobEvent]:
        with self._watch.following(id):
            while True:
                events, ended = self._store.fresh(id, after)
                for event in events:
                    after = max(after, event.seq)
                    yield event
                if ended or not self._watch.wait(id, after, timeout):
                    return

    def preview(self, id: str) -> bytes | None:
        """As :meth:`vitrail.serving.jobs.JobEngine.preview`."""
        return self._store.preview(id)

    def cancel(self, id: str) -> Job:
        """As :meth:`vitrail.serving.jobs.JobEngine.cancel`."""
        job = self._store.cancel(id)
        if job.state == "running":
            for worker in self._workers:
                worker.say("look")
        return job

    def move(self, id: str, *, before: str | None) -> Job:
        """As :meth:`vitrail.serving.jobs.JobEngine.move`."""
        return self._store.move(id, before)

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state, wherever they were asked for."""
        return self._store.counts()

    def workers(self) -> int:
        """How many workers live, wherever they are."""
        return self._store.workers()

    @property
    def beside(self) -> int:
        """How many workers this engine keeps beside itself."""
        return len(self._workers)

    def close(self) -> None:
        """End the workers beside this engine; what they were doing waits again. Ends all event streams."""
        if self._starting is not None:
            self._starting.join()
        self._watch.close()
        for worker in self._workers:
            worker.close()
        self._permits.close()
        self._database.close()


def _looks(workers: int, file: bool) -> float:
    """Seconds between two looks: a file has few writers but the workers beside us, who tell."""
    if workers:
        return 0.5 if file else 0.25
    return 0.05 if file else 0.1


class _Beside:
    """A worker process beside this one; if it ends it is started again, the sooner the longer it lived.

    ``told`` hears (job, number of its newest event) of everything that it does.
    """

    def __init__(self, settings: WorkerSettings, number: int, told: Callable[[str, int], None]) -> None:
        self._settings = settings.model_dump_json().encode() + b"\n"
        self._told = told
        self._closed = threading.Event()
        self._talk = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name=f"vitrail-worker-{number}", daemon=True)

    def start(self) -> None:
        """Start the process."""
        self._thread.start()

    def say(self, word: Lane | Literal["look"]) -> None:
        """Say in which lane there is a new job, or that one was cancelled; it looks itself, but later."""
        with self._talk, contextlib.suppress(OSError, ValueError):
            if self._process is not None and self._process.stdin is not None:
                os.write(self._process.stdin.fileno(), f"{word}\n".encode())

    def close(self) -> None:
        """Let the process give back what it does, and end it."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        with unsignalled():
            self._keep()

    def _keep(self) -> None:
        pause, complained = 0.2, False
        while not self._closed.is_set():
            lived = 0.0
            try:
                lived = self._once()
                complained = False
            except (OSError, RuntimeError) as error:  # no process, thread or file left; later there may be
                if not complained:
                    reason = shown(getattr(error, "strerror", None) or error)
                    complain(f"vitrail: no worker could be started: {reason}; tried again")
                complained = True
            pause = 0.2 if lived > 30 else min(10.0, pause * 2)
            self._closed.wait(pause)

    def _once(self) -> float:
        """Start a process and wait for its end; returns how many seconds it lived."""
        lived = 0.0
        with subprocess.Popen(_WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            threading.Thread(target=self._listen, args=(process,), daemon=True).start()
            with contextlib.suppress(OSError):  # it ended at once; that is seen below
                process.stdin.write(self._settings)
                process.stdin.flush()
            os.set_blocking(process.stdin.fileno(), False)  # one that hangs must not hold up submit()
            with self._talk:
                self._process = process
            while process.poll() is None and not self._closed.wait(0.1):
                lived += 0.1
            with self._talk:
                self._process = None
            if self._closed.is_set():
                try:
                    with contextlib.suppress(OSError):
                        process.stdin.close()  # the sign to end
                    process.wait(12)
                except subprocess.TimeoutExpired:
                    process.kill()
        return lived

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError):  # closed meanwhile
            for line in process.stdout:
                id, _, seq = line.decode("ascii", "replace").partition(" ")
                if seq.strip().isdecimal():
                    self._told(id, int(seq))
