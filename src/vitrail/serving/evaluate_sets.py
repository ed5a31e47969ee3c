"""The pictures that ``vitrail evaluate`` compares: a folder, or what no training sees of a built data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitrail.evaluation.image_sets import ImageSet

__all__ = ["BUILT", "read_pictures"]

BUILT = ("emoji", "fashion-mnist")
"""Data sets that can be named instead of a folder; a folder of that name goes first."""


def read_pictures(name: str, limit: int | None = None) -> ImageSet:
    """Return the pictures of folder ``name``, or those of the data set ``name`` that no training sees.

    ``limit``: that many at most, spread evenly. Raises :class:`~vitrail.errors.InputError` for a folder that
    holds no pictures, :class:`~vitrail.errors.DataError` for a set that is not built.
    """
    if name not in BUILT or Path(name).is_dir():
        return ImageSet.from_folder(name, limit=limit)
    if name == "emoji":
        from vitrail.data.emoji_bank import load_emoji
        from vitrail.evaluation.judge_data import pictures_of

        bank = load_emoji()
        rows = _spread(bank.indices("cell"), limit)
        keys = [f"{row:05d}" for row in rows]
        return ImageSet.from_tensor("emoji (held out)", pictures_of(bank, rows, 128), keys=keys)
    from vitrail.data.fashion_mnist import fashion_set

    test = fashion_set("test")
    rows = _spread(np.arange(len(test.labels)), limit)
    keys = [f"{row:05d} · {test.names[test.labels[row]].en}" for row in rows]
    return ImageSet.from_arrays("fashion-mnist (test)", list(test.pictures(rows)), keys=keys)


def _spread(
    rows: np.ndarray[tuple[int], np.dtype[np.int64]], limit: int | None
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    if limit is None or len(rows) <= limit:
        return rows
    return rows[[i * len(rows) // limit for i in range(limit)]]
