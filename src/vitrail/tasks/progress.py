"""Counts the steps of a request and tells how long the rest will take."""

from __future__ import annotations

import time

from vitrail.schema import Progress
from vitrail.tasks.context import Context

__all__ = ["StepCounter"]


class StepCounter:
    """Counts ``total`` steps, all pictures of a request together, and reports each to the context."""

    def __init__(self, total: int, context: Context) -> None:
        self.total = max(1, total)
        self.done = self.kept = self.first = 0
        self.context = context
        self.started: float | None = None

    def step(self, pictures: int, step: int, steps: int) -> None:
        """Count step ``step`` of ``steps`` of a batch of ``pictures``."""
        self.done = self.kept + pictures * step
        now = time.monotonic()
        if self.started is None:  # the first step warms up the machine: it says nothing of the others
            self.started, self.first = now, self.done
        measured = self.done - self.first
        eta = (now - self.started) / measured * (self.total - self.done) if measured > 0 else None
        self.context.report(Progress(step=self.done, steps=self.total, eta=eta))

    def keep(self) -> None:
        """The batch is finished."""
        self.kept = self.done

    def rewind(self) -> None:
        """Forget the steps of a batch that has to be made again."""
        self.done, self.started = self.kept, None
