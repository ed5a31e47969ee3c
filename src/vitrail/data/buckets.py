"""Aspect buckets and the order of pictures: which pictures make up batch k, in closed form.

Pictures of about one shape share a bucket, and every batch comes from one bucket, so that a batch is one
tensor and little of a picture is cropped away (the idea of NovelAI's aspect ratio bucketing, 2022). Nothing
here has a
state: batch k follows from the seed and k alone, so a resumed run asks for batch k and goes on bit for bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import InputError

__all__ = [
    "BatchPlan",
    "Bucket",
    "Pick",
    "assign",
    "draw_bits",
    "draw_unit",
    "gather_groups",
    "make_buckets",
    "shuffled",
]

Indices = NDArray[np.int64]


def draw_bits(count: int, *key: int | str) -> NDArray[np.uint64]:
    """``count`` random 64-bit numbers that depend on ``key`` alone.

    Raw Philox output: NumPy promises that bit generators never change, but not its distributions
    (NEP 19), and a run must resume after an upgrade.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)


def draw_unit(count: int, *key: int | str) -> NDArray[np.float64]:
    """``count`` numbers in [0, 1) with 53 random bits each, from :func:`draw_bits`."""
    return (draw_bits(count, *key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(count: int, *key: int | str) -> Indices:
    """A permutation of ``range(count)`` that depends on ``key`` alone."""
    return np.argsort(draw_bits(count, *key), kind="stable").astype(np.int64)


@dataclass(frozen=True, order=True)
class Bucket:
    """A size in pixels that pictures are brought to."""

    width: int
    height: int

    @property
    def log_aspect(self) -> float:
        """log(width / height): the distance between two shapes is the difference of these."""
        return math.log(self.width / self.height)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def make_buckets(size: int, granularity: int = 8, max_ratio: float = 2.0) -> tuple[Bucket, ...]:
    """Sizes with an area near ``size``\\ ², both sides multiples of ``granularity``, from narrow to wide.

    The square is always one of them; the others keep the area within 15 % and the ratio of the sides within
    about ``max_ratio``. ``max_ratio`` 1 gives the square alone. Raises :class:`InputError` if ``size`` is no
    multiple of ``granularity``.
    """
    if granularity < 1 or size < granularity or size % granularity:
        raise InputError(f"size {size} must be a multiple of the model's granularity {granularity}")
    if not 1.0 <= max_ratio <= 16.0:
        raise InputError(f"max_ratio {max_ratio} is not allowed; give a number from 1 to 16")
    found = {Bucket(size, size)}
    for side in range(granularity, size, granularity):
        other = round(size * size / side / granularity) * granularity
        if other / side <= max_ratio * 1.01 and abs(side * other / size**2 - 1) <= 0.15:
            found |= {Bucket(side, other), Bucket(other, side)}
    return tuple(sorted(found, key=lambda bucket: (bucket.log_aspect, bucket)))


def assign(sizes: Sequence[tuple[int, int]], buckets: Sequence[Bucket]) -> Indices:
    """For every (width, height) the index of the bucket with the nearest aspect ratio (the first on a
    tie)."""
    shapes = np.log(np.array(sizes, dtype=np.float64).reshape(-1, 2))
    aspects = np.array([bucket.log_aspect for bucket in buckets])
    away = np.abs((shapes[:, 0] - shapes[:, 1])[:, None] - aspects[None])
    return np.asarray(away.argmin(axis=1), dtype=np.int64)


def gather_groups(
    sizes: Sequence[tuple[int, int]], buckets: Sequence[Bucket], batch_size: int
) -> list[tuple[Bucket, Indices]]:
    """Pictures by bucket, none with fewer pictures than a batch holds.

    A bucket with fewer would fill its batches with copies of the same few pictures, so it is joined to the
    bucket nearest in shape, smallest first, until all are large enough or one is left. Depends on the sizes
    only.
    """
    chosen = assign(sizes, buckets)
    groups = {int(b): np.flatnonzero(chosen == b).astype(np.int64) for b in np.unique(chosen)}
    while len(groups) > 1:
        small = min(groups, key=lambda b: (len(groups[b]), b))
        if len(groups[small]) >= batch_size:
            break
        moved, here = groups.pop(small), buckets[small].log_aspect
        target = min(groups, key=lambda b: (round(abs(buckets[b].log_aspect - here), 9), -len(groups[b]), b))
        groups[target] = np.sort(np.concatenate([groups[target], moved]))
    return [(buckets[b], groups[b]) for b in sorted(groups)]


@dataclass(frozen=True)
class Pick:
    """Batch ``number``: its bucket and the indices of its pictures."""

    number: int
    bucket: Bucket
    indices: Indices


class BatchPlan:
    """The order of all batches, for ever, as a function of their number.

    Each group of n pictures is an endless row of its own permutations, cut into batches of B. In round r (one
    pass over the data) the group gives ``floor(n (r+1) / B) - floor(n r / B)`` batches, so after r rounds
    each of its pictures was shown r times, up to one unfinished batch, whatever the sizes of the other
    groups are. The batches of a round are shuffled among the groups.
    """

    def __init__(self, groups: Sequence[tuple[Bucket, Indices]], batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size} must be at least 1")
        if not groups or any(len(indices) == 0 for _, indices in groups):
            raise InputError("there are no pictures to make batches of")
        self.groups = list(groups)
        self.batch_size = batch_size
        self.seed = seed
        self._counts = [len(indices) for _, indices in self.groups]
        self._order = lru_cache(maxsize=2 * len(self.groups) + 2)(self._shuffle)
        self._round = lru_cache(maxsize=2)(self._make_round)

    def batch(self, number: int) -> Pick:
        """Batch ``number`` (from 0)."""
        low, high = 0, (number + 1) * self.batch_size // max(self._counts) + 1
        while low < high:  # the last round that starts at or before this batch
            middle = (low + high + 1) // 2
            if self._start(middle) <= number:
                low = middle
            else:
                high = middle - 1
        members = self._round(low)
        within = number - self._start(low)
        group = int(members[within])
        count = self._counts[group]
        ordinal = count * low // self.batch_size + int((members[:within] == group).sum())
        places = np.arange(ordinal * self.batch_size, (ordinal + 1) * self.batch_size)
        parts = [
            self._order(group, int(e))[places[places // count == e] % count]
            for e in np.unique(places // count)
        ]
        bucket, indices = self.groups[group]
        return Pick(number, bucket, indices[np.concatenate(parts)])

    def _start(self, rounds: int) -> int:
        return sum(count * rounds // self.batch_size for count in self._counts)

    def _make_round(self, number: int) -> Indices:
        batches = [n * (number + 1) // self.batch_size - n * number // self.batch_size for n in self._counts]
        members = np.repeat(np.arange(len(batches)), batches)
        order: Indices = members[shuffled(len(members), self.seed, "round", number)]
        return order

    def _shuffle(self, group: int, epoch: int) -> Indices:
        return shuffled(self._counts[group], self.seed, "epoch", str(self.groups[group][0]), epoch)
