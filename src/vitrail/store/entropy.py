"""An entropy coder of whole numbers: what leaves here is the same on every machine, to the bit.

A range asymmetric numeral system (rANS; Duda, "Asymmetric numeral systems", arXiv:1311.2540, section 3.2)
over frequency tables that sum to :data:`TOTAL`. Everything is integer arithmetic, and the tables are part of
the file format, so no release of a library and no floating-point unit can make an old file unreadable. That
is why the forty lines are here and not a library's: those that take probabilities as floats round them by
rules of their own, which have changed between versions.

The state starts at zero and not at the lower end of its interval, so nothing is lost on it: a message costs
its information, rounded up to bytes. Whoever has decoded a message to its end can tell that it was whole:
the state is zero again and no byte is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError

__all__ = [
    "LOGIT_STEP",
    "PRECISION",
    "TOTAL",
    "Decoder",
    "encode",
    "frequencies",
    "intervals",
    "least_bits",
    "weights_of_logits",
]

Integers = NDArray[np.int64]

PRECISION = 24
"""Bits of a probability: a symbol's frequency out of ``2 ** PRECISION``."""

TOTAL = 1 << PRECISION

LOGIT_STEP = 1 / 32
"""Logits are rounded to multiples of this before they become weights.

A network's logits differ in their last bits from machine to machine. In float64 that is about 1e-13, so that
the chance of a logit falling to the other side of a rounding boundary is about 1e-13 / LOGIT_STEP; over the
2.6e5 logits of a picture of 256 codes out of 1,024 that is about one picture in a million. The rounding
costs the square of the step over 24, 4e-5 nats a code.
"""

_LOW = 32  # the state stays in [2**32, 2**40) once bytes have been written
_LARGEST = 1 << 31


def _exponentials() -> Integers:
    """``round(2**30 * exp(-i * LOGIT_STEP))``, in whole numbers: ``math.exp`` differs between libraries."""
    factor = 314534167409941960237172362361777  # floor(2**108 * exp(-1/32))
    value, values = 1 << 108, []
    while value >> 77:
        values.append((value + (1 << 77)) >> 78)
        value = value * factor >> 108
    return np.array([*values, 0], dtype=np.int64)


_EXPONENTIALS = _exponentials()


def weights_of_logits(logits: NDArray[np.float64]) -> Integers:
    """Turn logits (n, K), natural units, into integer weights (n, K) proportional to their softmax.

    Raises :class:`DataError` if any logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise DataError("the model gave probabilities that are not finite; it cannot be used to compress")
    steps = np.rint(np.asarray(logits, dtype=np.float64).clip(-1e6, 1e6) / LOGIT_STEP).astype(np.int64)
    below = steps.max(axis=-1, keepdims=True) - steps
    weights: Integers = _EXPONENTIALS[np.minimum(below, len(_EXPONENTIALS) - 1)]
    return weights


def frequencies(weights: Integers) -> Integers:
    """Turn weights (..., K), whole numbers from 0 to 2**31, into frequencies that sum to :data:`TOTAL`.

    Every symbol gets at least 1, so that any message can be written; what rounding leaves over goes to the
    most likely symbol (the first of them).
    """
    weights = np.asarray(weights, dtype=np.int64)
    count = weights.shape[-1]
    if not 0 < count <= TOTAL // 4 or weights.min() < 0 or weights.max() > _LARGEST:
        raise ValueError(f"weights must be 1 to {TOTAL // 4} numbers from 0 to {_LARGEST}")
    sums = weights.sum(axis=-1, keepdims=True)
    weights = np.where(sums > 0, weights, 1)
    table: Integers = 1 + weights * (TOTAL - count) // np.where(sums > 0, sums, count)
    rest = TOTAL - table.sum(axis=-1, keepdims=True)
    first = weights.argmax(axis=-1, keepdims=True)
    np.put_along_axis(table, first, np.take_along_axis(table, first, -1) + rest, -1)
    return table


def intervals(table: Integers, symbols: Integers) -> tuple[list[int], list[int]]:
    """The starts and frequencies of ``symbols`` (n,) in their tables: (K,) for all of them, or (n, K)."""
    rows = np.atleast_2d(table)
    starts = np.cumsum(rows, axis=-1) - rows
    which = np.arange(len(symbols)) if len(rows) > 1 else np.zeros(len(symbols), dtype=np.int64)
    return starts[which, symbols].tolist(), rows[which, symbols].tolist()


def least_bits(table: Integers) -> float:
    """The fewest bits that a symbol of this table can take: a file with less cannot hold so many symbols."""
    return PRECISION - float(np.log2(float(table.max())))


def encode(starts: Sequence[int], counts: Sequence[int]) -> bytes:
    """Write a message whose symbol ``i`` has the interval ``[starts[i], starts[i] + counts[i])`` of TOTAL."""
    state, tail = 0, bytearray()
    for start, count in zip(reversed(starts), reversed(counts), strict=True):
        limit = count << (_LOW + 8 - PRECISION)
        while state >= limit:
            tail.append(state & 255)
            state >>= 8
        whole, part = divmod(state, count)
        state = (whole << PRECISION) + start + part
    return state.to_bytes((state.bit_length() + 7) // 8, "big") + bytes(reversed(tail))


class Decoder:
    """Reads a message symbol by symbol, with a table for each that may depend on those before it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._state = 0
        self._fill()

    def _fill(self) -> None:
        while self._state >> _LOW == 0 and self._at < len(self._data):
            self._state = self._state << 8 | self._data[self._at]
            self._at += 1

    def read(self, table: Integers, count: int | None = None) -> Integers:
        """Read one symbol for each row of ``table`` (n, K), or ``count`` symbols that share a table (K,)."""
        rows = np.atleast_2d(table)
        ends = np.cumsum(rows, axis=-1)
        number = len(rows) if count is None else count
        symbols = np.empty(number, dtype=np.int64)
        for i in range(number):
            row = i if count is None else 0
            slot = self._state & (TOTAL - 1)
            symbol = int(np.searchsorted(ends[row], slot, side="right"))
            width = int(rows[row, symbol])
            self._state = width * (self._state >> PRECISION) + slot - (int(ends[row, symbol]) - width)
            self._fill()
            symbols[i] = symbol
        return symbols

    def finish(self) -> None:
        """Raise :class:`DataError` unless the message ended here."""
        if self._state or self._at < len(self._data):
            raise DataError("the coded picture is damaged: it does not end where it should")
