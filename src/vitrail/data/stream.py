"""The training stream of the emoji set: a pure function of the seed and of how many pictures were seen.

Sample i draws its chance from a generator seeded with (seed, i) alone, so a run that stops after n pictures
goes on at n with the very same pictures, whatever the batch size was and without any saved worker state.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from vitrail.data.batch import Batch
from vitrail.data.captions import english
from vitrail.data.emoji_bank import EmojiBank, EmojiRecord, Split
from vitrail.data.object_index import ObjectIndex
from vitrail.data.pixels import area_resize
from vitrail.data.synthesis import Synthesiser
from vitrail.errors import DataError, InputError

__all__ = ["EmojiStream", "EpochOrder", "default_weight"]

PLAIN, EPOCH, DROP = 1, 2, 3  # branches of the seed, so that unlike uses never share random numbers


def default_weight(record: EmojiRecord) -> float:
    """How often a plain picture is shown, in passes an epoch.

    Flags and symbols 0.3, the two dozen families 0.3, gendered forms of one activity 0.5, everything else 1.
    """
    if record.kind != "object" or record.name_en.startswith("family of"):
        return 0.3
    gendered = "-200d-264" in record.concept or record.concept.startswith(("1f468-200d", "1f469-200d"))
    return 0.5 if gendered else 1.0


class EpochOrder:
    """Endless shuffling without replacement where picture k comes weight_k times an epoch on average.

    In epoch e picture k appears when floor((e + 1) w + phase) exceeds floor(e w + phase), with a phase of its
    own, so that over any run of epochs every picture is shown within one of its due number.
    """

    def __init__(self, weights: NDArray[np.float64], seed: int) -> None:
        if not len(weights) or (weights <= 0).any() or (weights > 1).any():
            raise DataError(
                "the stream has no pictures to show, or weights outside (0, 1]; check the data set's splits"
            )
        self._weights = weights
        self._seed = seed
        self._phase = np.random.default_rng([seed, EPOCH]).random(len(weights))
        self._ends: list[int] = []  # pictures shown by the end of epoch e
        self._cached: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    def _members(self, epoch: int) -> NDArray[np.int64]:
        before, after = (np.floor(e * self._weights + self._phase) for e in (epoch, epoch + 1))
        return np.flatnonzero(after > before)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self._cached[0] != epoch:
            shuffled = np.random.default_rng([self._seed, EPOCH, epoch]).permutation(self._members(epoch))
            self._cached = (epoch, shuffled)
        return self._cached[1]

    def at(self, number: int) -> int:
        """Which picture the `number`-th one shown is (from 0)."""
        while not self._ends or self._ends[-1] <= number:
            start = self._ends[-1] if self._ends else 0
            self._ends.append(start + len(self._members(len(self._ends))))
        epoch = bisect_right(self._ends, number)
        return int(self._order(epoch)[number - (self._ends[epoch - 1] if epoch else 0)])


class EmojiStream:
    """Batches for training a generator on the emoji set; call it with the number of pictures seen so far.

    bank: the built set.  size: side of the pictures, one the bank holds.  synthetic_share: share of composed
    pictures, 0 to 0.5.  caption_drop, style_drop: how often the caption is "" and the style 0, each by
    itself.  jitter: how often a plain picture is made a little smaller (down to 80 %) and moved.  flip: how
    often it is mirrored, where the mirrored picture shows the same thing.  splits: which plain pictures.
    weight: passes an epoch by record, in (0, 1].

    Pictures lie on white unless the caption says otherwise. Sample i is composed or plain by its number
    alone, in an even rhythm; plain pictures go round in shuffled epochs, so each is seen equally often, times
    its weight.
    """

    def __init__(
        self,
        bank: EmojiBank,
        batch_size: int,
        seed: int,
        *,
        size: int = 64,
        synthetic_share: float = 0.4,
        caption_drop: float = 0.1,
        style_drop: float = 0.1,
        flip: float = 0.5,
        jitter: float = 0.5,
        splits: tuple[Split, ...] = ("train",),
        weight: Callable[[EmojiRecord], float] = default_weight,
        index: ObjectIndex | None = None,
    ) -> None:
        if batch_size < 1 or seed < 0:
            raise InputError(f"batch_size {batch_size}, seed {seed}: at least 1 and 0 are needed")
        if not 0 <= synthetic_share <= 0.5:
            raise InputError(f"synthetic_share is {synthetic_share}; at most half may be composed (0 to 0.5)")
        for name, chance in (
            ("caption_drop", caption_drop),
            ("style_drop", style_drop),
            ("flip", flip),
            ("jitter", jitter),
        ):
            if not 0 <= chance <= 1:
                raise InputError(f"{name} is {chance}; it is a probability from 0 to 1")
        self.bank, self.batch_size, self.seed, self.size = bank, batch_size, seed, size
        self._pictures = bank.pictures(size)
        self._members = bank.indices(*splits)
        self._order = EpochOrder(np.array([weight(bank.records[i]) for i in self._members]), seed)
        self.index = index if index is not None else ObjectIndex.of(bank)
        self._synthesiser = Synthesiser(bank, self.index)
        self._share = 0.0 if self._synthesiser.empty else synthetic_share
        self._caption_drop, self._style_drop = caption_drop, style_drop
        self._flip, self._jitter = flip, jitter

    def __call__(self, images_seen: int) -> Iterator[Batch]:
        """Endless batches that go on after `images_seen` pictures."""
        start = images_seen
        while True:
            yield self.batch(range(start, start + self.batch_size))
            start += self.batch_size

    def batch(self, numbers: range) -> Batch:
        """The samples of the given numbers."""
        pixels = np.empty((len(numbers), self.size, self.size, 3), np.uint8)
        captions: list[str] = []
        styles = np.zeros(len(numbers), np.int64)
        plain: list[tuple[int, int, np.random.Generator]] = []
        for position, number in enumerate(numbers):
            rng = np.random.Generator(np.random.PCG64([self.seed, PLAIN, number]))
            composed_before = int(number * self._share)
            if int((number + 1) * self._share) > composed_before:
                spec = self._synthesiser.draw(rng)
                pixels[position] = self._synthesiser.render(spec, self.size)
                caption, style = spec.caption, spec.style
            else:
                i = int(self._members[self._order.at(number - composed_before)])
                record = self.bank.records[i]
                caption, style = english(record, rng), record.style_index
                plain.append((position, i, rng))
            drop = np.random.Generator(np.random.PCG64([self.seed, DROP, number])).random(2)
            captions.append("" if drop[0] < self._caption_drop else caption)
            styles[position] = 0 if drop[1] < self._style_drop else style
        if plain:
            pixels[[position for position, _, _ in plain]] = self._plain(plain)
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1.0)
        return Batch(tensor, captions, torch.from_numpy(styles))

    def _plain(self, plain: list[tuple[int, int, np.random.Generator]]) -> NDArray[np.uint8]:
        """Plain pictures on white, uint8 (P, size, size, 3)."""
        cut = self._pictures[[i for _, i, _ in plain]].astype(np.float32)
        alpha = cut[..., 3:] * np.float32(1 / 255)
        cut[..., :3] = (cut[..., :3] - 255) * alpha  # what the drawing takes from white
        drawn = cut[..., :3]
        for k, (_, i, rng) in enumerate(plain):
            chance = rng.random(5)
            if self.index.flippable[i] and chance[0] < self._flip:
                drawn[k] = drawn[k, :, ::-1].copy()
            if chance[1] < self._jitter:
                side = max(2, round(self.size * (0.8 + 0.2 * chance[2])))
                small = area_resize(np.ascontiguousarray(drawn[k]), side, side)
                room = self.size - side
                top, left = (round(room * c) for c in chance[3:5])
                drawn[k] = 0
                drawn[k, top : top + side, left : left + side] = small
        return np.clip(np.rint(drawn + 255), 0, 255).astype(np.uint8)
