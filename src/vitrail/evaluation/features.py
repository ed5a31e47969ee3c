"""Feature spaces in which sets of pictures are compared: one vector a picture, float64.

The space is part of a metric's name: a Frechet distance between Inception features is the FID, and the same
formula on other features is another number. Ours is EfficientNet-Lite0, so it is called FD-EffNetLite0.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vitrail.evaluation.image_sets import ImageSet
from vitrail.models.perceptual import load_efficientnet

__all__ = ["EfficientNetSpace", "FeatureSpace", "Features", "PixelSpace"]

Features = np.ndarray[Any, np.dtype[np.float64]]
"""(N, D) float64."""

Progress = Callable[[str, int, int], None]


class FeatureSpace(Protocol):
    """Turns a set of pictures into vectors; the same set is computed once."""

    name: str

    def __call__(self, images: ImageSet) -> Features:
        """Return (N, D) float64, one row a picture, in order."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """What must be said to repeat it."""
        ...


class _Remembered:
    """Keeps the vectors of whole sets while those live; a subset takes rows of its base's."""

    name = ""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[ImageSet, Features] = WeakKeyDictionary()

    def __call__(self, images: ImageSet) -> Features:
        base = images.base
        if base not in self._known:
            self._known[base] = self._compute(base)
        rows: Features = self._known[base][images.rows]
        return rows

    def _compute(self, images: ImageSet) -> Features:
        raise NotImplementedError


class EfficientNetSpace(_Remembered):
    """The 1,280 pooled activations before EfficientNet-Lite0's classifier.

    Every picture is resized to 224 x 224 (bicubic, antialiased, float32) first, as the network was trained:
    the way of resizing alone moves such distances (Parmar et al., arXiv:2104.11222), so it is fixed here.

    folder: where the converted network lies; DataError from the first use if it is not there.
    """

    name = "EffNetLite0"
    SIDE = 224

    def __init__(
        self, folder: Path | str | None = None, *, batch: int = 16, progress: Progress | None = None
    ) -> None:
        super().__init__()
        self._network = load_efficientnet(folder)
        self._batch = batch
        self._progress = progress

    @property
    def settings(self) -> dict[str, Any]:
        """Network, layer and resizing."""
        return {
            "features": "EfficientNet-Lite0, pooled layer of 1280 before the classifier (ImageNet-1k)",
            "resize": "224x224 bicubic antialiased",
        }

    @torch.no_grad()
    def _compute(self, images: ImageSet) -> Features:
        rows: list[Features] = []
        done = 0
        for x in images.batches(self._batch):
            rows.append(self._network.embed(self._sized(x)).double().numpy())
            done += len(x)
            if self._progress is not None:
                self._progress(f"features of {images.name}", done, len(images))
        return np.concatenate(rows)

    def _sized(self, x: Tensor) -> Tensor:
        if x.shape[2:] == (self.SIDE, self.SIDE):
            return x
        size = (self.SIDE, self.SIDE)
        return functional.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(
            -1, 1
        )


class PixelSpace(_Remembered):
    """Colours of the picture averaged down to ``side`` x ``side``: a space that owes nothing to a training.

    It sees layout and colour only. For tests, and where no network can be had.
    """

    name = "Pixels"

    def __init__(self, side: int = 8) -> None:
        super().__init__()
        self.side = side

    @property
    def settings(self) -> dict[str, Any]:
        """The size that pictures are averaged to."""
        return {"features": f"pixels averaged to {self.side}x{self.side}, [-1, 1]"}

    def _compute(self, images: ImageSet) -> Features:
        rows = [
            functional.adaptive_avg_pool2d(images.tensor(i), self.side).flatten().double().numpy()
            for i in range(len(images))
        ]
        return np.stack(rows)
