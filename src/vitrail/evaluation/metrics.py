"""Metrics of pairs (is this picture the same as that one?) and of single pictures (sharp? blank?).

Each is a :data:`~vitrail.evaluation.results.MetricFn`. Pixels are 8-bit levels 0 to 255, arithmetic is
float64. Intervals are percentile bootstraps over pictures, or Wilson's for shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vitrail.errors import InputError
from vitrail.evaluation.image_sets import ImageSet
from vitrail.evaluation.results import Floor, MetricFn, MetricResult, jackknife
from vitrail.evaluation.stats import mean_interval, wilson
from vitrail.models.perceptual import LPIPS

__all__ = [
    "MAX_PSNR",
    "MS_SSIM_WEIGHTS",
    "blank",
    "blurry",
    "codes_used",
    "laplacian_variance",
    "lpips",
    "ms_ssim",
    "ms_ssim_of",
    "psnr",
    "sharpness",
    "ssim",
    "ssim_of",
]

MAX_PSNR = 20 * math.log10(255) + 10 * math.log10(12)
"""58.92 dB: rounding to bytes alone has a mean squared error of 1/12 level, so more cannot be told."""

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Wang, Simoncelli & Bovik, "Multi-scale structural similarity", Asilomar 2003, section 3.2; finest first."""

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_BOOTSTRAP = "percentile bootstrap over pictures, 4000 resamples"
_BLANK_SPREAD = 2.0  # levels: what lossy compression leaves on an even surface


def _paired(pictures: ImageSet, originals: ImageSet | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs as float64 levels (1, 3, H, W); InputError where there are no pairs."""
    if originals is None or len(originals) != len(pictures) or len(pictures) == 0:
        raise InputError("this metric compares pairs; give as many originals as pictures, at least one")
    for i in range(len(pictures)):
        a, b = _levels(pictures, i), _levels(originals, i)
        if a.shape != b.shape:
            raise InputError(f"the pair {pictures.keys[i]} differs in size; a pair must have one size")
        yield a, b


def _levels(images: ImageSet, i: int) -> Tensor:
    return torch.from_numpy(np.array(images.pixels(i))).permute(2, 0, 1)[None].double()


def _mean_result(name: str, values: list[float], settings: dict[str, Any]) -> MetricResult:
    estimate = mean_interval(values)
    return MetricResult(
        name,
        estimate.value,
        estimate.n,
        (estimate.low, estimate.high),
        _BOOTSTRAP,
        settings,
        each=np.asarray(values, dtype=np.float64),
    )


def psnr(pictures: ImageSet, originals: ImageSet | None) -> MetricResult:
    """Mean over pairs of ``20 log10(255 / rmse)``, in dB; equal pictures count :data:`MAX_PSNR`."""
    values = []
    for a, b in _paired(pictures, originals):
        error = float((a - b).square().mean())
        values.append(MAX_PSNR if error <= 1 / 12 else 20 * math.log10(255) - 10 * math.log10(error))
    return _mean_result("psnr", values, {"peak": 255, "channels": "RGB", "cap_db": round(MAX_PSNR, 2)})


def ssim(pictures: ImageSet, originals: ImageSet | None) -> MetricResult:
    """Mean structural similarity over pairs, 1 for equal pictures; see :func:`ssim_of`."""
    values = [float(ssim_of(a, b)) for a, b in _paired(pictures, originals)]
    return _mean_result("ssim", values, {"window": "Gaussian 11x11, sigma 1.5", "channels": "RGB mean"})


def ms_ssim(pictures: ImageSet, originals: ImageSet | None) -> MetricResult:
    """Mean multi-scale structural similarity over pairs; see :func:`ms_ssim_of`.

    Pictures too small for five scales get as many as fit, the weights scaled to sum 1; the settings say so,
    and such a value must not be compared with one of five scales. A set of several sizes uses the fewest.
    """
    scales = min(_scales(a) for a, _ in _paired(pictures, originals))
    values = [float(ms_ssim_of(a, b, scales)) for a, b in _paired(pictures, originals)]
    settings = {"window": "Gaussian 11x11, sigma 1.5", "scales": scales, "channels": "RGB mean"}
    return _mean_result("ms_ssim", values, settings)


def _scales(x: Tensor) -> int:
    side = min(x.shape[-2:])
    if side < _WINDOW:
        raise InputError(f"SSIM needs pictures of {_WINDOW} pixels a side or more; one has {side}")
    return min(len(MS_SSIM_WEIGHTS), int(math.log2(side / _WINDOW)) + 1)


def _blurred(x: Tensor) -> Tensor:
    """Filter every channel with the Gaussian window, without padding: (B, C, H - 10, W - 10)."""
    offset = torch.arange(_WINDOW, dtype=x.dtype) - _WINDOW // 2
    line = torch.exp(-(offset**2) / (2 * _SIGMA**2))
    line = line / line.sum()
    channels = x.shape[1]
    x = functional.conv2d(x, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return functional.conv2d(x, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def _ssim_parts(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean SSIM and mean contrast-structure term over places, (B, C) each."""
    if min(a.shape[-2:]) < _WINDOW:
        raise InputError(
            f"SSIM needs pictures of {_WINDOW} pixels a side or more; one has {min(a.shape[-2:])}"
        )
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a, var_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    contrast = (2 * covariance + _C2) / (var_a + var_b + _C2)
    full = contrast * (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return full.mean((2, 3)), contrast.mean((2, 3))


def ssim_of(a: Tensor, b: Tensor) -> Tensor:
    """Return the structural similarity (B,) of pictures (B, C, H, W) of levels 0 to 255, sides >= 11.

    Wang et al., IEEE Transactions on Image Processing 13 (2004) 600-612, equation 13: Gaussian window of
    11 x 11 with sigma 1.5, no padding, population covariances, K1 = 0.01, K2 = 0.03; mean over channels.
    """
    return _ssim_parts(a, b)[0].mean(1)


def ms_ssim_of(a: Tensor, b: Tensor, scales: int = 5) -> Tensor:
    """Return multi-scale structural similarity (B,): contrast terms of all scales, luminance of the coarsest.

    Between scales both pictures are averaged 2 x 2. The product is taken for each channel, then averaged.
    Negative mean terms count as 0, since they have no real power. ``scales`` below 5 uses the first weights,
    scaled to sum 1.
    """
    weights = np.asarray(MS_SSIM_WEIGHTS[:scales])
    weights = weights / weights.sum()
    product = torch.ones(a.shape[:2], dtype=a.dtype)
    for scale, weight in enumerate(weights):
        if scale > 0:
            a, b = functional.avg_pool2d(a, 2), functional.avg_pool2d(b, 2)
        full, contrast = _ssim_parts(a, b)
        part = full if scale == scales - 1 else contrast
        product = product * part.clamp_min(0) ** float(weight)
    return product.mean(1)


def lpips(network: LPIPS) -> MetricFn:
    """Return the metric "mean LPIPS over pairs" for a loaded network; pictures need sides of 16 or more."""

    @torch.no_grad()
    def measure(pictures: ImageSet, originals: ImageSet | None) -> MetricResult:
        for _ in _paired(pictures, originals):
            break
        assert originals is not None
        values: list[float] = []
        for i in range(len(pictures)):
            values.append(float(network(pictures.tensor(i), originals.tensor(i))))
        settings = {"network": "VGG16, LPIPS 0.1 heads", "resize": "none"}
        return _mean_result("lpips", values, settings)

    return measure


# -- single pictures -----------------------------------------------------------------------------------------

_LUMA = np.asarray([0.299, 0.587, 0.114])


def laplacian_variance(levels: np.ndarray[Any, Any]) -> float:
    """Return the variance of the 4-neighbour Laplacian of luma (H, W, 3, levels 0 to 255), edges mirrored.

    Pech-Pacheco et al., ICPR 2000: large where a picture has edges, near 0 where it is blurred or empty.
    """
    luma = np.pad(levels.astype(np.float64) @ _LUMA, 1, mode="symmetric")
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * luma[1:-1, 1:-1]
    return float(laplacian.var())


def sharpness(pictures: ImageSet, _: ImageSet | None = None) -> MetricResult:
    """Mean variance of the Laplacian; depends on the size of the pictures and on what they show."""
    values = [laplacian_variance(pictures.pixels(i)) for i in range(len(pictures))]
    return _mean_result("sharpness", values, {"sizes": pictures.sizes, "filter": "4-neighbour Laplacian"})


def blurry(pictures: ImageSet, originals: ImageSet | None) -> MetricResult:
    """Share of pictures that are blurrier than 95 % of the real ones: 0.05 for real pictures."""
    if originals is None:
        raise InputError("blurry compares with real pictures; give some to compare with")
    real = [laplacian_variance(originals.pixels(i)) for i in range(len(originals))]
    limit = float(np.percentile(real, 5))
    values = [laplacian_variance(pictures.pixels(i)) for i in range(len(pictures))]
    share = wilson(sum(value < limit for value in values), len(values))
    settings = {"limit": limit, "limit_from": f"5th percentile of {len(real)} real pictures"}
    return MetricResult("blurry", share.value, share.n, (share.low, share.high), "Wilson", settings)


def blank(pictures: ImageSet, _: ImageSet | None = None) -> MetricResult:
    """Share of pictures that are one even colour, or that came out as NaN and could not be written at all."""
    even = sum(
        float(pictures.pixels(i).reshape(-1, 3).astype(np.float64).std(axis=0).max()) < _BLANK_SPREAD
        for i in range(len(pictures))
    )
    share = wilson(even + pictures.failed, len(pictures) + pictures.failed)
    settings = {
        "even": even,
        "not_finite": pictures.failed,
        "limit": f"standard deviation below {_BLANK_SPREAD} levels in every channel",
    }
    return MetricResult("blank", share.value, share.n, (share.low, share.high), "Wilson", settings)


def codes_used(codes: np.ndarray[Any, Any], codebook_size: int) -> dict[str, MetricResult]:
    """Return how much of a codebook of K codes the pictures' codes (N, ...) use.

    ``codes_used``: share of the K codes that occur at all (it grows with N).  ``codes_perplexity``: the
    exponential of the entropy of how often each occurs, 1 (one code only) to K (all equally often).
    """
    table = np.asarray(codes).reshape(len(codes), -1)
    if table.size == 0 or table.min() < 0 or table.max() >= codebook_size:
        raise InputError(f"codes must lie in 0 to {codebook_size - 1}, and there must be some")
    counts = [np.unique(row, return_counts=True) for row in table]

    def total(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
        sums = np.zeros(codebook_size)
        for row in rows:
            sums[counts[row][0]] += counts[row][1]
        return sums

    def perplexity(rows: np.ndarray[Any, Any]) -> float:
        share = total(rows) / total(rows).sum()
        share = share[share > 0]
        return float(np.exp(-(share * np.log(share)).sum()))

    def used(rows: np.ndarray[Any, Any]) -> float:
        return float((total(rows) > 0).mean())

    # Expected number of different codes in m draws of K equally likely ones, and all K for the perplexity.
    reachable = 1 - (1 - 1 / codebook_size) ** table.size
    floors = {"codes_used": reachable, "codes_perplexity": float(codebook_size)}
    everything = np.arange(len(table))
    settings = {"codebook_size": codebook_size, "codes_a_picture": table.shape[1]}
    results = {}
    statistics: list[tuple[str, Callable[[np.ndarray[Any, Any]], float], tuple[float, float]]] = [
        ("codes_used", used, (0.0, 1.0)),
        ("codes_perplexity", perplexity, (1.0, float(codebook_size))),
    ]
    for name, statistic, bounds in statistics:
        value = statistic(everything)
        interval, how = jackknife(statistic, (len(table),), value, bounds=bounds)
        floor = Floor("uniform", floors[name], len(table))
        results[name] = MetricResult(name, value, len(table), interval, how, settings, floor)
    return results
