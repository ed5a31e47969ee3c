"""What the working process does with a job: the tasks and the save step of the in-process engine."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from vitrail.codes_schema import WalkRequest
from vitrail.cores import sharing
from vitrail.errors import CancelledError, VitrailError
from vitrail.runtime import Precision, pick_device
from vitrail.schema import Done, Event, ImageRecord, PictureDone, Preview, Progress, TextToImageRequest
from vitrail.serving.long_work import LogLine, LongEvent, LongProgress, LongRequest, SamplePicture
from vitrail.serving.long_work_run import run_long_work
from vitrail.serving.queue_hands import Assignment, Tell
from vitrail.serving.queue_requests import DRAWN_TOGETHER
from vitrail.serving.save import ENDINGS, Format, animation_bytes, picture_bytes
from vitrail.serving.warm_loader import WarmLoader
from vitrail.tasks.batching import text_to_image_many
from vitrail.tasks.context import Context
from vitrail.tasks.core import TASKS

__all__ = ["ModelWork"]

#: Seconds between two words about progress, and between two previews: a quick model makes more than are seen,
#: and every word is written down and sent on by the cores that draw. The first one comes soon; then a job is
#: told of about four times in all, and one of those that are done together as much less.
_EVERY_AT_LEAST, _EVERY_AT_MOST = 0.2, 1.0
_WORDS = 4
#: Seconds: of a job that takes no longer in all nothing is told, nor in the last ones of any other. Nobody is
#: kept waiting by them, and words and previews only take away the cores that draw.
_MOMENT, _BLINK = 1.0, 0.15

_SHARE = 3
"""Fewest pictures of a batch for which a core works alone."""


class ModelWork:
    """Runs tasks on ``device`` and keeps models loaded in up to ``memory_budget`` MiB (None: chosen by what
    there is). ``preview_every``: steps between previews, 0 for none. ``warm``: models to load at once.
    """

    def __init__(
        self,
        device: str = "auto",
        precision: Precision = "auto",
        memory_budget: int | None = None,
        preview_every: int = 2,
        format: Format = "png",
        warm: Sequence[str] = (),
    ) -> None:
        warnings.simplefilter("ignore")  # for those who write code; these go to a log
        self._device = pick_device(device)
        self._precision: Precision = precision
        self._preview_every = preview_every
        self._format: Format = format
        self._loader = WarmLoader(self._device, memory_budget)
        for name in warm:
            self._loader.preload(name)

    def __call__(self, assignments: Sequence[Assignment], tell: Tell, folder: Path) -> None:
        """Do what is assigned; see :data:`vitrail.serving.queue_hands.Work`."""
        with sharing():
            self._do(assignments, tell, folder)

    def _do(self, assignments: Sequence[Assignment], tell: Tell, folder: Path) -> None:
        if len(assignments) > 1:
            self._run_shares(assignments, tell)
            return
        for assignment in assignments:
            try:
                if assignment.lane == "long":
                    _work_long(assignment, tell, folder)
                else:
                    self._run(assignment, tell)
            except EOFError:
                raise
            except BaseException as error:  # told to whoever waits for the job
                tell.failed(assignment.id, error)
                self._loader.after(error)

    def _run(self, assignment: Assignment, tell: Tell) -> None:
        if assignment.cancelled.is_set():
            raise CancelledError("stopped before it began; nothing was made")
        request: Any = assignment.request
        outcome = _Outcome(assignment, tell, self._format)
        context = self._context(assignment, outcome)
        for event in TASKS[request.kind](request, self._loader, context):
            outcome(event)

    def _run_shares(self, assignments: Sequence[Assignment], tell: Tell) -> None:
        """Run a batch: on a CPU each core takes a share of it in a thread of its own.

        Cores that work on one pass wait for each other at every layer, and a server beside them takes one
        away at any moment: with shares of their own none waits. Below :data:`_SHARE` pictures a core, all
        cores draw one pass together. So do models that a picture's settings change while it is drawn (a LoRA,
        borders that go around): two threads would see each other's change.
        """
        threads = torch.get_num_threads()
        count = min(threads, len(assignments) // _SHARE)
        if count < 2 or not self._shares(cast(TextToImageRequest, assignments[0].request)):
            self._run_together(assignments, tell)
            return
        try:
            with ThreadPoolExecutor(count, "share", torch.set_num_threads, (1,)) as pool:
                shares = [
                    pool.submit(self._run_together, assignments[first::count], tell) for first in range(count)
                ]
            for share in shares:
                share.result()
        finally:
            torch.set_num_threads(threads)  # some libraries know one number for all threads

    def _shares(self, request: TextToImageRequest) -> bool:
        """Tell whether threads may share the model: drawing pixels changes nothing in it."""
        if self._device.type != "cpu":
            return False
        try:
            return self._loader.kind(request.model) == DRAWN_TOGETHER
        except VitrailError:  # whoever opens the model says what is wrong with it
            return False

    def _run_together(self, assignments: Sequence[Assignment], tell: Tell) -> None:
        """Run what may share network passes; a job that ends early leaves the others alone."""
        share = len(assignments)
        outcomes = [_Outcome(assignment, tell, self._format, share) for assignment in assignments]
        contexts = [self._context(*pair) for pair in zip(assignments, outcomes, strict=True)]
        requests = [cast(TextToImageRequest, assignment.request) for assignment in assignments]

        def ended(number: int, error: BaseException) -> None:
            tell.failed(assignments[number].id, error)
            self._loader.after(error)

        try:
            for number, event in text_to_image_many(requests, self._loader, contexts, ended):
                outcomes[number](event)
        except EOFError:
            raise
        except BaseException as error:  # of all that are left
            for assignment in assignments:
                tell.failed(assignment.id, error)
            self._loader.after(error)

    def _context(self, assignment: Assignment, outcome: _Outcome) -> Context:
        return Context(
            device=self._device,
            precision=self._precision,
            preview_every=self._preview_every,
            wants_preview=outcome.wants_preview,
            report=outcome,
            cancelled=assignment.cancelled,
        )


def _work_long(assignment: Assignment, tell: Tell, folder: Path) -> None:
    """Do a training, an evaluation and the like; its figures lie in its folder, what it says goes here."""
    job = assignment.id
    progress = _Seldom(_EVERY_AT_LEAST)

    def report(event: LongEvent) -> None:
        match event:
            case LongProgress():
                if progress.due(_EVERY_AT_LEAST):
                    tell.progress(job, event.done, event.total, event.eta)
            case LogLine():
                tell.log(job, event.line)
            case SamplePicture():
                with Image.open(io.BytesIO(event.data)) as picture:
                    tell.preview(job, picture)

    result = run_long_work(cast(LongRequest, assignment.request), report, assignment.cancelled, folder)
    tell.done(job, (result.summary,))


class _Outcome:
    """Turns one job's events into what is told; the pictures of a walk are kept for its animation.

    ``share``: how many jobs are done together.
    """

    def __init__(self, assignment: Assignment, tell: Tell, format: Format, share: int = 1) -> None:
        self._job = assignment.id
        self._request: Any = assignment.request
        self._tell = tell
        self._format: Format = format
        self._frames: list[tuple[Image.Image, ImageRecord]] = []
        self._nearly = False
        self._began = time.monotonic()
        self._least = self._pause = min(_EVERY_AT_MOST, _EVERY_AT_LEAST * share)
        self._progress, self._preview = _Seldom(self._least), _Seldom(self._least)

    def wants_preview(self) -> bool:
        """Whether it is time for one."""
        return not self._nearly and self._preview.due(self._pause)

    def __call__(self, event: Event) -> None:
        match event:
            case Progress():
                whole = time.monotonic() - self._began + (event.eta or 0.0)
                self._nearly = whole < _MOMENT or (event.eta is not None and event.eta < _BLINK)
                self._pause = min(_EVERY_AT_MOST, max(self._least, whole / _WORDS))
                if not self._nearly and self._progress.due(self._pause):
                    self._tell.progress(self._job, event.step, event.steps, event.eta)
            case Preview():
                self._tell.preview(self._job, event.picture)
            case PictureDone():
                data = picture_bytes(event.picture, self._format, event.record)
                walks = isinstance(self._request, WalkRequest)
                last = not walks and event.index + 1 == event.record.request.n
                kind = self._request.kind  # what it is looked for as; its record names the task that drew it
                suffix = ENDINGS[self._format]
                self._tell.picture(self._job, event.index, event.record, suffix, data, kind=kind, last=last)
                if walks:
                    self._frames.append((event.picture, event.record))
            case Done():
                if len(self._frames) > 1:
                    pictures = [picture for picture, _ in self._frames]
                    record = self._frames[0][1]
                    data = animation_bytes(pictures, self._request.fps, record)
                    self._tell.picture(
                        self._job, len(pictures), record, ".webp", data, kind="animation", last=True
                    )
                self._tell.done(self._job, event.hints)


class _Seldom:
    """Says when something is due: not within ``seconds`` of its own beginning, nor of the last time within
    what was asked for then.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def due(self, pause: float) -> bool:
        """Whether it is; if so, it is done now, and not again within ``pause`` seconds."""
        now = time.monotonic()
        due = now - self._last >= self._seconds
        if due:
            self._last, self._seconds = now, pause
        return due
