"""Runs the metrics that were asked for over one or two sets and puts every value beside its floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from vitrail.errors import InputError
from vitrail.evaluation import distribution, generation, metrics
from vitrail.evaluation.catalogue import CATALOGUE, PAIR_METRICS, SET_METRICS
from vitrail.evaluation.features import Features, FeatureSpace
from vitrail.evaluation.image_sets import ImageSet
from vitrail.evaluation.results import Floor, MetricFn, MetricResult
from vitrail.models.perceptual import LPIPS

__all__ = ["NEEDS_FEATURES", "Evaluation", "Progress", "choose", "evaluate_pairs", "evaluate_sets"]

Progress = Callable[[str, int, int], None]

SPLITS = 5
_CHANCE_PAIRS = 24

_PRDC = ("precision", "recall", "density", "coverage")
NEEDS_FEATURES = frozenset(
    {"frechet", "kernel", *_PRDC, "vendi", "mean_pairwise", "seed_variety", "seed_spread"}
)
"""Metrics that need a feature network."""


def _fast_frechet(x: Features, y: Features) -> float:
    return distribution.frechet_distance(x, y, exact=False)


def _one_of_prdc(which: str) -> Callable[[Features, Features], float]:
    def value(x: Features, y: Features) -> float:
        return float(getattr(distribution.prdc(y, x, generation.NEIGHBOURS), which))

    return value


_COMPARING: dict[str, Callable[[Features, Features], float]] = {
    "frechet": _fast_frechet,
    "kernel": distribution.kernel_distance,
    **{name: _one_of_prdc(name) for name in _PRDC},
}
_SINGLE: dict[str, Callable[[Features], float]] = {
    "vendi": distribution.vendi_score,
    "mean_pairwise": distribution.mean_pairwise_distance,
}


@dataclass
class Evaluation:
    """Everything that was measured of one set of pictures.

    kind: ``pairs`` (originals and what became of them) or ``sets``.  reference: the originals, or the real
    pictures, or None.  skipped: metric -> why it was not measured.  about: what made the pictures, versions.
    """

    kind: Literal["pairs", "sets"]
    pictures: ImageSet
    reference: ImageSet | None
    results: dict[str, MetricResult] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    space: FeatureSpace | None = None
    unmatched: tuple[str, ...] = ()


def choose(asked: Sequence[str], kind: Literal["pairs", "sets"]) -> tuple[str, ...]:
    """Return the metrics to measure: those asked for (commas allowed), else all of the kind.

    Raises :class:`InputError` for a name that is none, or that belongs to the other kind.
    """
    names = [name.strip() for text in asked for name in text.split(",") if name.strip()]
    known = (*PAIR_METRICS, "kernel", "sharpness") if kind == "pairs" else SET_METRICS
    for name in names:
        if name not in known:
            elsewhere = name in CATALOGUE
            what = (
                f"is not for {'pairs' if kind == 'pairs' else 'sets; add --paired'}"
                if elsewhere
                else "is unknown"
            )
            raise InputError(f"metric {name[:40]!r} {what}; there are {', '.join(known)}")
    if names:
        return tuple(dict.fromkeys(names))
    return PAIR_METRICS if kind == "pairs" else SET_METRICS


def evaluate_pairs(
    pictures: ImageSet,
    originals: ImageSet,
    names: Sequence[str] = PAIR_METRICS,
    *,
    network: LPIPS | None = None,
    space: FeatureSpace | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure pairs. ``network`` is needed for ``lpips``, ``space`` for ``frechet`` and ``kernel``."""
    table: dict[str, MetricFn] = {"psnr": metrics.psnr, "ssim": metrics.ssim, "ms_ssim": metrics.ms_ssim}
    if network is not None:
        table["lpips"] = metrics.lpips(network)
    out = Evaluation("pairs", pictures, originals, space=space)
    sets = _set_table(space, paired=True)
    for done, name in enumerate(names):
        _tell(progress, name, done, len(names))
        floor: Floor | None
        try:
            if name in table:
                result = table[name](pictures, originals)
                floor = _pair_floor(table[name], originals)
            else:
                result = sets[name](pictures, originals)
                floor = _set_floor(name, pictures, originals, space)
                if name in _COMPARING:  # the very same set is at 0, two sets of other pictures far from it
                    chance = floor.value if floor is not None else None
                    floor = Floor("identical", 0.0, len(originals), chance=chance)
        except (InputError, KeyError) as error:
            out.skipped[name] = _why(error)
            continue
        out.results[name] = result.with_floor(floor)
    _tell(progress, "", len(names), len(names))
    return out


def evaluate_sets(
    pictures: ImageSet,
    reference: ImageSet | None,
    names: Sequence[str] = SET_METRICS,
    *,
    space: FeatureSpace | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a set, against ``reference`` where there is one; ``space`` for :data:`NEEDS_FEATURES`."""
    out = Evaluation("sets", pictures, reference, space=space)
    table = _set_table(space)
    for done, name in enumerate(names):
        _tell(progress, name, done, len(names))
        try:
            result = table[name](pictures, reference)
            floor = _set_floor(name, pictures, reference, space)
        except (InputError, KeyError) as error:
            out.skipped[name] = _why(error)
            continue
        out.results[name] = result.with_floor(floor)
    _tell(progress, "", len(names), len(names))
    return out


def _tell(progress: Progress | None, what: str, done: int, total: int) -> None:
    if progress is not None:
        progress(what, done, total)


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else "its network is not there"


def _set_table(space: FeatureSpace | None, *, paired: bool = False) -> dict[str, MetricFn]:
    table: dict[str, MetricFn] = {
        "sharpness": metrics.sharpness,
        "blurry": metrics.blurry,
        "blank": metrics.blank,
    }
    if space is not None:
        table |= {
            "frechet": generation.frechet(space, paired=paired),
            "kernel": generation.kernel(space, paired=paired),
            "vendi": generation.vendi(space),
            "mean_pairwise": generation.mean_pairwise(space),
            "seed_variety": generation.seed_variety(space),
            "seed_spread": generation.seed_spread(space),
            **generation.prdc(space),
        }
    return table


def _pair_floor(measure: MetricFn, originals: ImageSet) -> Floor:
    """What a picture gets against itself, and what one gets against an unrelated one of the same size."""
    few = originals.subset(range(min(2, len(originals))))
    same = measure(few, few)
    by_size: dict[tuple[int, ...], list[int]] = {}
    for i in range(len(originals)):
        by_size.setdefault(originals.pixels(i).shape, []).append(i)
    rows = max(by_size.values(), key=len)[:_CHANCE_PAIRS]
    chance = None
    if len(rows) > 1:
        chance = measure(originals.subset(rows), originals.subset([*rows[1:], rows[0]])).value
    return Floor("identical", same.value, len(few), chance=chance)


def _set_floor(
    name: str, pictures: ImageSet, reference: ImageSet | None, space: FeatureSpace | None
) -> Floor | None:
    if reference is None:
        return None
    if name in _COMPARING and space is not None:
        return _halves(_COMPARING[name], space(pictures), space(reference))
    if name in _SINGLE and space is not None:
        return _same_number(_SINGLE[name], space(pictures), space(reference))
    if name == "sharpness":
        real = metrics.sharpness(reference)
        return Floor("reference", real.value, real.n, real.ci95)
    if name == "blank":
        real = metrics.blank(reference)
        return Floor("reference", real.value, real.n, real.ci95)
    if name == "blurry":
        return Floor("reference", 0.05, len(reference))
    return None


def _halves(value: Callable[[Features, Features], float], x: Features, y: Features) -> Floor | None:
    """Real against real: random halves of the real pictures, and the value at that number of pictures.

    The halves are no larger than the generated set, so that both can be compared at the same n.
    """
    half = min(len(y) // 2, len(x), 2500)
    if half <= 2 * generation.NEIGHBOURS:
        return None
    generator = np.random.default_rng(0)
    floors, matched = [], []
    for _ in range(SPLITS):
        order = generator.permutation(len(y))
        floors.append(value(y[order[:half]], y[order[half : 2 * half]]))
        matched.append(value(x[generator.permutation(len(x))[:half]], y[order[:half]]))
    return Floor(
        "halves", float(np.mean(floors)), half, (min(floors), max(floors)), matched=float(np.mean(matched))
    )


def _same_number(value: Callable[[Features], float], x: Features, y: Features) -> Floor:
    """The real pictures by themselves, at the same number as the generated ones."""
    count = min(len(x), len(y), 2500)
    generator = np.random.default_rng(0)
    splits = 1 if count == len(y) else SPLITS
    real = [value(y[generator.permutation(len(y))[:count]]) for _ in range(splits)]
    ours = [value(x[generator.permutation(len(x))[:count]]) for _ in range(1 if count == len(x) else SPLITS)]
    return Floor(
        "reference", float(np.mean(real)), count, (min(real), max(real)), matched=float(np.mean(ours))
    )
