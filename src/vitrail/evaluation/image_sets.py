"""Sets of pictures as metrics see them: 8-bit RGB, read when asked for, in a fixed order.

A set comes from a folder or from a tensor, and says nothing about what made it. Pictures are rounded to bytes
first, because that is what people get; a picture with NaN or infinite values cannot be rounded, so it is left
out and counted in ``failed``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitrail.data.folder_files import walk
from vitrail.errors import DataError, InputError
from vitrail.files import shown
from vitrail.images import open_image, to_pil
from vitrail.provenance.metadata import read as read_metadata

__all__ = ["ImageSet", "Pairs", "Pixels", "Shot", "pair_up"]

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
"""(H, W, 3) uint8."""

_SHEET = re.compile(r"-grid$|(^|-)preview-[0-9]+$")

KEPT_BYTES = 1 << 30
"""Decoded pictures that are kept in memory by one set; what does not fit is decoded again when needed."""


class Shot(NamedTuple):
    """What a generated picture was asked to be: the prompt (with everything else fixed) and its seed."""

    prompt: str
    seed: int


class ImageSet:
    """N pictures with names, and for generated ones the prompt and seed of each.

    Make one with :meth:`from_folder`, :meth:`from_tensor` or :meth:`from_arrays`.
    """

    def __init__(
        self,
        name: str,
        keys: Sequence[str],
        load: Callable[[int], Pixels],
        *,
        shots: Sequence[Shot | None] | None = None,
        failed: int = 0,
        paths: Sequence[Path] | None = None,
    ) -> None:
        self.name = name
        self.keys = tuple(keys)
        self.shots = tuple(shots) if shots is not None else None
        self.failed = failed
        self.paths = tuple(paths) if paths is not None else None
        self._load = load
        self._kept: dict[int, Pixels] = {}
        self._bytes = 0
        self.base: ImageSet = self
        """The set that this one was taken from by :meth:`subset`; itself otherwise."""
        self.rows: np.ndarray[Any, np.dtype[np.int64]] = np.arange(len(self.keys))
        """Which pictures of ``base`` these are."""

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def from_folder(
        cls, folder: Path | str, *, name: str | None = None, limit: int | None = None
    ) -> ImageSet:
        """Every picture under ``folder``, sorted by name; contact sheets that vitrail saved are left out.

        ``limit``: that many at most, spread evenly over the list. Raises :class:`InputError` for a folder
        that is not there or holds fewer than two pictures.
        """
        root = Path(folder)
        found = _without_sheets(walk(root).pictures)
        if limit is not None and len(found) > limit:
            found = [found[i * len(found) // limit] for i in range(limit)]
        if len(found) < 2:
            raise InputError(
                f"{shown(root)} holds {len(found)} pictures (PNG, JPEG, WebP or GIF); at least 2 are needed"
            )
        paths = [path for _, path in found]
        return cls(
            name or root.resolve().name,
            [key for key, _ in found],
            lambda i: np.asarray(open_image(paths[i])),
            shots=_shots(paths),
            paths=paths,
        )

    @classmethod
    def from_tensor(
        cls, name: str, x: Tensor, *, keys: Sequence[str] | None = None, shots: Sequence[Shot] | None = None
    ) -> ImageSet:
        """Pictures (N, 3, H, W) in [-1, 1]; those with NaN or infinite values are only counted."""
        finite = x.flatten(1).isfinite().all(1).tolist()
        kept = [i for i, good in enumerate(finite) if good]
        arrays = [np.asarray(to_pil(x[i])[0]) for i in kept]
        names = list(keys) if keys is not None else [f"{i:05d}" for i in range(len(finite))]
        return cls(
            name,
            [names[i] for i in kept],
            arrays.__getitem__,
            shots=[shots[i] for i in kept] if shots is not None else None,
            failed=len(finite) - len(kept),
        )

    @classmethod
    def from_arrays(
        cls,
        name: str,
        arrays: Sequence[Pixels],
        *,
        keys: Sequence[str] | None = None,
        shots: Sequence[Shot] | None = None,
        failed: int = 0,
    ) -> ImageSet:
        """Pictures that are in memory already, each (H, W, 3) uint8."""
        names = keys if keys is not None else [f"{i:05d}" for i in range(len(arrays))]
        return cls(name, names, list(arrays).__getitem__, shots=shots, failed=failed)

    def pixels(self, i: int) -> Pixels:
        """Return picture i, (H, W, 3) uint8. Raises :class:`DataError` if its file is damaged."""
        if self.base is not self:
            return self.base.pixels(int(self.rows[i]))
        if i not in self._kept:
            array = self._load(i)
            if self._bytes + array.nbytes > KEPT_BYTES:
                return array
            self._kept[i] = array
            self._bytes += array.nbytes
        return self._kept[i]

    def read(self) -> ImageSet:
        """Read every picture once and return the set: a damaged one is told before longer work begins."""
        for i in range(len(self)):
            self.pixels(i)
        return self

    def tensor(self, i: int) -> Tensor:
        """Return picture i as float32 (1, 3, H, W) in [-1, 1]."""
        array = torch.from_numpy(np.array(self.pixels(i)))
        return array.permute(2, 0, 1)[None].float().div_(127.5).sub_(1.0).contiguous()

    def batches(self, count: int) -> Iterator[Tensor]:
        """Yield the pictures in order as (B, 3, H, W) in [-1, 1], B <= ``count``, one size a batch."""
        waiting: list[Tensor] = []
        for i in range(len(self)):
            x = self.tensor(i)
            if waiting and (len(waiting) == count or waiting[0].shape != x.shape):
                yield torch.cat(waiting)
                waiting = []
            waiting.append(x)
        if waiting:
            yield torch.cat(waiting)

    def subset(self, rows: Sequence[int] | np.ndarray[Any, Any]) -> ImageSet:
        """Return the pictures at ``rows``; what was computed for the whole set is used again."""
        chosen = np.asarray(rows, dtype=np.int64)
        part = ImageSet(
            self.name,
            [self.keys[i] for i in chosen],
            self.pixels,
            shots=[self.shots[i] for i in chosen] if self.shots is not None else None,
        )
        part.base, part.rows = self.base, self.rows[chosen]
        return part

    @property
    def sizes(self) -> dict[str, int]:
        """How many pictures there are of each size, ``{"128x128": 40}``, commonest first."""
        count: dict[str, int] = {}
        for i in range(len(self)):
            height, width = self.pixels(i).shape[:2]
            count[f"{width}x{height}"] = count.get(f"{width}x{height}", 0) + 1
        return dict(sorted(count.items(), key=lambda item: -item[1]))


class Pairs(NamedTuple):
    """Two sets of the same length whose i-th pictures belong together, and the names that had no partner."""

    pictures: ImageSet
    originals: ImageSet
    unmatched: tuple[str, ...]


def pair_up(pictures: ImageSet, originals: ImageSet) -> Pairs:
    """Match two sets by file name without its ending (then by path, where names repeat).

    Raises :class:`InputError` if fewer than two pairs are found or a name stands for several files, and
    :class:`DataError` where a pair differs in size.
    """
    left, right = _by_stem(pictures), _by_stem(originals)
    both = [stem for stem in left if stem in right]
    if len(both) < 2:
        raise InputError(
            f"{len(both)} pictures of {pictures.name} and {originals.name} have the same name; pairs are "
            "found by file name (a/cat.png with b/cat.jpg): at least 2 are needed"
        )
    a = pictures.subset([left[stem] for stem in both])
    b = originals.subset([right[stem] for stem in both])
    for i, stem in enumerate(both):
        one, other = a.pixels(i).shape, b.pixels(i).shape
        if one != other:
            raise DataError(
                f"{shown(stem)} is {one[1]}x{one[0]} in {a.name} and {other[1]}x{other[0]} in {b.name}; "
                "a pair must have one size"
            )
    alone = [*(s for s in left if s not in right), *(s for s in right if s not in left)]
    return Pairs(a, b, tuple(alone))


def _by_stem(images: ImageSet) -> dict[str, int]:
    table: dict[str, int] = {}
    for i, key in enumerate(images.keys):
        head, _, tail = key.rpartition("/")
        stem = (head + "/" if head else "") + (tail.rpartition(".")[0] or tail)
        if stem in table:
            raise InputError(
                f"{images.name} holds {shown(stem)} twice with different endings; keep one of them"
            )
        table[stem] = i
    return table


def _without_sheets(found: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Leave out the sheet that ``vitrail generate`` puts beside its pictures, and nothing of anyone else's.

    A sheet is called ``...-grid`` (a preview ``preview-1``), carries no record, and lies beside pictures that
    carry one.
    """
    suspects = [path for _, path in found if _SHEET.search(path.stem)]
    if not suspects:
        return found
    ours = {path.parent for (_, path), shot in zip(found, _shots([p for _, p in found]), strict=True) if shot}
    sheets = {path for path, shot in zip(suspects, _shots(suspects), strict=True) if shot is None}
    return [(key, path) for key, path in found if path not in sheets or path.parent not in ours]


def _shots(paths: Sequence[Path]) -> list[Shot | None]:
    """Read prompt and seed from the pictures that vitrail made; all other settings join the prompt's text."""
    shots: list[Shot | None] = []
    for path in paths:
        try:
            record = read_metadata(path).record
        except (DataError, InputError):
            record = None  # whether it can be decoded is told when it is
        if record is None or record.request.kind != "text_to_image":
            shots.append(None)
            continue
        settings = record.request.model_dump(mode="json", exclude={"seed", "n"})
        same = {"model": record.model_sha256, **settings}
        text = record.request.prompt + "\n" + repr(sorted((key, str(value)) for key, value in same.items()))
        shots.append(Shot(text, record.seed))
    return shots
