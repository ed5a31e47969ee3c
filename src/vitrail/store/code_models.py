"""How likely each code of a picture is, without a network: the tokenizer's own use of its codes, and copying.

``static`` knows how often the tokenizer uses each code. ``context`` adds that pictures repeat themselves: a
code is first said to be the one to its left, above, above to the left or above to the right, or none of them
(with frequencies that are learned on the way and depend on how the neighbours were written), and only then by
its frequency. Both read and write planes of codes (q, h, w), one plane for each code of a position, row by
row, in whole numbers alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError
from vitrail.store.entropy import TOTAL, Decoder, encode, frequencies, intervals, least_bits

__all__ = ["MAX_CONTEXT_CODES", "Shape", "read_context", "read_static", "write_context", "write_static"]

Integers = NDArray[np.int64]

MAX_CONTEXT_CODES = 1 << 16
"""Most codes that are written with the ``context`` model, which goes through them one at a time."""

_NEW = 4  # not a copy of a neighbour
_STEP, _FULL = 32, 1 << 13  # how fast the frequencies of copying move, and when the past is halved


class Shape(NamedTuple):
    """Codes a position, rows and columns."""

    planes: int
    rows: int
    columns: int

    @property
    def codes(self) -> int:
        """How many codes there are in all."""
        return self.planes * self.rows * self.columns


def write_static(codes: Integers, usage: Integers) -> bytes:
    """Write planes of codes (q, h, w) by how often each is used: weights (q, K), any scale up to 2**31."""
    starts: list[int] = []
    counts: list[int] = []
    for plane, weights in zip(codes, usage, strict=True):
        more = intervals(frequencies(weights), plane.reshape(-1))
        starts += more[0]
        counts += more[1]
    return encode(starts, counts)


def read_static(data: bytes, shape: Shape, usage: Integers) -> Integers:
    """Undo :func:`write_static`; :class:`DataError` for what it cannot have written."""
    tables = frequencies(usage)
    each = shape.rows * shape.columns
    if sum(least_bits(table) for table in tables) * each > 8 * len(data) + 64:
        raise DataError("the coded picture is cut off or damaged: it holds fewer codes than its size needs")
    decoder = Decoder(data)
    planes = [decoder.read(table, each).reshape(shape.rows, shape.columns) for table in tables]
    decoder.finish()
    return np.stack(planes)


def write_context(codes: Integers, usage: Integers) -> bytes:
    """Write planes of codes (q, h, w), at most :data:`MAX_CONTEXT_CODES`; ``usage`` as in write_static."""
    starts: list[int] = []
    counts: list[int] = []
    for plane, weights in zip(codes, usage, strict=True):
        model = _Copies(frequencies(weights), plane.shape[1])
        for row, line in enumerate(plane.tolist()):
            for column, code in enumerate(line):
                around = model.around(row, column)
                kind = around.index(code) if code in around else _NEW
                start, count = model.interval(kind)
                starts.append(start)
                counts.append(count)
                if kind == _NEW:
                    starts.append(int(model.starts[code]))
                    counts.append(int(model.table[code]))
                model.learn(kind, code)
    return encode(starts, counts)


def read_context(data: bytes, shape: Shape, usage: Integers) -> Integers:
    """Undo :func:`write_context`; :class:`DataError` for what it cannot have written."""
    if shape.codes > MAX_CONTEXT_CODES:
        raise DataError(f"the coded picture claims {shape.codes} codes; this kind holds {MAX_CONTEXT_CODES}")
    decoder = Decoder(data)
    codes = np.empty(shape, dtype=np.int64)
    for plane, weights in enumerate(usage):
        model = _Copies(frequencies(weights), shape.columns)
        for row in range(shape.rows):
            for column in range(shape.columns):
                around = model.around(row, column)
                kind = int(decoder.read(model.kinds(), 1)[0])
                if kind == _NEW:
                    code = int(decoder.read(model.table, 1)[0])
                elif around[kind] < 0:
                    raise DataError("the coded picture is damaged: it copies a code from outside the picture")
                else:
                    code = around[kind]
                codes[plane, row, column] = code
                model.learn(kind, code)
    decoder.finish()
    return codes


class _Copies:
    """What is known when a code is written: the codes before it, and how often neighbours were copied."""

    def __init__(self, table: Integers, columns: int) -> None:
        self.table = table
        self.starts = np.cumsum(table) - table
        self._columns = columns
        self._above: list[int] = []
        self._line: list[int] = []
        self._kinds_above = [0] * columns
        self._kinds_line: list[int] = []
        # One row of five counts for each of: left was new, above was new, left and above are the same code.
        self._counts = [[4, 3, 1, 1, 8] for _ in range(8)]
        self._case = 0

    def around(self, row: int, column: int) -> tuple[int, int, int, int]:
        """The codes left, above, above left and above right; -1 outside, and for one named before."""
        if column == 0 and row:
            self._above, self._line = self._line, []
            self._kinds_above, self._kinds_line = self._kinds_line, []
        left = self._line[column - 1] if column else -1
        up = self._above[column] if row else -1
        corner = self._above[column - 1] if row and column else -1
        right = self._above[column + 1] if row and column + 1 < self._columns else -1
        left_new = not column or self._kinds_line[column - 1] == _NEW
        up_new = not row or self._kinds_above[column] == _NEW
        self._case = left_new + 2 * up_new + 4 * (left == up)
        up = -1 if up == left else up
        corner = -1 if corner in (left, up) else corner
        right = -1 if right in (left, up, corner) else right
        return left, up, corner, right

    def kinds(self) -> Integers:
        """The frequencies of left, above, above left, above right and new, out of TOTAL."""
        return frequencies(np.array(self._counts[self._case], dtype=np.int64))

    def interval(self, kind: int) -> tuple[int, int]:
        """The interval of ``kind``."""
        table = self.kinds().tolist()
        start = sum(table[:kind])
        assert start + table[kind] <= TOTAL
        return start, table[kind]

    def learn(self, kind: int, code: int) -> None:
        """Take in what was written."""
        counts = self._counts[self._case]
        counts[kind] += _STEP
        if sum(counts) > _FULL:
            self._counts[self._case] = [(count + 1) >> 1 for count in counts]
        self._line.append(code)
        self._kinds_line.append(kind)
