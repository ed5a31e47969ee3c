"""What the caller of a task decides, and how it listens and stops it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from vitrail.errors import CancelledError
from vitrail.runtime import Precision
from vitrail.schema import Event

__all__ = ["Context"]


def _nowhere(event: Event) -> None:
    """The report of a caller that does not want to hear."""


def _always() -> bool:
    """A caller that wants to see every preview."""
    return True


@dataclass
class Context:
    """What the caller of a task decides, and how it listens.

    Parameters
    ----------
    device, precision: where and in which numbers the networks run; solver state is float32 always.
    batch_size: pictures a network pass; None takes 1 on a CPU, where a picture then is the same to the bit
        whatever ``n`` is (larger batches gain little there), and 16 elsewhere.
    preview_every: send a :class:`~vitrail.schema.Preview` after every so many steps; 0 sends none.
    wants_preview: asked when one is due, before it is made; False leaves it out.
    report: told of progress and previews while a sampler runs, in the task's own thread.
    cancelled: set it, from any thread, and the task raises :class:`CancelledError` before its next network
    pass. seconds: time spent by part (``load``, ``text``, ``denoise``, ``decode``), filled in by the task.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "auto"
    batch_size: int | None = None
    preview_every: int = 0
    wants_preview: Callable[[], bool] = _always
    report: Callable[[Event], None] = _nowhere
    cancelled: threading.Event = field(default_factory=threading.Event)
    seconds: dict[str, float] = field(default_factory=dict)

    def check(self) -> None:
        """Raise :class:`CancelledError` if the caller wants the work to stop."""
        if self.cancelled.is_set():
            raise CancelledError("stopped; nothing more was made")

    def previews(self, step: int) -> bool:
        """Whether a preview is to be made after ``step`` (from 1)."""
        return self.preview_every > 0 and step % self.preview_every == 0 and self.wants_preview()

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time of the block to ``seconds[part]``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
