"""The engine: jobs in a queue, one worker thread, the model kept loaded between them.

The only place that joins tasks with provenance and storage: every picture that leaves it has gone through
:mod:`vitrail.serving.save`. The command line uses it in-process; a server puts a durable queue before it.
"""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NewType

from PIL import Image

from vitrail.codes_schema import WalkRequest
from vitrail.cores import sharing
from vitrail.errors import CancelledError, InputError
from vitrail.runtime import Precision, pick_device
from vitrail.schema import Done, Event, ImageRecord, PictureDone, Preview, Request
from vitrail.serving.failures import explained
from vitrail.serving.save import Destination, save_animation, save_grid, save_picture, save_preview
from vitrail.tasks.context import Context
from vitrail.tasks.core import TASKS
from vitrail.tasks.loading import Loader

__all__ = ["Engine", "JobId"]

JobId = NewType("JobId", str)

#: Finished jobs whose events can still be read; the oldest are forgotten first.
KEPT_JOBS = 64


@dataclass
class _Job:
    request: Request
    destination: Destination | None
    context: Context
    events: list[Event] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    finished: bool = False
    error: BaseException | None = None

    def add(self, event: Event) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def finish(self, error: BaseException | None) -> None:
        with self.changed:
            self.finished, self.error = True, error
            self.changed.notify_all()


class Engine:
    """Runs requests one after the other in a thread of its own; a context manager.

    Parameters
    ----------
    device, precision, batch_size: see :func:`vitrail.runtime.pick_device` and
        :class:`vitrail.tasks.context.Context`.
    """

    def __init__(
        self, device: str = "auto", precision: Precision = "auto", batch_size: int | None = None
    ) -> None:
        self._device = pick_device(device)
        self._precision: Precision = precision
        self._batch_size = batch_size
        self._loader = Loader(self._device)
        self._jobs: dict[JobId, _Job] = {}
        self._queue: queue.Queue[_Job | None] = queue.Queue()
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None
        self._closed = False

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self, request: Request, destination: Destination | None = None, *, preview_every: int = 0
    ) -> JobId:
        """Put ``request`` in the queue and return its job's id.

        With a ``destination`` each picture is saved there before its event is told (and previews, if any);
        without one nothing is written and the pictures are in the events alone. Raises
        :class:`~vitrail.errors.StorageError` at once if the destination cannot be written.
        """
        if destination is not None:
            destination.prepare()
        context = Context(
            device=self._device,
            precision=self._precision,
            batch_size=self._batch_size,
            preview_every=preview_every,
        )
        job = _Job(request, destination, context)
        context.report = lambda event: self._tell(job, event)
        with self._lock:
            if self._closed:
                raise InputError("the engine is closed; make a new one")
            self._forget()
            name = JobId(secrets.token_hex(8))
            self._jobs[name] = job
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="vitrail-engine", daemon=True)
                self._worker.start()
        self._queue.put(job)
        return name

    def events(self, job: JobId) -> Iterator[Event]:
        """Yield the job's events from its first one, waiting for more until it ends; any number of readers.

        Raises what ended the job if it failed: a :class:`~vitrail.errors.VitrailError` for what can be
        expected, :class:`CancelledError` after :meth:`cancel`. :class:`InputError` for an unknown id.
        """
        entry = self._job(job)
        index = 0
        while True:
            with entry.changed:
                while index >= len(entry.events) and not entry.finished:
                    entry.changed.wait()
                fresh, finished = entry.events[index:], entry.finished
            yield from fresh
            index += len(fresh)
            if finished and index >= len(entry.events):
                if entry.error is not None:
                    raise entry.error
                return

    def cancel(self, job: JobId) -> None:
        """Ask the job to stop: at once if it waits, before its next network pass if it runs. Others go on."""
        self._job(job).context.cancelled.set()

    def seconds(self, job: JobId) -> dict[str, float]:
        """Return the time spent by part: ``load``, ``text``, ``denoise``, ``decode``, ``save``."""
        return dict(self._job(job).context.seconds)

    def close(self) -> None:
        """Cancel what waits or runs and end the worker; the engine cannot be used afterwards."""
        with self._lock:
            self._closed = True
            worker = self._worker
            for job in self._jobs.values():
                job.context.cancelled.set()
        if worker is not None:
            self._queue.put(None)
            worker.join()

    def _job(self, name: JobId) -> _Job:
        with self._lock:
            if name not in self._jobs:
                raise InputError("there is no such job; it may have been forgotten")
            return self._jobs[name]

    def _forget(self) -> None:
        finished = [name for name, job in self._jobs.items() if job.finished]
        for name in finished[: max(0, len(finished) - KEPT_JOBS)]:
            del self._jobs[name]

    def _tell(self, job: _Job, event: Event) -> None:
        if isinstance(event, Preview) and job.destination is not None:
            save_preview(event.picture, event.index, job.destination)
        job.add(event)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            error: BaseException | None = None
            try:
                if job.context.cancelled.is_set():
                    raise CancelledError("stopped before it began; nothing was made")
                with sharing():
                    self._run(job)
            except BaseException as caught:  # handed to whoever reads the job's events
                error = explained(caught)
            job.finish(error)

    def _run(self, job: _Job) -> None:
        made: list[tuple[Image.Image, ImageRecord]] = []
        paths: list[str] = []
        for event in TASKS[job.request.kind](job.request, self._loader, job.context):
            if isinstance(event, PictureDone) and job.destination is not None:
                with job.context.timed("save"):
                    path = str(save_picture(event.picture, event.record, job.destination))
                made.append((event.picture, event.record))
                paths.append(path)
                event = event.model_copy(update={"path": path})
            elif isinstance(event, Done) and job.destination is not None:
                pictures = [picture for picture, _ in made]
                if isinstance(job.request, WalkRequest) and len(made) > 1:
                    fps = job.request.fps
                    paths.append(str(save_animation(pictures, made[0][1], fps, job.destination)))
                elif len(made) > 1:
                    paths.append(str(save_grid(pictures, made[0][1], job.destination)))
                event = event.model_copy(update={"paths": tuple(paths)})
            job.add(event)
