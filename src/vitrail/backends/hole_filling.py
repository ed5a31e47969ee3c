"""Fills holes of any size in photographs of any size with a network that sees one square.

A hole is filled at the picture's own scale, in a window around it. A long thin one (a scratch, a cable, a
line of text) is filled piece by piece, each window seeing what those before it drew. A large thick one is
filled at a smaller scale: the network has to see far more than the hole. Pixels outside the holes are never
touched; to leave no seam, the network also draws a narrow band around each hole, where its difference from
the picture can be told, and that difference is spread smoothly over the inside (membrane interpolation:
Perez, Gangnet and Blake, "Poisson image editing", SIGGRAPH 2003, section 2). Along its rim, and so in all of
a thin scratch, what the surroundings make likely is mixed in.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vitrail.errors import InputError, NonFiniteError
from vitrail.models.migan import MIGAN

__all__ = ["Window", "fill_holes", "plan"]

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels."""

_MANY = 200  # holes; more are put together by place before they are compared with each other
_CELL = 16  # holes nearer than this, in pixels, are one hole
_RIM = 4  # pixels inside a hole over which its surroundings count beside what the network drew
_SHARE = 0.6  # what they count at the very edge
_BAND, _WIDE_BAND = 1, 4  # for thin and for thick holes
_ROOM = 2.5  # the side of a thick hole's window, times that of the hole: with less the network dreams


@dataclass(frozen=True)
class Window:
    """A part of the picture that the network is shown, and the part of it whose holes are filled.

    ``view`` may reach beyond the picture, which is mirrored there. ``band``: pixels (of the network) around
    a hole that are drawn as well, to be compared with the picture.
    """

    view: Box
    core: Box
    band: int


def fill_holes(
    network: MIGAN,
    pixels: Pixels,
    hole: Mask,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Pixels:
    """Return a copy of the picture (H, W, 3) in which the pixels under ``hole`` (H, W) are drawn anew.

    ``progress(done, total)`` counts windows; it may raise to stop the work. Raises :class:`InputError` for
    shapes that do not fit or no known pixel at all, :class:`NonFiniteError` for a network that gives NaN.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or hole.shape != pixels.shape[:2]:
        raise InputError(f"a picture {pixels.shape} and a mask {hole.shape} do not belong together")
    if bool(hole.all()) and hole.size:
        raise InputError("the mask covers the whole picture; leave some of it unpainted, to go by")
    result, left = pixels.copy(), hole.copy()
    windows = plan(hole, network.config.size)
    for number, window in enumerate(windows):
        if progress is not None:
            progress(number, len(windows))
        _fill(network, result, left, window)
    if progress is not None:
        progress(len(windows), len(windows))
    return result


# -- which windows -------------------------------------------------------------------------------------------


def plan(hole: Mask, size: int) -> list[Window]:
    """The windows that together fill every hole, for a network that sees ``size`` x ``size`` pixels.

    Thick holes come first. Every hole has at least ``size / 8`` pixels (of the network) of surroundings in
    its window where the picture goes on so far, a thick one far more.
    """
    rest = hole.copy()
    windows: list[Window] = []
    for box in _boxes(_thick(hole, size // 4)):
        top, left, bottom, right = box
        longest = max(bottom - top, right - left)
        side = min(math.ceil(_ROOM * longest), max(hole.shape))
        side = max(side, size, math.ceil(longest * 4 / 3))
        windows.append(Window(_around(box, side, hole.shape), box, _WIDE_BAND))
        rest[top:bottom, left:right] = False
    fits = size - 2 * (size // 8)
    boxes = _boxes(rest)
    if len(boxes) > _MANY:
        boxes = _binned(boxes, fits // 2)
    for box in _merged(boxes, fits):
        whole = max(box[2] - box[0], box[3] - box[1]) <= fits
        for piece in [box] if whole else _pieces(box, size // 2):
            if rest[piece[0] : piece[2], piece[1] : piece[3]].any():
                windows.append(Window(_around(piece, size, hole.shape), piece, _BAND))
    return windows


def _around(box: Box, side: int, shape: tuple[int, ...]) -> Box:
    """A square of ``side`` pixels with the box in its middle, moved into the picture as far as it can be."""
    starts = []
    for start, end, length in ((box[0], box[2], shape[0]), (box[1], box[3], shape[1])):
        wished = (start + end - side) // 2
        inside = min(max(0, wished), length - side) if length >= side else (length - side) // 2
        starts.append(inside)
    return starts[0], starts[1], starts[0] + side, starts[1] + side


def _pieces(box: Box, step: int) -> list[Box]:
    """Cut a box into pieces of at most ``step`` pixels a side, row by row."""
    rows, columns = (
        [
            round(start + (end - start) * index / count)
            for count in [math.ceil((end - start) / step)]
            for index in range(count + 1)
        ]
        for start, end in ((box[0], box[2]), (box[1], box[3]))
    )
    return [
        (top, left, bottom, right)
        for top, bottom in itertools.pairwise(rows)
        for left, right in itertools.pairwise(columns)
    ]


def _thick(hole: Mask, side: int) -> Mask:
    """The parts of holes that squares of some ``side`` pixels fit into, with what is half as far around."""
    cell = max(1, side // 16)
    known = torch.from_numpy(_cells(~hole, cell))[None, None].float()  # 1 where a cell has a known pixel
    count = side // cell
    if min(known.shape[2:]) < count or not hole.any():
        return np.zeros_like(hole)
    fits = (functional.max_pool2d(known, count, 1) == 0).float()
    opened = functional.max_pool2d(functional.pad(fits, (count - 1,) * 4), count, 1)
    near = functional.max_pool2d(opened, 2 * (count // 2) + 1, 1, count // 2)[0, 0].bool().numpy()
    wide = near.repeat(cell, axis=0).repeat(cell, axis=1)[: hole.shape[0], : hole.shape[1]]
    return np.asarray(hole & wide)


def _cells(mask: Mask, cell: int) -> Mask:
    """Which squares of ``cell`` pixels hold a True; those at the edges may be smaller."""
    height, width = (math.ceil(length / cell) for length in mask.shape)
    padded = np.zeros((height * cell, width * cell), bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    return np.asarray(padded.reshape(height, cell, width, cell).any(axis=(1, 3)))


def _boxes(hole: Mask) -> list[Box]:
    """The box around each connected group of holes."""
    cells = _cells(hole, _CELL)
    boxes = []
    waiting = {(int(row), int(column)) for row, column in np.argwhere(cells)}
    while waiting:
        queue = deque([waiting.pop()])
        group = []
        while queue:
            row, column = here = queue.popleft()
            group.append(here)
            for neighbour in [(row + y, column + x) for y in (-1, 0, 1) for x in (-1, 0, 1)]:
                if neighbour in waiting:
                    waiting.remove(neighbour)
                    queue.append(neighbour)
        rows, columns = zip(*group, strict=True)
        top, left = min(rows) * _CELL, min(columns) * _CELL
        part = hole[top : (max(rows) + 1) * _CELL, left : (max(columns) + 1) * _CELL]
        down, across = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
        boxes.append(
            (
                top + int(down[0]),
                left + int(across[0]),
                top + int(down[-1]) + 1,
                left + int(across[-1]) + 1,
            )
        )
    return boxes


def _binned(boxes: list[Box], side: int) -> list[Box]:
    """One box around all whose middles lie in the same square of ``side`` pixels."""
    bins: dict[tuple[int, int], Box] = {}
    for box in boxes:
        place = (box[0] + box[2]) // (2 * side), (box[1] + box[3]) // (2 * side)
        bins[place] = _both(bins[place], box) if place in bins else box
    return list(bins.values())


def _both(one: Box, two: Box) -> Box:
    return min(one[0], two[0]), min(one[1], two[1]), max(one[2], two[2]), max(one[3], two[3])


def _merged(boxes: list[Box], fits: int) -> list[Box]:
    """Put boxes together as long as they overlap, or one window serves both."""
    done: list[Box] = []
    for box in sorted(boxes):
        again = True
        while again:
            again = False
            for other in done:
                both = _both(box, other)
                near = box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
                if near or max(both[2] - both[0], both[3] - both[1]) <= fits:
                    done.remove(other)
                    box, again = both, True
                    break
        done.append(box)
    return done


# -- one window ----------------------------------------------------------------------------------------------


@torch.inference_mode()
def _fill(network: MIGAN, result: Pixels, left: Mask, window: Window) -> None:
    """Draw the holes in the window's core into ``result`` and strike them off ``left``."""
    device = next(network.parameters()).device
    rows, columns = (
        _mirrored(window.view[axis], window.view[axis + 2], length) for axis, length in enumerate(left.shape)
    )
    view = np.ix_(rows, columns)
    picture = torch.from_numpy(result[view]).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
    known = torch.from_numpy(~left[view]).to(device)[None, None].float()
    drawn = _drawn(network, picture, known, window.band)
    if not bool(torch.isfinite(drawn).all()):
        raise NonFiniteError("the network gave NaN or infinite values; pull the model again")
    drawn = drawn + spread(picture - drawn, known)
    drawn = torch.lerp(drawn, spread(picture * known, known), _SHARE * _rim(known))
    levels = drawn.clamp(-1, 1).add(1).mul(127.5).round()[0].permute(1, 2, 0).to("cpu", torch.uint8).numpy()
    top, start, bottom, end = window.core
    part = np.zeros_like(left)
    part[top:bottom, start:end] = left[top:bottom, start:end]
    shift_y, shift_x = window.view[:2]
    ys, xs = np.nonzero(part[top:bottom, start:end])
    result[ys + top, xs + start] = levels[ys + top - shift_y, xs + start - shift_x]
    left[ys + top, xs + start] = False


def _mirrored(start: int, end: int, length: int) -> NDArray[np.intp]:
    """Indices start .. end with those beyond 0 .. length mirrored, as often as need be."""
    if length == 1:
        return np.zeros(end - start, np.intp)
    period = 2 * (length - 1)
    folded = np.abs((np.arange(start, end) % period + period) % period)
    return np.where(folded >= length, period - folded, folded).astype(np.intp)


def _drawn(network: MIGAN, picture: Tensor, known: Tensor, band: int) -> Tensor:
    """Run a square of any size through the network; (1, 3, S, S) and (1, 1, S, S) -> (1, 3, S, S)."""
    size, side = network.config.size, picture.shape[2]
    hole = 1 - known
    if side != size:
        # Averages over whole pixels, and a small pixel is unknown if any part of it is: nothing leaks out.
        picture = functional.adaptive_avg_pool2d(picture, size)
        hole = functional.adaptive_max_pool2d(hole, size)
    hole = functional.max_pool2d(hole, 2 * band + 1, stride=1, padding=band)
    drawn = _floats(network(picture, 1 - hole))
    if side == size:
        return drawn
    return functional.interpolate(drawn, size=(side, side), mode="bicubic", align_corners=False)


def _rim(known: Tensor) -> Tensor:
    """1 at a hole's outermost pixels, falling to 0 :data:`_RIM` pixels further in; (B, 1, H, W)."""
    hole = 1 - known
    depth = torch.zeros_like(hole)
    for _ in range(_RIM):
        depth += hole
        hole = 1 - functional.max_pool2d(1 - hole, 3, stride=1, padding=1)
    return 1 - ((depth + hole - 1) / _RIM).clamp(0, 1)


def _floats(drawn: Tensor) -> Tensor:
    return drawn.float()


def spread(values: Tensor, known: Tensor) -> Tensor:
    """Carry the values (B, C, H, W) at known places (B, 1, H, W) smoothly to all others.

    Push and pull over doubling squares, then a few rounds of averaging where nothing is known.
    """
    if min(values.shape[2:]) <= 1 or float(known.min()) > 0:
        return values
    weight = functional.avg_pool2d(known, 2, ceil_mode=True)
    mean = functional.avg_pool2d(values * known, 2, ceil_mode=True) / weight.clamp_min(1e-6)
    rough = spread(mean, (weight > 0).float()) if bool((weight > 0).any()) else mean
    finer = functional.interpolate(rough, size=values.shape[2:], mode="bilinear", align_corners=False)
    filled = torch.where(known > 0, values, finer)
    for _ in range(4):
        averaged = functional.avg_pool2d(functional.pad(filled, (1, 1, 1, 1), mode="replicate"), 3, 1)
        filled = torch.where(known > 0, values, averaged)
    return filled
