"""What happens beside the steps: checkpoints, logs, progress, samples, and stopping in good order.

Each is a plain function of (state, report), called after every step by :func:`vitrail.training.loop.fit`;
returning True ends the run. Those that hold a file or a screen are context managers as well.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TextIO

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from vitrail.errors import MissingExtraError, StorageError
from vitrail.files import atomic_write, storage_errors
from vitrail.training import checkpoint
from vitrail.training.loop import Hook, StepReport, TrainState

__all__ = [
    "Checkpointer",
    "MetricsLog",
    "ProgressLine",
    "StopOnSignal",
    "every_images",
    "preserved_randomness",
    "seed_everything",
    "tensorboard_writer",
]

Tell = Callable[[str], None]
#: Receives (pictures seen, name -> value) for every line of the log.
Writer = Callable[[int, Mapping[str, float]], None]


class Checkpointer:
    """Saves every ``every_seconds`` and keeps the newest ``keep``; call :meth:`save` at the end of the run.

    A save in the middle of the run that finds the disk full does not end it (what is in memory would be
    lost with it): the line is told and the next turn tries again. :meth:`save` itself raises.
    """

    def __init__(
        self,
        folder: Path,
        every_seconds: float,
        keep: int,
        tell: Tell,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.every_seconds = every_seconds
        self.keep = keep
        self.tell = tell
        self.clock = clock
        self._last = clock()

    def __call__(self, state: TrainState, report: StepReport) -> None:
        if self.clock() - self._last < self.every_seconds:
            return
        try:
            self.save(state)
        except StorageError as error:
            self.tell(f"checkpoint not saved, training goes on: {error}")
        self._last = self.clock()

    def save(self, state: TrainState) -> Path:
        """Publish a checkpoint now and prune older ones; returns its folder."""
        state.random_before = None  # a hook that used the generators has done so by now
        return self.save_as_it_was(state)

    def save_as_it_was(self, state: TrainState) -> Path:
        """The same from another thread, in the middle of a step or a hook, holding ``state.updating``."""
        published = checkpoint.save(self.folder, state)
        checkpoint.prune(self.folder, self.keep)
        return published


class StopOnSignal:
    """On SIGTERM or SIGINT: end the run after this step, so that a last checkpoint is saved.

    Where that takes longer than ``patience`` seconds (a large batch on a slow machine, a compilation, a
    grid of samples, a stalled disk under the data), a watching thread saves the state as it was between
    steps and ends the process with :attr:`exit_code`: a checkpoint within 10 seconds of the signal,
    whatever the step. A step changes the state only while holding :attr:`TrainState.updating`, so what the
    thread saves is whole.

    Only the main thread can catch signals; elsewhere this does nothing.
    """

    def __init__(
        self, state: TrainState, save: Callable[[TrainState], object], tell: Tell, patience: float = 4.0
    ):
        self.state = state
        self.save = save
        self.tell = tell
        self.patience = patience
        self.received: int | None = None
        self._ended = threading.Event()
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell reports it (SIGTERM 143, SIGINT 130); 0 without one."""
        return 0 if self.received is None else 128 + self.received

    def __call__(self, state: TrainState, report: StepReport) -> bool:
        return self.received is not None

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        deadline = time.monotonic() + self.patience
        while not self._ended.wait(0.05):
            if time.monotonic() < deadline or self.state.random_before is None:
                continue
            with self.state.updating:
                if self.state.random_before is None:
                    continue
                try:
                    self.save(self.state)
                    self.tell(f"stopped within a step; checkpoint saved at {self.state.images_seen} pictures")
                finally:
                    sys.stderr.flush()
                    os._exit(self.exit_code)


class MetricsLog:
    """Appends one JSON line every ``every_seconds`` to ``metrics.jsonl``: means over the steps since the
    last one.

    At a resume, lines after ``images_seen`` (written after the checkpoint that was loaded) and a line cut
    short by a kill are taken out first, so that the log reads as that of one uninterrupted run.
    """

    def __init__(
        self,
        path: Path,
        every_seconds: float,
        images_seen: int,
        writers: tuple[Writer, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.every_seconds = every_seconds
        self.writers = writers
        self.clock = clock
        self.latest: dict[str, float] = {}
        self._sums: dict[str, tuple[float, float]] = {}
        self._last = clock()
        self._file: TextIO | None = None
        _truncate_log(path, images_seen)

    def __enter__(self) -> MetricsLog:
        with storage_errors(self.path):
            self._file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __call__(self, state: TrainState, report: StepReport) -> None:
        for name, (total, number) in report.figures.items():
            self._add(name, total, number)
        for phase, loss in report.losses.items():
            self._add(f"loss/{phase}", loss, 1.0)
            self._add(f"gradient_norm/{phase}", report.gradient_norms[phase], 1.0)
        self._add("images_per_second", report.batch, report.seconds)
        if self.clock() - self._last < self.every_seconds:
            return
        self.flush(state, report.learning_rate)

    def flush(self, state: TrainState, learning_rate: float) -> None:
        """Write the means gathered so far, if any."""
        values = {name: total / number for name, (total, number) in sorted(self._sums.items()) if number > 0}
        self._sums.clear()
        self._last = self.clock()
        if values:
            self.latest = values
            self.write(state, {"learning_rate": learning_rate, "seconds": round(state.seconds, 3), **values})

    def write(self, state: TrainState, values: Mapping[str, float]) -> None:
        """Append one line of figures measured at this point."""
        if self._file is None:
            raise ValueError("the log is not open; use it in a with block")
        line = {"images": state.images_seen, "step": state.step, **values}
        with storage_errors(self.path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        for writer in self.writers:
            writer(state.images_seen, values)

    def _add(self, name: str, total: float, number: float) -> None:
        old_total, old_number = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (old_total + total, old_number + number)


class ProgressLine:
    """A progress bar on a terminal; elsewhere one plain line every ``every_seconds``. Both go to stderr.

    Shows the share done, pictures seen, a smoothed loss, pictures per second and the time left.
    """

    def __init__(
        self,
        share: float,
        console: Console | None = None,
        every_seconds: float = 30.0,
        quiet: bool = False,
        told: Tell | None = None,
    ) -> None:
        self.console = console or Console(stderr=True)
        self.every_seconds = every_seconds
        self.quiet = quiet
        self.told = told
        self._began = time.monotonic()
        self._first_share = share
        self._last = self._began
        self._loss: float | None = None
        self._speed: float | None = None
        self._bar: Progress | None = None
        #: Figures that are shown after the loss: name -> label.
        self.shown: Mapping[str, str] = {}
        self._figures: dict[str, float] = {}

    def __enter__(self) -> ProgressLine:
        if not self.quiet and self.console.is_terminal:
            columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._bar = Progress(*columns, console=self.console, transient=False)
            self._bar.start()
            self._bar.add_task("waiting for the first step", total=1.0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, state: TrainState, report: StepReport) -> None:
        loss = sum(report.losses.values())
        speed = report.batch / report.seconds if report.seconds > 0 else 0.0
        self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        self._speed = speed if self._speed is None else 0.9 * self._speed + 0.1 * speed
        for name in self.shown:
            total, number = report.figures.get(name, (0.0, 0.0))
            if number > 0:
                before = self._figures.get(name, total / number)
                self._figures[name] = 0.95 * before + 0.05 * total / number
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], completed=report.share, description=self._text(report, now)
            )
        elif not self.quiet and now - self._last >= self.every_seconds:
            self._last = now
            self.console.print(self._text(report, now), markup=False, highlight=False, soft_wrap=True)

    def tell(self, line: str) -> None:
        """Print one line without tearing the bar, and pass it on."""
        if self.told is not None:
            self.told(line)
        if not self.quiet:
            console = self._bar.console if self._bar is not None else self.console
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _text(self, report: StepReport, now: float) -> str:
        done = report.share - self._first_share
        figures = "".join(
            f"{label} {self._figures[name]:.4g}  "
            for name, label in self.shown.items()
            if name in self._figures
        )
        left = (now - self._began) * (1.0 - report.share) / done if done > 0 else float("nan")
        return (
            f"{100 * report.share:.1f} %  {report.images_seen:,} pictures  loss {self._loss:.4f}  "
            f"{figures}{self._speed:.1f} pictures/s  {_duration(left)} left"
        )


def every_images(count: int, action: Callable[[TrainState], object]) -> Hook:
    """Return a hook that calls ``action`` in the step that passes each multiple of ``count`` pictures."""

    def hook(state: TrainState, report: StepReport) -> None:
        if report.images_seen // count > (report.images_seen - report.batch) // count:
            action(state)

    return hook


@contextlib.contextmanager
def preserved_randomness() -> Iterator[None]:
    """Put the global generators back at the end: what samples or measures inside a run must not change the
    run.
    """
    before = TrainState.random_state()
    try:
        yield
    finally:
        TrainState.set_random_state(before)


def seed_everything(seed: int) -> None:
    """Seed every global generator: torch on all devices, numpy (which takes 32 bits) and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextlib.contextmanager
def tensorboard_writer(
    folder: Path, wanted: Literal["auto", "on", "off"], images_seen: int
) -> Iterator[Writer | None]:
    """Give a writer of scalars for TensorBoard, or None if it is off or (``auto``) not installed.

    Raises :class:`MissingExtraError` if it is asked for with ``on`` and not installed.
    """
    installed = importlib.util.find_spec("tensorboard") is not None
    if wanted == "on" and not installed:
        raise MissingExtraError("tensorboard", "train")
    if wanted == "off" or not installed:
        yield None
        return
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(folder), purge_step=images_seen + 1) as board:

        def write(images: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                board.add_scalar(name, value, images)

        yield write


def _truncate_log(path: Path, images_seen: int) -> None:
    if not path.exists():
        return
    with storage_errors(path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [line for line in lines if _images_of(line) is not None and (_images_of(line) or 0) <= images_seen]
    if kept != lines or (lines and not path.read_bytes().endswith(b"\n")):
        atomic_write(path, "".join(f"{line}\n" for line in kept))


def _images_of(line: str) -> int | None:
    """Pictures seen at a line of the log; None for a line that a kill cut short."""
    try:
        images = json.loads(line)["images"]
    except (ValueError, KeyError, TypeError):
        return None
    return images if isinstance(images, int) else None


def _duration(seconds: float) -> str:
    if seconds != seconds:  # not known yet
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
