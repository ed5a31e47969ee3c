"""Near-duplicates among many pictures: a 64-bit difference hash finds pairs, a small copy confirms them.

The difference hash (N. Krawetz, "Kind of Like That", 2013) says for 8 x 8 places whether the picture gets
brighter to the right; it survives resizing, recompression and changes of brightness. Alone it takes many
drawings on white for each other, so a pair counts only if copies of 12 x 12 pixels agree as well. All pairs
are compared, in blocks
of XOR and population counts: 20,000 pictures are 2 x 10^8 pairs and take a few seconds on one core.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitrail.data.folder_files import Cancelled, Progress, stop_if

__all__ = ["Fingerprint", "fingerprint", "near_groups"]

_SMALL = 12
_MEAN_DIFFERENCE = 6.0  # grey levels of 255, after the difference in overall brightness is taken out
_WORST_DIFFERENCE = 48  # of a single place: a smiley with another mouth is another picture
_SHIFT = 48.0  # overall brightness may differ by this much
_PLAIN = 2.5  # standard deviation of a picture of one colour
_BLOCK_PAIRS = 1 << 21

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Fingerprint:
    """``dhash``: 64 bits; ``small``: uint8 (432,), the picture at 12 x 12; ``plain``: it is of one colour."""

    dhash: int
    small: NDArray[np.uint8]
    plain: bool


def fingerprint(picture: Image.Image) -> Fingerprint:
    """Fingerprint of an RGB picture."""
    middle = picture.resize((72, 72), Image.Resampling.BOX, reducing_gap=2.0)
    grey = np.asarray(middle.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits((grey[:, 1:] > grey[:, :-1]).reshape(-1))
    small = np.asarray(middle.resize((_SMALL, _SMALL), Image.Resampling.BOX))
    spread = small.reshape(-1, 3).astype(np.float32).std(axis=0).max()
    return Fingerprint(int.from_bytes(bits.tobytes(), "big"), small.reshape(-1), bool(spread < _PLAIN))


def near_groups(
    prints: list[Fingerprint],
    aspects: list[float],
    *,
    distance: int = 8,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> list[list[int]]:
    """Groups of two and more indices of pictures that look alike, each sorted, ordered by their first member.

    Parameters
    ----------
    aspects: width / height of each picture; near-duplicates have about the same.
    distance: bits of 64 in which two hashes may differ.

    Pictures of one colour are left out: they all look alike.
    """
    kept = np.array([i for i, p in enumerate(prints) if not p.plain], dtype=np.int64)
    if len(kept) < 2:
        return []
    hashes = np.array([prints[i].dhash for i in kept], dtype=np.uint64)
    copies = _Copies(np.stack([prints[i].small for i in kept]), np.array([aspects[i] for i in kept]))
    sets = _Sets(len(kept))

    def join(first: Indices, second: Indices) -> None:
        for start in range(0, len(first), 16_384):
            a, b = first[start : start + 16_384], second[start : start + 16_384]
            same = copies.alike(a, b)
            for i, j in zip(a[same].tolist(), b[same].tolist(), strict=True):
                sets.join(i, j)

    leaders = _leaders(hashes, copies, sets, cancelled)
    codes = hashes[leaders]
    rows = max(1, _BLOCK_PAIRS // len(leaders))
    for start in range(0, len(leaders), rows):
        stop_if(cancelled)
        away = np.bitwise_count(codes[start : start + rows, None] ^ codes[None, start:])
        i, j = np.divmod(np.flatnonzero(away <= distance), away.shape[1])
        upper = (j > i) & (away[i, j] > 0)  # equal hashes were compared by _leaders
        join(leaders[start + i[upper]], leaders[start + j[upper]])
        if progress is not None:
            progress(min(start + rows, len(leaders)), len(leaders), "compare")
    groups: dict[int, list[int]] = {}
    for member, index in enumerate(kept.tolist()):
        groups.setdefault(sets.root(member), []).append(index)
    return sorted(group for group in groups.values() if len(group) > 1)


class _Sets:
    """Disjoint sets of indices; the lowest index stands for its set."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, i: int) -> int:
        parent = self._parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        low, high = sorted((self.root(i), self.root(j)))
        self._parent[high] = low


def _leaders(
    hashes: NDArray[np.uint64], copies: _Copies, sets: _Sets, cancelled: Cancelled | None
) -> Indices:
    """Join each picture to those of equal hash before it that it looks like; returns those that had none.

    Ten thousand pictures may share one hash, so each is compared with the leaders of its hash only.
    """
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.diff(hashes[order], prepend=hashes[order[0]] ^ np.uint64(1)) != 0)
    leaders: list[int] = []
    for group in np.split(order, starts[1:]):
        mine = np.empty(len(group), dtype=np.int64)
        mine[0], count = group[0], 1
        for number, member in enumerate(group[1:].tolist()):
            if number % 256 == 0:
                stop_if(cancelled)
            like = mine[:count][copies.alike(mine[:count], np.array([member]))]
            for leader in like.tolist():  # all of them: it may be what links two leaders
                sets.join(leader, member)
            if not len(like):
                mine[count] = member
                count += 1
        leaders += mine[:count].tolist()
    return np.sort(np.array(leaders, dtype=np.int64))


class _Copies:
    """The small copies of all pictures, without their overall brightness, ready to be compared."""

    def __init__(self, small: NDArray[np.uint8], aspects: NDArray[np.float64]) -> None:
        values = small.reshape(len(small), -1).astype(np.float32)
        self._mean = values.mean(axis=1)
        self._fine = values - self._mean[:, None]
        cells = self._fine.reshape(-1, 3, _SMALL // 3, 3, _SMALL // 3, 3)
        self._coarse = cells.mean(axis=(2, 4)).reshape(len(small), -1)
        self._shape = np.log(aspects)

    def alike(self, a: Indices, b: Indices) -> NDArray[np.bool_]:
        """For indices (n,) and (n,) or (1,): whether the copies agree but for their overall brightness."""
        b = np.broadcast_to(b, a.shape)
        same: NDArray[np.bool_] = np.abs(self._mean[a] - self._mean[b]) <= _SHIFT
        same &= np.abs(self._shape[a] - self._shape[b]) < 0.1
        left = np.flatnonzero(same)
        # Means over cells differ at most by what the places in them differ: a cheap bound, never a wrong no.
        rough = np.abs(self._coarse[a[left]] - self._coarse[b[left]]).mean(axis=1)
        left = left[rough <= _MEAN_DIFFERENCE * 1.001]
        rest = np.abs(self._fine[a[left]] - self._fine[b[left]])
        same[:] = False
        same[left] = (rest.mean(axis=1) <= _MEAN_DIFFERENCE) & (rest.max(axis=1) <= _WORST_DIFFERENCE)
        return same
