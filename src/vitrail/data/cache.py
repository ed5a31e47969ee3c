"""A cache of arrays on disk, addressed by content: resized pictures, latents, verdicts about files.

The key is the SHA-256 of the picture's bytes together with every setting that shaped the array, so an entry
can be missing but never stale. Each file carries the digest of its own bytes: a flipped bit or a
half-written file is found when it is read, removed and made again. Entries are published by one rename, so
any number of threads and processes may share the folder. A cache that cannot be written (disk full,
read-only) slows the work down and is logged once; it never stops the work.

The arrays are kept as safetensors, not as ``.npy``: NumPy reads that one's header with :mod:`ast`, which in
Python before 3.11.9 and 3.12.3 fails now and then where several threads use it
(https://github.com/python/cpython/issues/106905), and a picture would be left out for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.errors import InputError, NonFiniteError
from vitrail.files import shown

__all__ = ["ArrayCache", "LatentCache", "cache_key"]

_log = logging.getLogger(__name__)
_MAGIC = b"vitrail2"
_SUFFIX = ".arr"
_NAME = "array"  # of the one that a file holds

Array = NDArray[np.generic]
Setting = str | int | float | bool | None


def cache_key(content: str, **settings: Setting | Sequence[Setting]) -> str:
    """64 hexadecimal digits for an array made from bytes with SHA-256 ``content`` under ``settings``."""
    text = json.dumps([content, settings], sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class ArrayCache:
    """Arrays by key in ``folder`` (made when first written).

    ``hits``, ``misses`` and ``rebuilt`` (entries found damaged) count what happened since the object was
    made.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.hits = self.misses = self.rebuilt = 0
        self._complained = False

    def get(self, key: str) -> Array | None:
        """The array under ``key`` (read-only), or None. A damaged entry is removed and counts as missing."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            self.misses += 1  # not there, or not readable: it is made again either way
            return None
        head = len(_MAGIC) + 32
        if data[: len(_MAGIC)] == _MAGIC and hashlib.sha256(data[head:]).digest() == data[len(_MAGIC) : head]:
            self.hits += 1
            array: Array = safetensors.numpy.load(data[head:])[_NAME]
            array.setflags(write=False)
            return array
        self.rebuilt += 1
        self.misses += 1
        _log.warning("a damaged cache entry was removed: %s", shown(path))
        with contextlib.suppress(OSError):  # another process may have replaced or removed it
            path.unlink()
        return None

    def put(self, key: str, array: Array) -> bool:
        """Store ``array``; False if the disk refused (logged once)."""
        body = safetensors.numpy.save({_NAME: np.asarray(array, order="C")})
        path = self._path(key)
        staged = path.with_name(f".{key[:16]}-{os.getpid()}-{secrets.token_hex(6)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                # No fsync: after a power cut the digest finds a torn entry, and it can be made again.
                staged.write_bytes(_MAGIC + hashlib.sha256(body).digest() + body)
                os.replace(staged, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    staged.unlink()
                raise
        except OSError as error:
            if not self._complained:
                _log.warning(
                    "the cache %s cannot be written (%s); going on without",
                    shown(self.folder),
                    error.strerror,
                )
            self._complained = True
            return False
        return True

    def get_or_make(self, key: str, make: Callable[[], Array]) -> Array:
        """The stored array, or ``make()``, stored for the next time. Both have the same bits."""
        array = self.get(key)
        if array is None:
            array = make()
            self.put(key, array)
        return array

    def size(self) -> tuple[int, int]:
        """Number of entries and their bytes."""
        sizes = [size for _, size, _ in self._entries()]
        return len(sizes), sum(sizes)

    def prune(self, max_bytes: int) -> int:
        """Remove the entries written longest ago until ``max_bytes`` are kept; returns how many were
        removed."""
        if max_bytes < 0:
            raise InputError(f"max_bytes {max_bytes} is below 0")
        entries = sorted(self._entries())
        total, removed = sum(size for _, size, _ in entries), 0
        for _, size, path in entries:
            if total <= max_bytes:
                break
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            total, removed = total - size, removed + 1
        return removed

    def _entries(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self.folder.glob(f"??/*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found

    def _path(self, key: str) -> Path:
        if len(key) != 64 or not set(key) <= set("0123456789abcdef"):
            raise InputError(f"{shown(key, 80)!r} is not a cache key; make one with cache_key()")
        return self.folder / key[:2] / (key + _SUFFIX)


class LatentCache:
    """Latents of pictures, encoded once.

    Parameters
    ----------
    cache: where they are kept.
    encode: (1, 3, H, W) float32 in [-1, 1] -> (1, C, h, w). It must be deterministic (the mean of a KL
        autoencoder, not a sample). Pictures are encoded one at a time, since a convolution over another batch
        size may round differently, and then a resumed run would not be bit-identical.
    encoder: a name for the weights and settings of ``encode``, such as the SHA-256 of its artifact.
    """

    def __init__(self, cache: ArrayCache, encode: Callable[[Tensor], Tensor], encoder: str) -> None:
        if not encoder:
            raise InputError("the encoder needs a name, such as the SHA-256 of its weights")
        self.cache = cache
        self.encode = encode
        self.encoder = encoder

    def latent(self, key: str, pixels: Callable[[], Tensor]) -> Tensor:
        """The latent (C, h, w), float32 on the CPU, of the picture that ``key`` stands for.

        ``pixels`` gives it as (1, 3, H, W) and is called only if needed. :class:`NonFiniteError` if the
        encoder
        answers NaN or infinity: such a latent is never stored.
        """

        def make() -> Array:
            with torch.no_grad():
                latent = self.encode(pixels())[0].to("cpu", torch.float32).contiguous()
            if not bool(torch.isfinite(latent).all()):
                raise NonFiniteError(f"the encoder {self.encoder} gave NaN or infinite latents; use float32")
            return np.asarray(latent)

        return torch.from_numpy(self.cache.get_or_make(cache_key(key, encoder=self.encoder), make).copy())
