"""Between two passes: pictures made larger, by interpolation or by a model that enlarges photographs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vitrail.backends import realesrgan
from vitrail.images import to_pil, to_tensor
from vitrail.store import artifacts, model_folders
from vitrail.tasks.context import Context
from vitrail.tasks.photos import find_model

__all__ = ["Enlarge", "enlarger"]

Enlarge = Callable[[Tensor, tuple[int, int]], Tensor]
"""Pictures (B, 3, H, W) in [-1, 1] and a (width, height) -> the pictures at that size."""


def enlarger(name: str | None, context: Context) -> Enlarge:
    """Return what enlarges: the model called ``name``, or bicubic interpolation for None.

    Raises :class:`~vitrail.errors.ArtifactError` for a model that is not there or of another kind.
    """
    if name is None:
        return _bicubic
    with context.timed("load"):
        network = _opened(name, context).network

    def progress(done: int, total: int) -> None:
        context.check()

    def by_model(pixels: Tensor, size: tuple[int, int]) -> Tensor:
        scale: Literal[2, 4] = 2 if size[0] <= 2 * pixels.shape[3] else 4
        made: list[Image.Image] = []
        for picture in to_pil(pixels):
            large = realesrgan.enlarge(network, np.asarray(picture), scale=scale, progress=progress)
            made.append(Image.fromarray(large).resize(size, Image.Resampling.LANCZOS))
        return to_tensor(made).to(pixels.device)

    return by_model


def _opened(name: str, context: Context) -> realesrgan.Upscaler:
    """vitrail's own models go first, then files: a path, or a name in other programs' folders."""
    if name not in artifacts.available():
        path = Path(name).expanduser()
        known = {key for item in model_folders.listing("upscaler") for key in (item.name, item.short)}
        if path.is_file() or name in known:
            return realesrgan.load_file(model_folders.resolve("upscaler", name), context.device)
    return realesrgan.load(find_model(name), context.device)


def _bicubic(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    larger = functional.interpolate(pixels, size=(size[1], size[0]), mode="bicubic", align_corners=False)
    return torch.clamp(larger, -1.0, 1.0)
