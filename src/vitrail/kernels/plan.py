"""Which tile, and how much at a time: the cost model of the Winograd convolution.

Costs are counted in products of one number. Beside the products themselves, a transformed point of a tile
costs some for each channel in and out, and a transformed point of a filter some each time it is made again,
once a block of tiles. Milliseconds on one Zen 5 core (AVX-512, processor time, others on the same core; best
of 4), blocks of 64 tiles, and what the model picks:

=======================  =====  =====  =====  ======  =====
pictures, C -> K, side    F(2)   F(4)   F(6)  oneDNN  picked
=======================  =====  =====  =====  ======  =====
2, 320 -> 320, 64         40.0   24.8   21.7    61.0  F(6)
2, 640 -> 640, 32         42.0   26.8   36.3    67.8  F(4)
2, 1280 -> 1280, 16       50.7   30.3   30.0    94.1  F(4)
2, 1280 -> 1280, 8        14.0    8.1   17.0    51.4  F(4)
1, 512 -> 512, 64         51.4   34.4   37.0    83.7  F(6)
1, 256 -> 256, 256       256.0  178.0  158.0   336.7  F(6)
1, 128 -> 128, 256        64.3   49.5   45.5       -  F(6)
=======================  =====  =====  =====  ======  =====

F(4) against oneDNN, both held to AVX2, same core: 40, 45, 213 ms for 130, 163, 690 (rows 1, 3, 6).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

__all__ = ["WinogradPlan", "plan_winograd"]

_POINT = {2: 5.0, 4: 11.0, 6: 20.0}
"""Products that the transform of one point costs, a channel in or out."""
_FILTER = {2: 2.0, 4: 3.0, 6: 5.0}
"""Products that a transformed point of one filter and channel costs."""
_BLOCK = 64
_CACHE = 12 << 20
"""Bytes of transformed input that a thread may have waiting: what a last-level cache shares out."""


@dataclass(frozen=True)
class WinogradPlan:
    """How one layer is cut up.

    out: outputs a tile and side. super, block: tiles transformed and multiplied at a time. group: panels of
    output channels that a thread takes.
    """

    out: int
    super: int
    block: int
    group: int


@functools.lru_cache(maxsize=4096)
def plan_winograd(
    pictures: int,
    channels: int,
    filters: int,
    height: int,
    width: int,
    panel: int,
    threads: int,
    out: int | None,
) -> WinogradPlan:
    """Return the cheapest plan for one layer: pictures, C, K, the result's sides; ``out`` given or chosen."""

    def tiles(size: int) -> int:
        return pictures * -(-height // size) * -(-width // size)

    def block(size: int) -> int:
        whole = (size + 2) ** 2 * channels * 4 * _BLOCK <= _CACHE
        return min(tiles(size), _BLOCK if whole else _BLOCK // 2)

    def cost(size: int) -> float:
        points, count = (size + 2) ** 2, tiles(size)
        padded = -(-filters // panel) * panel
        each = channels * padded + _POINT[size] * (channels + padded)
        return points * (count * each + -(-count // block(size)) * channels * padded * _FILTER[size])

    chosen = out or min(_POINT, key=cost)
    step = block(chosen)
    return WinogradPlan(chosen, min(tiles(chosen), step * threads), step, 1)
