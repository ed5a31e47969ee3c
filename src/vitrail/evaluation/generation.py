"""Metrics of whole sets: is what was generated like the real pictures, and is it varied?

Factories that close over a feature space and return a :data:`~vitrail.evaluation.results.MetricFn`; the
formulas are in :mod:`vitrail.evaluation.distribution`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vitrail.errors import InputError
from vitrail.evaluation import distribution
from vitrail.evaluation.features import Features, FeatureSpace
from vitrail.evaluation.image_sets import ImageSet
from vitrail.evaluation.results import MetricFn, MetricResult, jackknife

__all__ = ["NEIGHBOURS", "frechet", "kernel", "mean_pairwise", "prdc", "seed_spread", "seed_variety", "vendi"]

NEIGHBOURS = 5
"""k of precision, recall, density and coverage."""

MAX_PICTURES = 5000
"""More than these of either set are not used where all pairs are compared: a table of 5000^2 is 200 MB."""


def _needed(reference: ImageSet | None, least: int = 2) -> ImageSet:
    if reference is None or len(reference) < least:
        raise InputError(
            f"this metric compares with real pictures; give at least {least} of them to compare with"
        )
    return reference


def _capped(images: ImageSet) -> ImageSet:
    """At most :data:`MAX_PICTURES` of the set, spread evenly."""
    if len(images) <= MAX_PICTURES:
        return images
    return images.subset([i * len(images) // MAX_PICTURES for i in range(MAX_PICTURES)])


def _counts(x: Features, y: Features) -> dict[str, int]:
    return {"n_generated": len(x), "n_real": len(y)}


def frechet(space: FeatureSpace, *, paired: bool = False) -> MetricFn:
    """Return the Frechet distance in ``space``; it is shown as "FD-<space>", never as FID.

    paired: the i-th pictures belong together (originals and reconstructions), so that the interval must leave
    out both at once.
    """

    def measure(pictures: ImageSet, reference: ImageSet | None) -> MetricResult:
        x, y = space(pictures), space(_needed(reference))
        value = distribution.frechet_distance(x, y)
        # The cost grows with the cube of the smaller of n and D: fewer groups where one turn takes a second.
        groups = 20 if min(len(x), len(y), x.shape[1]) <= 600 else 8
        interval, how = jackknife(
            lambda rows, *others: distribution.frechet_distance(
                x[rows], y[others[0] if others else rows], exact=False
            ),
            (len(x),) if paired else (len(x), len(y)),
            value,
            groups=groups,
            bounds=(0, np.inf),
        )
        return MetricResult(
            "frechet",
            value,
            len(x),
            interval,
            how,
            {"space": space.name, **space.settings, **_counts(x, y), "biased": "upwards"},
        )

    return measure


def kernel(space: FeatureSpace, *, paired: bool = False) -> MetricFn:
    """Return the unbiased kernel distance (polynomial MMD) in ``space``; ``paired`` as in :func:`frechet`."""

    def measure(pictures: ImageSet, reference: ImageSet | None) -> MetricResult:
        x, y = space(_capped(pictures)), space(_capped(_needed(reference)))
        sums = distribution.KernelSums(x, y)
        value = sums.distance()
        interval, how = jackknife(
            lambda rows, *others: sums.distance(
                _left_out(rows, len(x)), _left_out(others[0] if others else rows, len(y))
            ),
            (len(x),) if paired else (len(x), len(y)),
            value,
        )
        settings = {**space.settings, **_counts(x, y), "kernel": "(a.b / D + 1)^3"}
        return MetricResult("kernel", value, len(x), interval, how, settings)

    return measure


def _left_out(rows: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.setdiff1d(np.arange(count), rows)


class _Neighbourhoods:
    """Distances of the last two sets, and the four figures of every part of them that was asked for.

    Precision, recall, density and coverage share all their work, and their intervals leave out the same rows.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self._of: tuple[ImageSet, ImageSet] | None = None
        self._known: dict[tuple[bytes, bytes], distribution.Prdc] = {}

    def look(self, pictures: ImageSet, reference: ImageSet, x: Features, y: Features) -> None:
        """Take up two sets, unless they are those of last time."""
        if self._of is None or self._of[0] is not pictures or self._of[1] is not reference:
            self._of, self._known = (pictures, reference), {}
            self._real, self._fake = (distribution.squared_distances(z, z) for z in (y, x))
            self._across = distribution.squared_distances(y, x)

    def figures(self, rows: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> distribution.Prdc:
        """Return the figures of the generated pictures ``rows`` and the real ones ``others``."""
        key = (rows.tobytes(), others.tobytes())
        if key not in self._known:
            self._known[key] = distribution.prdc_from(
                self._real[np.ix_(others, others)],
                self._fake[np.ix_(rows, rows)],
                self._across[np.ix_(others, rows)],
                self._k,
            )
        return self._known[key]


def prdc(space: FeatureSpace, k: int = NEIGHBOURS) -> dict[str, MetricFn]:
    """Return ``precision``, ``recall``, ``density`` and ``coverage`` in ``space``."""
    shared = _Neighbourhoods(k)
    return {which: _one_of_prdc(space, which, k, shared) for which in distribution.Prdc._fields}


def _one_of_prdc(space: FeatureSpace, which: str, k: int, shared: _Neighbourhoods) -> MetricFn:
    def measure(pictures: ImageSet, reference: ImageSet | None) -> MetricResult:
        x, y = space(_capped(pictures)), space(_capped(_needed(reference, k + 1)))
        if len(x) <= k:
            raise InputError(f"{which} needs more than {k} pictures in each set; got {len(x)}")
        shared.look(pictures, _needed(reference), x, y)

        def statistic(rows: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> float:
            return float(getattr(shared.figures(rows, others), which))

        value = statistic(np.arange(len(x)), np.arange(len(y)))
        interval, how = None, "no interval: too few pictures"
        groups = 20 if len(x) + len(y) <= 4000 else 8
        if min(len(x), len(y)) > 2 * k:
            bounds = (0.0, np.inf if which == "density" else 1.0)
            interval, how = jackknife(statistic, (len(x), len(y)), value, groups=groups, bounds=bounds)
        settings = {**space.settings, **_counts(x, y), "k": k}
        return MetricResult(which, value, len(x), interval, how, settings)

    return measure


def _single(
    name: str, space: FeatureSpace, formula: Callable[[Features], float], low: float, note: dict[str, Any]
) -> MetricFn:
    def measure(pictures: ImageSet, _: ImageSet | None = None) -> MetricResult:
        x = space(_capped(pictures))
        value = formula(x)
        interval, how = jackknife(lambda rows: formula(x[rows]), (len(x),), value, bounds=(low, np.inf))
        return MetricResult(name, value, len(x), interval, how, {**space.settings, **note})

    return measure


def vendi(space: FeatureSpace) -> MetricFn:
    """Return the Vendi score: the effective number of different pictures."""
    return _single("vendi", space, distribution.vendi_score, 1.0, {"similarity": "cosine", "order": 1})


def mean_pairwise(space: FeatureSpace) -> MetricFn:
    """Return the mean distance ``1 - cosine`` of all pairs of pictures."""
    note = {"distance": "1 - cosine"}
    return _single("mean_pairwise", space, distribution.mean_pairwise_distance, 0.0, note)


def _by_prompt(pictures: ImageSet) -> dict[str, list[int]]:
    table: dict[str, list[int]] = {}
    for i, shot in enumerate(pictures.shots or ()):
        if shot is not None:
            table.setdefault(shot.prompt, []).append(i)
    return table


def seed_variety(space: FeatureSpace) -> MetricFn:
    """Return how different the seeds of one prompt are: distance within a prompt over distance in all.

    Mean ``1 - cosine`` between pictures of one prompt and different seeds, averaged over prompts, divided by
    the mean over pictures of different prompts. 0: every seed gives the same picture (the seed is ignored);
    1: a picture has no more in common with its own prompt's others than with any (the prompt is ignored).
    """

    def measure(pictures: ImageSet, _: ImageSet | None = None) -> MetricResult:
        table = {prompt: rows for prompt, rows in _by_prompt(pictures).items() if len(rows) > 1}
        if len(table) < 2:
            raise InputError("this metric needs two prompts or more with two seeds or more each")
        x = space(pictures)
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        groups = list(table.values())

        def statistic(chosen: np.ndarray[Any, Any]) -> float:
            sums = np.stack([unit[groups[i]].sum(axis=0) for i in chosen])
            sizes = np.asarray([len(groups[i]) for i in chosen], dtype=np.float64)
            inner = (sums**2).sum(axis=1)
            within = float((1 - (inner - sizes) / (sizes * (sizes - 1))).mean())
            pairs = sizes.sum() ** 2 - (sizes**2).sum()
            between = 1 - ((sums.sum(axis=0) ** 2).sum() - inner.sum()) / pairs
            return within / max(float(between), 1e-12)

        value = statistic(np.arange(len(groups)))
        interval, how = jackknife(statistic, (len(groups),), value, bounds=(0, np.inf))
        settings = {**space.settings, "prompts": len(groups), "distance": "1 - cosine"}
        return MetricResult(
            "seed_variety", value, sum(map(len, groups)), interval, how + " (of prompts)", settings
        )

    return measure


def seed_spread(space: FeatureSpace) -> MetricFn:
    """Return how much the quality depends on luck: spread of the kernel distance between seeds.

    The pictures are split by how manieth seed of their prompt they are; each split is one run of all prompts.
    The value is the standard deviation of the runs' kernel distances to the real pictures; its interval is
    that of a standard deviation of normal values (chi-squared).
    """

    def measure(pictures: ImageSet, reference: ImageSet | None) -> MetricResult:
        table = _by_prompt(pictures)
        runs = min((len(rows) for rows in table.values()), default=0)
        if runs < 2 or len(table) < 4:
            raise InputError("this metric needs four prompts or more with two seeds or more each")
        y = space(_capped(_needed(reference)))
        assert pictures.shots is not None
        x = space(pictures)
        ordered = [sorted(rows, key=lambda i: _seed(pictures, i)) for rows in table.values()]
        found = np.asarray(
            [distribution.kernel_distance(x[[rows[run] for rows in ordered]], y) for run in range(runs)]
        )
        value = float(found.std(ddof=1))
        low, high = _chi_squared_95(runs - 1)
        interval = (value * np.sqrt((runs - 1) / high), value * np.sqrt((runs - 1) / low))
        settings = {
            **space.settings,
            "runs": [float(v) for v in found],
            "prompts": len(table),
            "of": "kernel distance",
        }
        return MetricResult(
            "seed_spread",
            value,
            runs,
            (float(interval[0]), float(interval[1])),
            "chi-squared, runs taken as normal",
            settings,
        )

    return measure


def _seed(pictures: ImageSet, i: int) -> int:
    shot = pictures.shots[i] if pictures.shots is not None else None
    return shot.seed if shot is not None else 0


def _chi_squared_95(freedom: int) -> tuple[float, float]:
    """Return the 2.5 and 97.5 % points of chi-squared: exact for 1 to 9 degrees, Wilson-Hilferty above."""
    exact = {
        1: (0.000982, 5.0239),
        2: (0.0506, 7.3778),
        3: (0.2158, 9.3484),
        4: (0.4844, 11.1433),
        5: (0.8312, 12.8325),
        6: (1.2373, 14.4494),
        7: (1.6899, 16.0128),
        8: (2.1797, 17.5345),
        9: (2.7004, 19.0228),
    }
    if freedom in exact:
        return exact[freedom]
    step = 2 / (9 * freedom)
    low, high = (freedom * (1 - step + sign * 1.959964 * step**0.5) ** 3 for sign in (-1, 1))
    return low, high
