"""Intervals for what is measured on a sample: shares, means, and one share against another.

Every figure that vitrail prints carries its n and a 95 % interval. For a share that is Wilson's interval,
which stays inside [0, 1] and keeps its coverage at small n and near the ends, where the textbook interval
does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitrail.errors import InputError

__all__ = ["Estimate", "mean_interval", "share_of", "wilson"]

Z95 = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval ``[low, high]`` and the number ``n`` of pictures behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.n}"


def wilson(hits: int, n: int, z: float = Z95) -> Estimate:
    """Return the share ``hits / n`` with Wilson's score interval.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927)
    209-212. The trials must be independent: one picture a prompt, not many pictures of the same few prompts.
    Raises :class:`InputError` unless ``0 <= hits <= n`` and ``n >= 1``.
    """
    if n < 1 or not 0 <= hits <= n:
        raise InputError(f"{hits} hits of {n} is no share; give n >= 1 and 0 <= hits <= n")
    share = hits / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the interval closes exactly on 0 and 1; rounding must not push it past the value.
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == n else min(1.0, centre + half)
    return Estimate(share, low, high, n)


def mean_interval(values: Sequence[float], *, resamples: int = 4000, seed: int = 0) -> Estimate:
    """Return the mean of ``values`` with its percentile bootstrap interval (Efron, Annals of Statistics 7,
    1979).

    The bootstrap is used because ratios of distances are skewed. Deterministic in ``seed``. Raises
    :class:`InputError` for no values or a value that is not finite.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0 or not np.isfinite(data).all():
        raise InputError(f"a mean needs a flat list of one or more finite numbers; got shape {data.shape}")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 500):  # a block at a time: resamples x n can be large
        stop = min(start + 500, resamples)
        picks = generator.integers(0, data.size, size=(stop - start, data.size))
        means[start:stop] = data[picks].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(data.mean()), float(low), float(high), int(data.size))


def share_of(part: Estimate, whole: Estimate) -> Estimate:
    """Return ``part.value / whole.value``, two independent shares, with the interval of the ratio of two
    shares.

    Katz, Baptista, Azen & Pike, Biometrics 34 (1978) 469-474: the logarithm of the ratio is about normal with
    variance ``(1 - p) / (n p) + (1 - q) / (m q)``. A share of 0 has no logarithm; half a hit is counted in
    the variance then. ``n`` of the answer is the smaller of the two. Raises :class:`InputError` where
    ``whole`` is 0.
    """
    if whole.value <= 0:
        raise InputError("a ratio to a share of 0 is undefined; the ceiling must be above 0")
    ratio = part.value / whole.value
    p = max(part.value, 0.5 / part.n)
    spread = math.sqrt((1 - p) / (part.n * p) + (1 - whole.value) / (whole.n * whole.value))
    centre = p / whole.value
    low = 0.0 if part.value == 0 else centre * math.exp(-Z95 * spread)
    return Estimate(ratio, low, centre * math.exp(Z95 * spread), min(part.n, whole.n))
