"""The process that does a worker's work: it may hang, run out of memory or crash, and nobody else does.

It is told what to do over a connection (:mod:`vitrail.serving.queue_pipe`) and tells what it has done; it
knows neither the queue nor the gallery. Models stay loaded between jobs. It ends when the connection does.
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vitrail.errors import CancelledError, VitrailError
from vitrail.request_fields import Model
from vitrail.schema import ImageRecord
from vitrail.serving.failures import code_of, complain
from vitrail.serving.processes import collect_seldom, serve_parent
from vitrail.serving.queue_pipe import Line
from vitrail.serving.queue_requests import read_request

__all__ = ["Assignment", "Tell", "Work", "serve"]

BEAT = 1.0
"""Seconds between two signs of life while it works."""

PREVIEW_SIDE = 512


@dataclass(frozen=True)
class Assignment:
    """A job to work on; ``cancelled`` is set, from another thread, when it is to be left."""

    id: str
    lane: str
    request: Model
    cancelled: threading.Event = field(default_factory=threading.Event)


class Tell:
    """How the work tells what it does. Every job has to be ended, by :meth:`done` or :meth:`failed`."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.open: set[str] = set()

    def progress(self, job: str, step: int, steps: int, eta: float | None) -> None:
        """So many steps are done; ``eta``: seconds left."""
        self._line.send({"tell": "progress", "job": job, "step": step, "steps": steps, "eta": eta})

    def preview(self, job: str, picture: Image.Image) -> None:
        """The picture as it stands."""
        small = picture.convert("RGB")
        small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        target = io.BytesIO()
        small.save(target, "PNG", compress_level=1)
        self._line.send({"tell": "preview", "job": job}, target.getvalue())

    def picture(
        self,
        job: str,
        index: int,
        record: ImageRecord,
        suffix: str,
        data: bytes,
        *,
        kind: str | None = None,
        last: bool = False,
    ) -> None:
        """A picture is finished: ``data`` is its file. ``kind``: of the picture, where not the request's.

        ``last``: the job's end follows at once, and both are told together.
        """
        head = {"tell": "picture", "job": job, "index": index, "suffix": suffix, "kind": kind, "last": last}
        self._line.send(head | {"record": record.to_json()}, data)

    def log(self, job: str, line: str) -> None:
        """A line of a long work's progress."""
        self._line.send({"tell": "log", "job": job, "line": line})

    def done(self, job: str, hints: Sequence[str] = ()) -> None:
        """The job is finished."""
        self._end({"tell": "done", "job": job, "hints": list(hints)})

    def failed(self, job: str, error: BaseException) -> None:
        """The job ended by ``error``; one that was cancelled ends as that."""
        if isinstance(error, CancelledError):
            self._end({"tell": "cancelled", "job": job})
            return
        code, message = code_of(error)
        if code == "InternalError":
            complain(error)
        self._end({"tell": "failed", "job": job, "code": code, "message": message})

    def _end(self, head: dict[str, Any]) -> None:
        if head["job"] in self.open:
            self.open.discard(head["job"])
            self._line.send(head)


Work = Callable[[Sequence[Assignment], Tell, Path], None]
"""Does what is assigned (one job, or several of one batch); the folder is for what a long work leaves."""


def serve(descriptor: int, parent: int, folder: Path, work: Work) -> None:
    """Do what the worker at the other end of the connection says, until it is gone."""
    serve_parent(parent)
    os.dup2(2, 1)  # what libraries print is no message of ours
    line = Line.of(descriptor)
    orders = _Orders()
    busy = threading.Event()
    threading.Thread(target=_listen, args=(line, orders), daemon=True).start()
    threading.Thread(target=_beat, args=(line, busy), daemon=True).start()
    line.send({"tell": "ready"})
    while True:
        assignments = orders.begin()
        tell = Tell(line)
        tell.open = {assignment.id for assignment in assignments}
        busy.set()
        try:
            work(assignments, tell, folder)
        except EOFError:
            os._exit(0)
        except BaseException as error:  # ends the jobs that are still open, not this process
            for id in list(tell.open):
                tell.failed(id, error)
        finally:
            busy.clear()
        orders.end(assignments)


class _Orders:
    """What was assigned: some at work, others to follow."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._follow: deque[list[Assignment]] = deque()
        self._current: dict[str, Assignment] = {}

    def add(self, assignments: list[Assignment]) -> None:
        """Let them follow what is there already."""
        with self._changed:
            self._follow.append(assignments)
            self._changed.notify()

    def begin(self) -> list[Assignment]:
        """Wait for the next ones; they are at work now."""
        with self._changed:
            self._changed.wait_for(lambda: any(self._follow))
            while not (assignments := self._follow.popleft()):
                pass  # all of these were cancelled
            self._current.update((assignment.id, assignment) for assignment in assignments)
            return assignments

    def end(self, assignments: list[Assignment]) -> None:
        """They are at work no longer."""
        with self._changed:
            for assignment in assignments:
                self._current.pop(assignment.id, None)

    def cancel(self, id: str) -> bool:
        """Stop a job; True if it was only to follow, and now never begins."""
        with self._changed:
            if (assignment := self._current.get(id)) is not None:
                assignment.cancelled.set()
            for assignments in self._follow:
                for assignment in assignments:
                    if assignment.id == id:
                        assignments.remove(assignment)
                        return True
            return False


def _listen(line: Line, orders: _Orders) -> None:
    files: dict[str, bytes] = {}
    try:
        while True:
            head, body = line.receive()
            match head["do"]:
                case "file":
                    files[head["sha256"]] = body
                case "run":
                    assignments = []
                    for job in head["jobs"]:
                        try:
                            request = read_request(job["request"], files)
                        except Exception as error:  # of another version, or damaged: this job's end alone
                            tell = Tell(line)
                            tell.open = {job["id"]}
                            tell.failed(job["id"], error)
                            continue
                        assignments.append(Assignment(job["id"], job["lane"], request))
                    files = {}
                    if assignments:
                        orders.add(assignments)
                case "cancel":
                    if orders.cancel(head["job"]):
                        line.send({"tell": "cancelled", "job": head["job"]})
    except (EOFError, OSError):
        os._exit(0)


def _beat(line: Line, busy: threading.Event) -> None:
    try:
        while busy.wait():
            time.sleep(BEAT)
            if busy.is_set():
                line.send({"tell": "alive"})
    except EOFError:
        os._exit(0)


_NICE = 4
"""How far this process stands back: drawing takes every core, and pages are to be answered meanwhile."""


def main(arguments: Sequence[str]) -> None:
    """Run as ``python -m vitrail.serving.queue_hands DESCRIPTOR PARENT FOLDER SETTINGS``."""
    descriptor, parent, folder, settings = arguments
    if hasattr(os, "nice"):
        os.nice(_NICE)
    collect_seldom()  # before the models: what is left of one that is unloaded is to be found
    serve(int(descriptor), int(parent), Path(folder), _work(json.loads(settings)))


def _work(settings: dict[str, Any]) -> Work:
    from vitrail.serving.queue_work import ModelWork

    try:
        return ModelWork(**settings)
    except VitrailError as error:  # such as a device that is not there: that is what every job is told
        failure = error

        def fail(assignments: Sequence[Assignment], tell: Tell, folder: Path) -> None:
            for assignment in assignments:
                tell.failed(assignment.id, failure)

        return fail


if __name__ == "__main__":
    main(sys.argv[1:])
