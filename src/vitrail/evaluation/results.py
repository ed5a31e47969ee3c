"""What a metric says: a value with n, an interval, its settings, and what real pictures would get."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from vitrail.evaluation.image_sets import ImageSet

__all__ = ["Floor", "MetricFn", "MetricResult", "jackknife"]

MetricFn = Callable[[ImageSet, ImageSet | None], "MetricResult"]
"""A metric takes pictures and, where it compares, the real ones; it never sees what made them."""

GROUPS = 20
_T_95 = {  # 97.5 % points of Student's t: 2 to 20 groups leave 1 to 19 degrees of freedom
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
    10: 2.228,
    11: 2.201,
    12: 2.179,
    13: 2.160,
    14: 2.145,
    15: 2.131,
    16: 2.120,
    17: 2.110,
    18: 2.101,
    19: 2.093,
}


@dataclass(frozen=True)
class Floor:
    """What the same metric gives where nothing generated is involved: the scale to read a value on.

    kind: ``halves`` one half of the real pictures against the other (mean of several random splits);
        ``reference`` the real pictures by themselves; ``identical`` a picture against itself;
        ``uniform`` codes that are all equally likely.
    n: pictures in each half, or in the set.
    spread: smallest and largest over the splits, or the interval of the reference's value.
    matched: the value with as many pictures as the floor has, since most of these metrics depend on n.
    chance: what unrelated real pictures get, for metrics of pairs.
    """

    kind: Literal["halves", "reference", "identical", "uniform"]
    value: float
    n: int
    spread: tuple[float, float] | None = None
    matched: float | None = None
    chance: float | None = None


@dataclass(frozen=True)
class MetricResult:
    """One measured figure.

    name: key of the metric.  n: pictures (or runs) behind it.  ci95: 95 % interval, None where none can be
    had.  interval: how the interval was made.  settings: everything needed to repeat it.  each: the value of
    every single picture, where the metric has one (not written to the JSON file's main table).
    """

    name: str
    value: float
    n: int
    ci95: tuple[float, float] | None = None
    interval: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    floor: Floor | None = None
    each: np.ndarray[Any, np.dtype[np.float64]] | None = field(default=None, compare=False, repr=False)

    def with_floor(self, floor: Floor | None) -> MetricResult:
        """Return the same result beside ``floor``."""
        return replace(self, floor=floor)

    def as_json(self) -> dict[str, Any]:
        """Return plain data for JSON; a value that is not finite becomes None."""
        plain: dict[str, Any] = {
            "value": _finite(self.value),
            "n": self.n,
            "ci95": None if self.ci95 is None else [_finite(end) for end in self.ci95],
            "interval": self.interval,
            "settings": self.settings,
            "floor": None,
        }
        if self.floor is not None:
            plain["floor"] = {
                "kind": self.floor.kind,
                "value": _finite(self.floor.value),
                "n": self.floor.n,
                "spread": None if self.floor.spread is None else [_finite(x) for x in self.floor.spread],
                "value_at_same_n": _finite(self.floor.matched),
                "unrelated": _finite(self.floor.chance),
            }
        return plain


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def jackknife(
    statistic: Callable[..., float],
    counts: tuple[int, ...],
    value: float,
    *,
    groups: int = GROUPS,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    seed: int = 0,
) -> tuple[tuple[float, float] | None, str]:
    """Return the 95 % interval of a statistic of one or two sets, and how it was made.

    The delete-a-group jackknife (Kott, Journal of Official Statistics 17 (2001) 521-526): a set is cut at
    random into ``groups`` parts and the statistic is taken without each part in turn; with g parts the
    variance is ``(g - 1) / g * sum (theta_j - mean theta)^2``, and the variances of independent sets add up.
    Unlike the bootstrap it never draws a picture twice, which would ruin every statistic that looks at
    nearest neighbours or at the number of distinct pictures. Student's t with g - 1 degrees of freedom.

    statistic: of one array of kept row numbers for each set.  counts: pictures in each set.  bounds: smallest
    and largest value that make sense.  None where a set has fewer than 4 pictures.
    """
    if min(counts) < 4:
        return None, "no interval: fewer than 4 pictures"
    generator = np.random.default_rng(seed)
    everything = [np.arange(count) for count in counts]
    variance, least = 0.0, groups
    for which, count in enumerate(counts):
        parts = np.array_split(generator.permutation(count), min(groups, count))
        least = min(least, len(parts))
        found = []
        for part in parts:
            rows = list(everything)
            rows[which] = np.delete(everything[which], part)
            found.append(statistic(*rows))
        deviations = np.asarray(found) - np.mean(found)
        variance += (len(parts) - 1) / len(parts) * float((deviations**2).sum())
    half = _T_95[min(least - 1, 19)] * math.sqrt(variance)
    low, high = max(bounds[0], value - half), min(bounds[1], value + half)
    return (low, high), f"delete-a-group jackknife, {least} groups of each set, Student's t"
