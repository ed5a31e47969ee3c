"""vitrail: train, run, edit with, measure and publish generative-art models on your own machine.

The names below are imported on first use, so that ``import vitrail`` costs nothing and needs no torch::

    import vitrail

    with vitrail.Engine() as engine:
        job = engine.submit(vitrail.TextToImageRequest(prompt="a cat sitting in a garden"))
        for event in engine.events(job):
            if isinstance(event, vitrail.PictureDone):
                event.picture.show()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrail.errors import (
        ArtifactError,
        CancelledError,
        CheckpointError,
        DataError,
        InputError,
        MissingExtraError,
        NonFiniteError,
        StorageError,
        TrainingError,
        VitrailError,
    )
    from vitrail.recipe import load_recipe
    from vitrail.schema import Done, ImageRecord, PictureDone, Preview, Progress, TextToImageRequest
    from vitrail.serving.client import Client
    from vitrail.serving.engine import Engine
    from vitrail.serving.save import Destination
    from vitrail.training.runs import train

    __version__: str

__all__ = [
    "ArtifactError",
    "CancelledError",
    "CheckpointError",
    "Client",
    "DataError",
    "Destination",
    "Done",
    "Engine",
    "ImageRecord",
    "InputError",
    "MissingExtraError",
    "NonFiniteError",
    "PictureDone",
    "Preview",
    "Progress",
    "StorageError",
    "TextToImageRequest",
    "TrainingError",
    "VitrailError",
    "__version__",
    "load_recipe",
    "train",
]

_HOMES = {
    "Client": "vitrail.serving.client",
    "Destination": "vitrail.serving.save",
    "Engine": "vitrail.serving.engine",
    "load_recipe": "vitrail.recipe",
    "train": "vitrail.training.runs",
    **dict.fromkeys(
        ("Done", "ImageRecord", "PictureDone", "Preview", "Progress", "TextToImageRequest"), "vitrail.schema"
    ),
    **dict.fromkeys((name for name in __all__ if name.endswith("Error")), "vitrail.errors"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: Any = version("vitrail")
        except PackageNotFoundError:  # run from a source tree that was never installed
            value = "0+source"
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'vitrail' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
