"""Batches from a :class:`~vitrail.data.folder.FolderSource`, as a pure function of (seed, pictures seen).

``stream(images_seen)`` gives the batches from that point on. Which pictures, in which variation, with which
caption left out, follows from the seed and the batch number alone: no worker state needs saving, and a
resumed run sees what the uninterrupted one would have seen, bit for bit, whatever the number of threads.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.data.batch import Batch
from vitrail.data.buckets import BatchPlan, Bucket, Pick, draw_unit, gather_groups, make_buckets
from vitrail.data.cache import ArrayCache, LatentCache, cache_key
from vitrail.data.folder import FolderSource, Record
from vitrail.data.transforms import Augmentation, canvas, canvas_size, vary
from vitrail.errors import InputError

__all__ = ["FolderStream"]

_DRAWS = (
    10  # numbers drawn for each shown picture: 7 for the variation, then caption, caption drop, style drop
)
_TRANSFORM = "canvas/1"  # to be raised whenever the pixels of transforms.canvas change


class FolderStream:
    """``stream(images_seen) -> Iterator[Batch]``, endless.

    Parameters
    ----------
    source: the checked pictures.
    batch_size: pictures in every batch. Smaller sets fill a batch with repetitions of themselves.
    seed: of order and variations.
    size: pixels a side of the square, and the root of the area of every other bucket.
    buckets: batches of one aspect ratio each; False: squares only, cropped from the middle.
    granularity: both sides of a bucket are multiples of it (the model's patch or downsampling factor).
    max_ratio: of the sides of the most extreme bucket.
    augmentation: how pictures are varied; None: not at all. See :func:`transforms.suggest_augmentation`.
    caption_drop, style_drop: share of captions and styles left out, for classifier-free guidance.
    styles: style names of the model, in order; index 1 is the first. Default: those of the source. A picture
        whose style is not among them has style 0.
    caption: applied to every caption (a translation, a trigger word); "" stays "".
    default_caption: for pictures without one.
    cache: keeps canvases on disk between runs. memory_bytes: of them kept in memory.
    latents: encode pixels; ``Batch.pixels`` then holds latents. Excludes crop and jitter, which would make
        every latent a new one.
    workers, prefetch: threads that decode, and batches prepared ahead; 0 prefetch: none, no thread.

    Pixels are float32 (B, 3, H, W) in [-1, 1]. A picture that vanishes or changes while the stream runs
    raises :class:`~vitrail.errors.DataError` with its name.
    """

    def __init__(
        self,
        source: FolderSource,
        *,
        batch_size: int,
        seed: int = 0,
        size: int = 64,
        buckets: bool = False,
        granularity: int = 8,
        max_ratio: float = 2.0,
        augmentation: Augmentation | None = None,
        caption_drop: float = 0.1,
        style_drop: float = 0.1,
        styles: Sequence[str] | None = None,
        caption: Callable[[str], str] | None = None,
        default_caption: str = "",
        cache: ArrayCache | None = None,
        memory_bytes: int = 512 << 20,
        latents: LatentCache | None = None,
        workers: int = 2,
        prefetch: int = 2,
    ) -> None:
        for name, share in (("caption_drop", caption_drop), ("style_drop", style_drop)):
            if not 0.0 <= share <= 1.0:
                raise InputError(f"{name} {share} is not allowed; give a number from 0 to 1")
        if workers < 1 or prefetch < 0:
            raise InputError(f"workers {workers} must be at least 1 and prefetch {prefetch} at least 0")
        self.source = source
        self.size = size
        self.augmentation = augmentation or Augmentation()
        if latents is not None and (self.augmentation.crop or self.augmentation.jitter):
            raise InputError(
                "a latent cache cannot be used with crop or jitter; set both to 0 (flip is fine)"
            )
        self.caption_drop = caption_drop
        self.style_drop = style_drop
        names = source.styles if styles is None else styles
        self.style_index: Mapping[str, int] = {name: index for index, name in enumerate(names, start=1)}
        allowed = make_buckets(size, granularity, max_ratio if buckets else 1.0)
        sizes = [(record.width, record.height) for record in source.records]
        self.plan = BatchPlan(gather_groups(sizes, allowed, batch_size), batch_size, seed)
        self._captions = [_captions(record, caption, default_caption) for record in source.records]
        self._cache = cache
        self._latents = latents
        self._workers = workers
        self._prefetch = prefetch
        self._memory: dict[tuple[int, Bucket], NDArray[np.uint8]] = {}
        self._memory_left = memory_bytes
        self._lock = threading.Lock()

    @property
    def buckets(self) -> dict[Bucket, int]:
        """The sizes in use and how many pictures each has."""
        return {bucket: len(indices) for bucket, indices in self.plan.groups}

    def __call__(self, images_seen: int = 0) -> Iterator[Batch]:
        """Batches from picture ``images_seen`` on. If that lies within a batch, the rest of it comes
        first."""
        if images_seen < 0:
            raise InputError(f"images_seen {images_seen} is below 0")
        number, skip = divmod(images_seen, self.plan.batch_size)
        if self._prefetch == 0:
            return self._plain(number, skip)
        return self._ahead(number, skip)

    def _plain(self, number: int, skip: int) -> Iterator[Batch]:
        while True:
            pick = self.plan.batch(number)
            yield self._batch(pick, skip, [self._item(pick, j) for j in range(skip, len(pick.indices))])
            number, skip = number + 1, 0

    def _ahead(self, number: int, skip: int) -> Iterator[Batch]:
        waiting: collections.deque[tuple[Pick, int, list[Future[Tensor]]]] = collections.deque()
        pool = ThreadPoolExecutor(self._workers, "vitrail-data")
        try:
            while True:
                while len(waiting) <= self._prefetch:
                    pick = self.plan.batch(number)
                    jobs = [pool.submit(self._item, pick, j) for j in range(skip, len(pick.indices))]
                    waiting.append((pick, skip, jobs))
                    number, skip = number + 1, 0
                pick, first, jobs = waiting.popleft()
                yield self._batch(pick, first, [job.result() for job in jobs])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _batch(self, pick: Pick, skip: int, items: list[Tensor]) -> Batch:
        captions, styles = [], []
        for j in range(skip, len(pick.indices)):
            index, draws = int(pick.indices[j]), self._draws(pick, j)
            record, texts = self.source.records[index], self._captions[index]
            captions.append("" if draws[8] < self.caption_drop else texts[int(draws[7] * len(texts))])
            style = 0 if record.style is None else self.style_index.get(record.style, 0)
            styles.append(0 if draws[9] < self.style_drop else style)
        return Batch(torch.stack(items), captions, torch.tensor(styles, dtype=torch.int64))

    def _draws(self, pick: Pick, place: int) -> NDArray[np.float64]:
        return draw_unit(_DRAWS, self.plan.seed, "picture", pick.number, place)

    def _item(self, pick: Pick, place: int) -> Tensor:
        """One picture as (3, H, W) in [-1, 1], or its latent."""
        index, draws = int(pick.indices[place]), self._draws(pick, place)
        # All its captions decide whether it may be mirrored, so that a dropped caption changes no pixel.
        variation = self.augmentation.draw(draws, " ".join(self.source.records[index].captions))

        def pixels() -> Tensor:
            values = vary(self._canvas(index, pick.bucket), pick.bucket, variation)
            return torch.from_numpy(values).permute(2, 0, 1).float().div_(127.5).sub_(1.0)

        if self._latents is None:
            return pixels()
        key = self._key(index, pick.bucket, flip=variation.flip)
        return self._latents.latent(key, lambda: pixels()[None])

    def _canvas(self, index: int, bucket: Bucket) -> NDArray[np.uint8]:
        with self._lock:
            held = self._memory.get((index, bucket))
        if held is not None:
            return held
        record, crop = self.source.records[index], self.augmentation.crop

        def make() -> NDArray[np.generic]:
            return canvas(self.source.picture(record), bucket, crop)

        made = make() if self._cache is None else self._cache.get_or_make(self._key(index, bucket), make)
        pixels = np.asarray(made, dtype=np.uint8)
        with self._lock:
            if self._memory_left >= pixels.nbytes and (index, bucket) not in self._memory:
                self._memory[index, bucket] = pixels
                self._memory_left -= pixels.nbytes
        return pixels

    def _key(self, index: int, bucket: Bucket, *, flip: bool = False) -> str:
        record = self.source.records[index]
        return cache_key(
            record.sha256,
            transform=_TRANSFORM,
            bucket=[bucket.width, bucket.height],
            canvas=list(canvas_size(bucket, self.augmentation.crop)),
            flip=flip,
        )


def _captions(record: Record, change: Callable[[str], str] | None, default: str) -> list[str]:
    texts = list(record.captions) or ([default] if default else [])
    return [change(text) if change is not None else text for text in texts] or [""]
