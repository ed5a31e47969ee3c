"""Pictures with classes: small sets, streamed as a pure function of the number of pictures seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vitrail.data.batch import Batch
from vitrail.data.stream import EpochOrder
from vitrail.errors import InputError

__all__ = ["ClassName", "ClassSet", "ClassStream"]

FLIP = 11  # branch of the seed


class ClassName(NamedTuple):
    """What a class is called: the name shown in each language, and other words for it."""

    en: str
    zh: str = ""
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassSet:
    """N pictures of one size with the number of the class of each.

    pictures: indices (n,) -> uint8 (n, size, size, 3).  labels: int64 (N,), from 0.  names: of the classes.
    """

    pictures: Callable[[NDArray[np.int64]], NDArray[np.uint8]]
    labels: NDArray[np.int64]
    names: tuple[ClassName, ...]


class ClassStream:
    """Batches of a :class:`ClassSet`; call it with the number of pictures seen so far.

    Pictures go round in shuffled epochs. flip: how often one is mirrored left to right. Captions are the
    English names of the classes; ``labels`` of a batch are their numbers.
    """

    def __init__(self, pictures: ClassSet, batch_size: int, seed: int, *, flip: float = 0.0) -> None:
        if batch_size < 1 or not 0 <= flip <= 1:
            raise InputError(f"batch_size {batch_size}, flip {flip}: at least 1, and 0 to 1, are needed")
        self._set, self.batch_size, self._seed, self._flip = pictures, batch_size, seed, flip
        self._order = EpochOrder(np.ones(len(pictures.labels)), seed)

    def __call__(self, images_seen: int) -> Iterator[Batch]:
        """Endless batches that go on after ``images_seen`` pictures."""
        while True:
            yield self.batch(range(images_seen, images_seen + self.batch_size))
            images_seen += self.batch_size

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The pictures of the given numbers."""
        chosen = np.array([self._order.at(number) for number in numbers], np.int64)
        pixels = self._set.pictures(chosen)
        if self._flip:
            for place, number in enumerate(numbers):
                if np.random.Generator(np.random.PCG64([self._seed, FLIP, number])).random() < self._flip:
                    pixels[place] = pixels[place, :, ::-1].copy()
        labels = self._set.labels[chosen]
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1.0)
        return Batch(
            tensor,
            [self._set.names[label].en for label in labels],
            torch.zeros(len(labels), dtype=torch.int64),
            torch.from_numpy(labels),
        )
