"""What a task is: a plain function from a request to events. Progress, preview and cancel are the caller's.

A task yields what it has made and calls :attr:`Context.report` from inside a sampler, where it cannot
yield. It writes no file: only :mod:`vitrail.serving.engine` joins tasks with provenance and storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vitrail.schema import Event
from vitrail.tasks.compress import decode
from vitrail.tasks.context import Context
from vitrail.tasks.image_to_image import edit
from vitrail.tasks.inpaint import inpaint
from vitrail.tasks.loading import Loader
from vitrail.tasks.reconstruct import reconstruct
from vitrail.tasks.repair import repair
from vitrail.tasks.text_to_image import text_to_image
from vitrail.tasks.upscale_photo import upscale
from vitrail.tasks.vary import vary
from vitrail.tasks.walk import walk

__all__ = ["TASKS", "Context", "Loader", "Task"]

Task = Callable[[Any, Loader, Context], Iterator[Event]]
"""(a request of the task's kind, loader, context) -> events."""

TASKS: dict[str, Task] = {
    "text_to_image": text_to_image,
    "edit": edit,
    "reconstruct": reconstruct,
    "decode": decode,
    "vary": vary,
    "inpaint": inpaint,
    "walk": walk,
    "repair": repair,
    "upscale": upscale,
}
"""Every task by the ``kind`` of its request."""
