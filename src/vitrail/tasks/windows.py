"""Drawing a canvas through overlapping windows of the size that a network was trained on (MultiDiffusion).

Bar-Tal et al. 2023, arXiv:2302.08113: at every evaluation each window predicts its part of the picture, and
the predictions are averaged where windows overlap (their equation 5), here weighted towards each window's
middle. On an axis that wraps around, windows run across the edge, so that no edge is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.backends.model import Bound

__all__ = ["Tiled", "Window", "axis_starts", "tent", "windows_of"]


@dataclass(frozen=True)
class Window:
    """Rows and columns of the canvas that one pass of the network sees; they may run over the edge."""

    rows: Tensor
    columns: Tensor

    def cut(self, canvas: Tensor) -> Tensor:
        """Return this part of ``canvas`` (..., H, W)."""
        return canvas[..., self.rows[:, None], self.columns[None, :]]

    def add(self, canvas: Tensor, part: Tensor) -> None:
        """Add ``part`` to its place in ``canvas`` (..., H, W)."""
        canvas[..., self.rows[:, None], self.columns[None, :]] += part


def axis_starts(size: int, window: int, stride: int, *, wraps: bool, turns: bool = False) -> list[int]:
    """Where windows begin on an axis of ``size`` places, at most ``stride`` apart, evenly.

    ``wraps``: they go around the edge. An axis that the window covers whole has one, or, where ``turns`` (a
    network that knows its own places, and so would leave a seam where the axis closes), still several.
    """
    if size <= window and not (wraps and turns):
        return [0]
    if wraps:
        count = max(2, math.ceil(size / stride))
        return [round(i * size / count) for i in range(count)]
    count = math.ceil((size - window) / stride) + 1
    return [round(i * (size - window) / (count - 1)) for i in range(count)]


def windows_of(
    size: tuple[int, int],
    window: tuple[int, int],
    wraps: tuple[bool, bool] = (False, False),
    *,
    turns: bool = False,
) -> list[Window]:
    """Return the windows (rows, columns) of a canvas (rows, columns); they overlap by half.

    ``wraps``: of the rows, of the columns. ``turns``: see :func:`axis_starts`.
    """
    axes = []
    for length, wide, wrap in zip(size, window, wraps, strict=True):
        starts = axis_starts(length, wide, max(1, wide // 2), wraps=wrap, turns=turns)
        axes.append([(torch.arange(wide) + start) % length for start in starts])
    return [Window(rows, columns) for rows in axes[0] for columns in axes[1]]


def tent(rows: int, columns: int) -> Tensor:
    """Weights (rows, columns) of a window's places: 1 in the middle, falling evenly towards the edges."""

    def slope(count: int) -> Tensor:
        place = torch.arange(count, dtype=torch.float32) + 0.5
        return torch.minimum(place, count - place) / (count / 2)

    return slope(rows)[:, None] * slope(columns)[None, :]


class Tiled:
    """A :class:`~vitrail.backends.model.Bound` on a canvas, made of bounds on its windows.

    ``bounds``: one for each window, or one for all. ``check`` is called before every window.
    """

    def __init__(self, bounds: Sequence[Bound], windows: Sequence[Window], check: Callable[[], None]) -> None:
        self.bounds, self._windows, self._check = list(bounds), list(windows), check
        self._step, self._steps = 0, 1
        first = self._windows[0]
        self._weight = tent(len(first.rows), len(first.columns))

    @property
    def step(self) -> int:
        """Steps done."""
        return self._step

    @step.setter
    def step(self, value: int) -> None:
        self._step = value
        for bound in self.bounds:
            bound.step = value

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self._steps

    @steps.setter
    def steps(self, value: int) -> None:
        self._steps = value
        for bound in self.bounds:
            bound.steps = value

    def cond(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return x0 for the prompt, on the whole canvas."""
        return self._joined(x, lambda bound, part: (bound.cond(part, sigma),))[0]

    def pair(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return x0 for the prompt and for the negative prompt, on the whole canvas."""
        wanted, unwanted = self._joined(x, lambda bound, part: bound.pair(part, sigma))
        return wanted, unwanted

    def _joined(self, x: Tensor, ask: Callable[[Bound, Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
        weight = self._weight.to(x)
        total = torch.zeros_like(x[:1, :1])
        sums: list[Tensor] = []
        for place, window in enumerate(self._windows):
            self._check()
            bound = self.bounds[place if len(self.bounds) > 1 else 0]
            answers = ask(bound, window.cut(x))
            sums = sums or [torch.zeros_like(x) for _ in answers]
            for into, answer in zip(sums, answers, strict=True):
                window.add(into, answer.to(x) * weight)
            window.add(total, weight)
        return [part / total for part in sums]
