"""IDX files (MNIST's format): one numpy array, read from bytes nobody vouches for.

Layout, big-endian: two zero bytes, a type code, the number of axes, a 32-bit length for each axis, then the
values in row-major order, and nothing after them.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError

__all__ = ["MAX_IDX_BYTES", "gunzip", "read_idx"]

MAX_IDX_BYTES = 256 * 2**20
"""Most values that are read, in bytes; Fashion-MNIST's largest file has 47 MB."""

_TYPES: dict[int, str] = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_AXES = 8


def read_idx(data: bytes, name: str = "the file") -> NDArray[Any]:
    """Return the array of an IDX file, a copy in the machine's byte order.

    Raises :class:`DataError` for anything but a whole IDX file: another magic number, an unknown type, no or
    too many axes, lengths that are 0, that differ from what follows, or that no machine holds.
    """
    if len(data) < 4 or data[:2] != b"\0\0":
        raise DataError(f"{name} is not an IDX file: it does not begin with two zero bytes and a type")
    kind, axes = data[2], data[3]
    if kind not in _TYPES:
        raise DataError(f"{name} is not an IDX file: its type code is 0x{kind:02x}")
    if not 1 <= axes <= _MAX_AXES:
        raise DataError(f"{name} has {axes} axes; 1 to {_MAX_AXES} are read")
    start = 4 + 4 * axes
    if len(data) < start:
        raise DataError(f"{name} is cut short within its header")
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4))
    dtype = np.dtype(_TYPES[kind])
    size = math.prod(shape) * dtype.itemsize  # Python integers: nothing overflows
    if size == 0 or size > MAX_IDX_BYTES:
        raise DataError(f"{name} says that it holds {'x'.join(map(str, shape))} values; it is not used")
    if len(data) - start != size:
        raise DataError(f"{name} holds {len(data) - start} bytes of values, its header says {size}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def gunzip(data: bytes, name: str = "the file", limit: int = MAX_IDX_BYTES + 64) -> bytes:
    """Unpack one gzip member of at most ``limit`` bytes.

    Raises :class:`DataError` for other data, a stream cut short, one that goes on, or one beyond the limit.
    """
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        unpacked = unpacker.decompress(data, limit)
    except zlib.error as error:
        raise DataError(f"{name} is not a whole gzip file: {error}") from error
    if not unpacker.eof:
        reason = "unpacks to more than is sane" if unpacker.unconsumed_tail else "is cut short"
        raise DataError(f"{name} {reason}; it is not used")
    if unpacker.unused_data:
        raise DataError(f"{name} goes on after its end; it is not used")
    return unpacked
