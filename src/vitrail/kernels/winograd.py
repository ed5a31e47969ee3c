"""Winograd's minimal filtering of 3x3 convolutions, in plain PyTorch: what the C kernel is checked against.

F(m x m, 3 x 3): (m + 2)^2 products make m^2 outputs, instead of 9 m^2 (Lavin and Gray 2016, section 4.1;
the matrices after Cook and Toom from any distinct points). With the points 0, +-5/8, +-3/2, infinity F(4) is
twice as exact in float32 as with the usual 0, +-1, +-2 (relative error 1.6e-6 against 3.6e-6, standard normal
pictures, 320 channels); F(6) takes +-1, +-2, +-1/2 (6.9e-6).
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["POINTS", "matrices", "winograd_conv2d"]

POINTS: dict[int, tuple[float, ...]] = {2: (1.0,), 4: (0.625, 1.5), 6: (1.0, 2.0, 0.5)}
"""Positive interpolation points of F(m x m); each stands for itself and its negative, beside 0, infinity."""


@functools.cache
def matrices(out: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (A^T (m, m+2), G (m+2, 3), B^T (m+2, m+2)), float64, for ``out`` = m in {2, 4, 6}."""
    points = [0.0, *itertools.chain.from_iterable((point, -point) for point in POINTS[out])]
    side = len(points) + 1
    to_output = torch.zeros(out, side, dtype=torch.float64)
    to_filter = torch.zeros(side, 3, dtype=torch.float64)
    to_input = torch.zeros(side, side, dtype=torch.float64)
    for row, point in enumerate(points):
        others = [other for other in points if other != point]
        product = torch.tensor([point - other for other in others], dtype=torch.float64).prod()
        for power in range(out):
            to_output[power, row] = point**power
        for power in range(3):
            to_filter[row, power] = point**power / product
        to_input[row, : len(others) + 1] = _polynomial(others)
    to_output[-1, -1] = 1.0
    to_filter[-1, 2] = 1.0
    to_input[-1] = _polynomial(points)
    return to_output, to_filter, to_input


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: int = 4) -> Tensor:
    """Return the convolution of ``x`` (N, C, H, W), already padded, with ``weight`` (K, C, 3, 3), stride 1.

    out: 2, 4 or 6, outputs a tile and side. The result is (N, K, H - 2, W - 2), of ``x``'s type.
    """
    count, _, height, width = x.shape
    to_output, to_filter, to_input = (matrix.to(x) for matrix in matrices(out))
    down, across = -(-(height - 2) // out), -(-(width - 2) // out)
    x = functional.pad(x, (0, across * out + 2 - width, 0, down * out + 2 - height))
    tiles = x.unfold(2, out + 2, out).unfold(3, out + 2, out)  # N C down across side side
    changed = to_input @ tiles @ to_input.T
    filters = to_filter @ weight @ to_filter.T  # K C side side
    products = torch.einsum("ncyxij,kcij->nkyxij", changed, filters)
    made = to_output @ products @ to_output.T  # N K down across m m
    made = made.permute(0, 1, 2, 4, 3, 5).reshape(count, -1, down * out, across * out)
    made = made[:, :, : height - 2, : width - 2]
    return made if bias is None else made + bias[:, None, None]


def _polynomial(roots: list[float]) -> Tensor:
    """Return the coefficients of the product of (x - root), lowest power first."""
    made = torch.ones(1, dtype=torch.float64)
    for root in roots:
        made = torch.cat([torch.zeros(1, dtype=torch.float64), made]) - root * functional.pad(made, (0, 1))
    return made
