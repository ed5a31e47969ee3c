"""What a task is: a plain function from a request to events. Progress, preview and cancel are the caller's.

A task yields what it has made and calls :attr:`Context.report` from inside a sampler, where it cannot
yield. It writes no file: only :mod:`vitrail.serving.engine` joins tasks with provenance and storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vitrail.schema import Event, Request
from vitrail.tasks.context import Context
from vitrail.tasks.loading import Loader
from vitrail.tasks.text_to_image import text_to_image

__all__ = ["TASKS", "Context", "Loader", "Task"]

Task = Callable[[Request, Loader, Context], Iterator[Event]]

TASKS: dict[str, Task] = {"text_to_image": text_to_image}
"""Every task by the ``kind`` of its request."""
