"""Does the generator copy? Distance to the nearest training picture, against how crowded that neighbourhood
is.

For a picture x with nearest training picture t(x)::

    ratio(x) = d(x, t(x)) / mean of d(t(x), s) over the 50 training pictures s nearest to t(x)

(the l2 ratio of Carlini et al., "Extracting training data from diffusion models", arXiv:2301.13188, section
4.1, with the neighbourhood taken in the training set instead of in further samples). A copy has a ratio near
0. What is normal for a *new* picture of the same kind is read off held-out real pictures, never assumed: a
sample set that does not memorise has about their ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vitrail.errors import InputError
from vitrail.evaluation.stats import Estimate, mean_interval
from vitrail.images import grid, to_pil

__all__ = ["Memorisation", "Neighbours", "memorisation", "neighbours_figure", "pixel_features"]

NEIGHBOURHOOD = 50
FIGURE_SIDE = 128


@dataclass(frozen=True)
class Memorisation:
    """Ratios (N,) of N pictures, rows (N, K) of their nearest training pictures in order, their mean."""

    ratios: Tensor
    nearest: Tensor
    mean: Estimate

    def share_below(self, level: float) -> float:
        """Return the share of pictures whose ratio is below ``level``."""
        return float((self.ratios < level).double().mean())


def pixel_features(pixels: Tensor, side: int = 16) -> Tensor:
    """Return the pictures (N, 3, H, W) area-averaged to ``side`` and flattened, (N, 3 * side * side).

    A feature space that owes nothing to any training; distances in it are root sums of squares of colour.
    """
    return functional.adaptive_avg_pool2d(pixels.float(), side).flatten(1)


class Neighbours:
    """Exact nearest-neighbour search among training features (M, F), M > ``k``.

    ``blocked`` of :meth:`ratio` leaves training rows out for one query, for instance the query itself.
    """

    def __init__(self, train: Tensor, k: int = NEIGHBOURHOOD) -> None:
        if train.ndim != 2 or len(train) <= k:
            raise InputError(
                f"the neighbourhood needs more than {k} training rows; got shape {tuple(train.shape)}"
            )
        self.train = train.float()
        self.k = k
        self._spread: dict[int, float] = {}

    @staticmethod
    def _distances(a: Tensor, b: Tensor) -> Tensor:
        # Without the matrix-product shortcut: it loses the digits that tell a copy (distance 0) from a near
        # copy.
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")

    def spread(self, row: int) -> float:
        """Return the mean distance of training row ``row`` to its k nearest other training rows."""
        if row not in self._spread:
            distances = self._distances(self.train[row : row + 1], self.train)[0]
            distances[row] = float("inf")
            self._spread[row] = float(distances.topk(self.k, largest=False).values.mean())
        return self._spread[row]

    def nearest(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return distances and rows (N, count) of the training pictures nearest to ``queries`` (N, F)."""
        values, rows = [], []
        for part in torch.split(queries.float(), 128):
            found = self._distances(part, self.train).topk(count, largest=False)
            values.append(found.values)
            rows.append(found.indices)
        return torch.cat(values), torch.cat(rows)


def memorisation(queries: Tensor, train: Tensor | Neighbours, *, shown: int = 4) -> Memorisation:
    """Return the memorisation ratios of ``queries`` (N, F) against ``train`` (M, F), in any one feature
    space.

    ``shown`` nearest rows a query are kept. A neighbourhood of exact copies has no width; its ratio is 1
    where the query is further away than they are, else 0. Raises :class:`InputError` for no queries, unlike
    widths or values that are not finite.
    """
    space = train if isinstance(train, Neighbours) else Neighbours(train)
    if queries.ndim != 2 or len(queries) == 0 or queries.shape[1] != space.train.shape[1]:
        raise InputError(
            f"queries must be (N, {space.train.shape[1]}), N >= 1; got shape {tuple(queries.shape)}"
        )
    if not (torch.isfinite(queries).all() and torch.isfinite(space.train).all()):
        raise InputError("features hold NaN or infinity; check the pictures that they come from")
    distances, rows = space.nearest(queries, shown)
    widths = torch.tensor([space.spread(int(row)) for row in rows[:, 0]])
    ratios = torch.where(widths > 0, distances[:, 0] / widths.clamp_min(1e-12), (distances[:, 0] > 0).float())
    return Memorisation(ratios, rows, mean_interval(ratios.tolist()))


def neighbours_figure(
    samples: Tensor, train: Tensor, found: Memorisation, labels: Sequence[str] | None = None
) -> Image.Image:
    """Draw each sample (N, 3, S, S) and, to its right, its nearest training pictures out of ``train`` (M, 3,
    S, S).

    Two samples a row. ``labels`` name the samples; the ratio is written before. ``found`` must be of exactly
    these samples.
    """
    if len(samples) != len(found.ratios) or (labels is not None and len(labels) != len(samples)):
        raise InputError(
            f"{len(samples)} samples need as many ratios and labels; got {len(found.ratios)} ratios"
        )
    pictures: list[Image.Image] = []
    captions: list[str] = []
    for number, (sample, rows) in enumerate(zip(samples, found.nearest, strict=True)):
        row = to_pil(torch.cat([sample[None], train[rows]]))
        pictures += [picture.resize((FIGURE_SIDE, FIGURE_SIDE), Image.Resampling.NEAREST) for picture in row]
        name = labels[number] if labels is not None else "sample"
        captions += [
            f"{found.ratios[number]:.2f} {name}",
            *(f"nearest {k}" for k in range(1, len(rows) + 1)),
        ]
    return grid(pictures, columns=2 * (1 + found.nearest.shape[1]), labels=captions)
