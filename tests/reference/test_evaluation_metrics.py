"""Every metric against another implementation or a case whose answer is known on paper."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from pytorch_msssim import ms_ssim as reference_ms_ssim
from scipy import linalg, ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.image.kid import poly_mmd

from vitrail.errors import InputError
from vitrail.evaluation import distribution, metrics
from vitrail.evaluation.features import PixelSpace
from vitrail.evaluation.generation import (
    frechet,
    kernel,
    mean_pairwise,
    prdc,
    seed_spread,
    seed_variety,
    vendi,
)
from vitrail.evaluation.image_sets import ImageSet, Shot
from vitrail.evaluation.results import jackknife


def noisy_pair(
    seed: int, height: int = 48, width: int = 61
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A smooth picture and the same with noise, (H, W, 3) uint8."""
    generator = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(generator.uniform(0, 255, (height, width, 3)), (3, 3, 0))
    smooth = np.clip((smooth - smooth.mean()) * 6 + 128, 0, 255)
    noisy = np.clip(smooth + generator.normal(0, 12, smooth.shape), 0, 255)
    return smooth.astype(np.uint8), noisy.astype(np.uint8)


def as_set(*pictures: np.ndarray[Any, Any], shots: list[Shot] | None = None) -> ImageSet:
    return ImageSet.from_arrays("set", list(pictures), shots=shots)


def levels(picture: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].double()


# -- pairs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_psnr_equals_scikit_image(seed: int) -> None:
    a, b = noisy_pair(seed)
    c, d = noisy_pair(seed + 10)
    result = metrics.psnr(as_set(b, d), as_set(a, c))
    expected = [peak_signal_noise_ratio(a, b, data_range=255), peak_signal_noise_ratio(c, d, data_range=255)]
    assert result.each is not None
    np.testing.assert_allclose(result.each, expected, rtol=1e-12)
    assert result.value == pytest.approx(np.mean(expected))
    assert result.n == 2
    assert result.ci95 is not None
    assert result.ci95[0] <= result.value <= result.ci95[1]


def test_psnr_of_equal_pictures_is_what_bytes_can_tell() -> None:
    a, _ = noisy_pair(0)
    assert metrics.psnr(as_set(a), as_set(a)).value == pytest.approx(58.92, abs=0.01)


@pytest.mark.parametrize("size", [(48, 61), (11, 11), (32, 200)])
def test_ssim_equals_scikit_image(size: tuple[int, int]) -> None:
    a, b = noisy_pair(3, *size)
    # Wang's own settings; scikit-image crops its border to the same places that need no padding.
    expected = structural_similarity(
        a, b, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert metrics.ssim(as_set(b), as_set(a)).value == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("scales", [5, 4, 2])
def test_ms_ssim_equals_pytorch_msssim(scales: int) -> None:
    a, b = noisy_pair(4, 176, 192)
    weights = np.asarray(metrics.MS_SSIM_WEIGHTS[:scales])
    expected = reference_ms_ssim(
        levels(b).float(), levels(a).float(), data_range=255, weights=list(weights / weights.sum())
    )
    # The reference works in float32, where variances of levels up to 255 lose four digits.
    assert float(metrics.ms_ssim_of(levels(b), levels(a), scales)) == pytest.approx(float(expected), abs=2e-5)


@pytest.mark.parametrize(("side", "scales"), [(176, 5), (175, 4), (88, 4), (64, 3), (22, 2), (21, 1)])
def test_ms_ssim_takes_the_scales_that_fit_and_says_so(side: int, scales: int) -> None:
    a, b = noisy_pair(4, side, side + 5)
    result = metrics.ms_ssim(as_set(b), as_set(a))
    assert result.settings["scales"] == scales
    assert 0 < result.value < 1
    if scales == 1:
        assert result.value == pytest.approx(metrics.ssim(as_set(b), as_set(a)).value)


def test_metrics_of_pairs_are_best_for_equal_pictures_and_refuse_sets_that_are_no_pairs() -> None:
    a, b = noisy_pair(5)
    for metric in (metrics.ssim, metrics.ms_ssim):
        assert metric(as_set(a), as_set(a)).value == pytest.approx(1)
        assert metric(as_set(b), as_set(a)).value < 0.99
    for metric in (metrics.psnr, metrics.ssim, metrics.ms_ssim):
        with pytest.raises(InputError, match="compares pairs"):
            metric(as_set(a), None)
        with pytest.raises(InputError, match="compares pairs"):
            metric(as_set(a, b), as_set(a))
    with pytest.raises(InputError, match="11 pixels"):
        metrics.ssim(as_set(a[:10]), as_set(b[:10]))


# -- single pictures -----------------------------------------------------------------------------------------


def test_sharpness_equals_scipys_laplacian() -> None:
    a, b = noisy_pair(6)
    for picture in (a, b):
        luma = picture.astype(np.float64) @ [0.299, 0.587, 0.114]
        expected = ndimage.laplace(luma, mode="reflect").var()
        assert metrics.laplacian_variance(picture) == pytest.approx(expected, rel=1e-12)
    result = metrics.sharpness(as_set(a, b))
    assert result.value == pytest.approx((metrics.laplacian_variance(a) + metrics.laplacian_variance(b)) / 2)


def test_blurry_counts_what_lies_below_the_fifth_percentile_of_real_pictures() -> None:
    real = as_set(*(noisy_pair(seed)[1] for seed in range(40)))
    soft = as_set(*(noisy_pair(seed)[0] for seed in range(6)))
    assert metrics.blurry(soft, real).value == 1.0
    assert metrics.blurry(real, real).value == pytest.approx(2 / 40)
    with pytest.raises(InputError, match="to compare with"):
        metrics.blurry(soft, None)


def test_blank_counts_even_pictures_and_those_that_were_no_numbers() -> None:
    x = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x[1] = 0.3
    x[2, 0, 0, 0] = float("nan")
    x[3, 1, 4, 4] = float("inf")
    images = ImageSet.from_tensor("x", x)
    assert images.keys == ("00000", "00001", "00004")
    result = metrics.blank(images)
    assert (result.value, result.n) == (3 / 5, 5)
    assert (result.settings["even"], result.settings["not_finite"]) == (1, 2)


def test_codes_used_and_perplexity() -> None:
    even = np.arange(64).reshape(4, 4, 4)
    found = metrics.codes_used(even, 128)
    assert found["codes_used"].value == 0.5
    assert found["codes_perplexity"].value == pytest.approx(64)
    one = metrics.codes_used(np.full((5, 2, 2), 7), 128)
    assert one["codes_used"].value == 1 / 128
    assert one["codes_perplexity"].value == pytest.approx(1)
    # Two codes, three to one: entropy by hand.
    skewed = metrics.codes_used(np.asarray([[0, 0, 0, 1]] * 6), 2)["codes_perplexity"].value
    assert skewed == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    with pytest.raises(InputError, match="0 to 127"):
        metrics.codes_used(np.asarray([[128]]), 128)


# -- sets ----------------------------------------------------------------------------------------------------


def cloud(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(d, d)) / math.sqrt(d)
    return generator.normal(size=(n, d)) @ mix + shift


def textbook_frechet(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    """The formula as it is written, with scipy's matrix square root."""
    sx, sy = np.cov(x.T), np.cov(y.T)
    root = linalg.sqrtm(sx @ sy).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sx + sy - 2 * root))


@pytest.mark.parametrize(("n", "m", "d"), [(60, 80, 7), (200, 40, 30)])
def test_frechet_equals_the_textbook(n: int, m: int, d: int) -> None:
    x, y = cloud(n, d, 0), cloud(m, d, 1, 0.5)
    expected = textbook_frechet(x, y)
    assert distribution.frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert distribution.frechet_distance(x, y, exact=False) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_clouds_with_known_moments() -> None:
    # Points +-s e_i sqrt(2 d ...) have mean 0 and a diagonal covariance known exactly: for diagonal
    # covariances the distance is |m|^2 + sum (s_x - s_y)^2.
    def diagonal(scales: list[float], mean: float) -> np.ndarray[Any, Any]:
        points = np.concatenate([np.diag(scales), -np.diag(scales)]) * math.sqrt((2 * len(scales) - 1) / 2)
        return points + mean

    x, y = diagonal([1.0, 2.0, 3.0], 0.0), diagonal([2.0, 2.0, 0.5], 1.0)
    assert distribution.frechet_distance(x, y) == pytest.approx(3 + 1 + 0 + 2.5**2)
    assert distribution.frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert distribution.frechet_distance(y, x) == pytest.approx(distribution.frechet_distance(x, y))


def test_frechet_with_fewer_pictures_than_features() -> None:
    """Singular covariances, where sqrtm fails: the answer must not depend on which branch reduced them."""
    x, y = cloud(12, 40, 2), cloud(15, 40, 3, 0.2)
    # Rotating both clouds into the 27 directions that they span changes no distance.
    basis, _ = np.linalg.qr(np.concatenate([x - x.mean(0), y - y.mean(0), (x.mean(0) - y.mean(0))[None]]).T)
    small = distribution.frechet_distance(x @ basis, y @ basis)
    assert distribution.frechet_distance(x, y) == pytest.approx(small, rel=1e-10)


def double_loop_mmd(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    def k(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    across = sum(k(a, b) for a in x for b in y) / (n * m)
    return within_x + within_y - 2 * across


def test_kernel_distance_equals_the_double_loop_and_torchmetrics() -> None:
    x, y = cloud(14, 6, 4), cloud(11, 6, 5, 0.4)
    assert distribution.kernel_distance(x, y) == pytest.approx(double_loop_mmd(x, y), rel=1e-12)
    z = cloud(14, 6, 6)
    expected = poly_mmd(torch.from_numpy(x), torch.from_numpy(z), degree=3, gamma=None, coef=1.0)
    assert distribution.kernel_distance(x, z) == pytest.approx(float(expected), rel=1e-9)


def test_kernel_distance_without_some_rows_is_that_of_the_others() -> None:
    x, y = cloud(30, 6, 4), cloud(25, 6, 5, 0.4)
    sums = distribution.KernelSums(x, y)
    for gone_x, gone_y in (([], [3, 9]), ([0, 29, 7], []), ([1, 2], [2, 24, 5])):
        expected = double_loop_mmd(np.delete(x, gone_x, 0), np.delete(y, gone_y, 0))
        found = sums.distance(np.asarray(gone_x, np.int64), np.asarray(gone_y, np.int64))
        assert found == pytest.approx(expected, rel=1e-10)


def test_the_four_figures_of_neighbours_are_those_of_the_sets_at_hand() -> None:
    space = PixelSpace(3)
    ours, more, real = as_set(*coloured(30, 0)), as_set(*coloured(25, 8, 30.0)), as_set(*coloured(40, 1))
    found = prdc(space)
    for pictures in (ours, more, ours):
        expected = distribution.prdc(space(real), space(pictures))
        for which, measure in found.items():
            assert measure(pictures, real).value == getattr(expected, which)


def test_kernel_distance_is_unbiased() -> None:
    """Over many draws of one source the mean is 0, and single values fall on both sides."""
    generator = np.random.default_rng(0)
    values = [
        distribution.kernel_distance(generator.normal(size=(20, 4)), generator.normal(size=(20, 4)))
        for _ in range(400)
    ]
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    assert min(values) < 0 < max(values)


def brute_force_prdc(real: np.ndarray[Any, Any], fake: np.ndarray[Any, Any], k: int) -> tuple[float, ...]:
    """The definitions, one picture after the other."""

    def reach(points: np.ndarray[Any, Any]) -> list[float]:
        found = []
        for i, point in enumerate(points):
            others = sorted(np.linalg.norm(point - other) for j, other in enumerate(points) if j != i)
            found.append(others[k - 1])
        return found

    reach_real, reach_fake = reach(real), reach(fake)
    inside = [[np.linalg.norm(r - f) <= reach_real[i] for i, r in enumerate(real)] for f in fake]
    precision = np.mean([any(row) for row in inside])
    density = np.sum(inside) / (k * len(fake))
    coverage = np.mean([any(row[i] for row in inside) for i in range(len(real))])
    recall = np.mean([any(np.linalg.norm(r - f) <= reach_fake[j] for j, f in enumerate(fake)) for r in real])
    return float(precision), float(recall), float(density), float(coverage)


def test_prdc_equals_the_prdc_package() -> None:
    real, fake = cloud(80, 6, 7), cloud(70, 6, 8, 0.4)
    expected = compute_prdc(real, fake, nearest_k=4)
    assert distribution.prdc(real, fake, 4)._asdict() == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_prdc_equals_brute_force(k: int) -> None:
    real, fake = cloud(40, 3, 7), cloud(30, 3, 8, 0.6)
    np.testing.assert_allclose(distribution.prdc(real, fake, k), brute_force_prdc(real, fake, k))


def test_prdc_of_known_arrangements() -> None:
    real, far = cloud(50, 4, 9), cloud(50, 4, 10) + 1000
    assert distribution.prdc(real, far) == (0, 0, 0, 0)
    same = distribution.prdc(real, real.copy())
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    collapsed = np.repeat(real[:1], 50, axis=0)  # mode collapse onto one real picture
    found = distribution.prdc(real, collapsed)
    assert found.precision == 1
    assert found.recall <= 1 / 50
    assert found.coverage < 0.3


def test_vendi_of_equal_orthogonal_and_mixed_pictures() -> None:
    assert distribution.vendi_score(np.ones((9, 4))) == pytest.approx(1)
    assert distribution.vendi_score(3 * np.eye(6)) == pytest.approx(6)
    # Two orthogonal kinds, three of one and one of the other: exp of the entropy of (3/4, 1/4).
    mixed = np.asarray([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    assert distribution.vendi_score(mixed) == pytest.approx(
        math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    )
    # More pictures than features and fewer take different matrices; doubling every picture changes nothing.
    x = cloud(10, 24, 11)
    assert distribution.vendi_score(np.repeat(x, 5, axis=0)) == pytest.approx(distribution.vendi_score(x))
    with pytest.raises(InputError, match="length 0"):
        distribution.vendi_score(np.zeros((3, 2)))


def test_mean_pairwise_distance_equals_the_double_loop() -> None:
    x = cloud(13, 5, 12)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [1 - unit[i] @ unit[j] for i in range(13) for j in range(13) if i != j]
    assert distribution.mean_pairwise_distance(x) == pytest.approx(np.mean(pairs), rel=1e-12)
    assert distribution.mean_pairwise_distance(np.ones((4, 3))) == pytest.approx(0, abs=1e-12)


def test_the_jackknife_of_a_mean_is_the_classical_interval() -> None:
    values = np.random.default_rng(0).normal(size=20)
    interval, how = jackknife(lambda rows: float(values[rows].mean()), (20,), float(values.mean()))
    half = 2.093 * values.std(ddof=1) / math.sqrt(20)  # t with 19 degrees of freedom
    assert interval is not None
    np.testing.assert_allclose(interval, (values.mean() - half, values.mean() + half), rtol=1e-9)
    assert "20 groups" in how


def test_the_jackknife_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        x, y = generator.normal(size=(60, 2)), generator.normal(size=(50, 2)) + 1
        value = float(((x.mean(0) - y.mean(0)) ** 2).sum())
        interval, _ = jackknife(
            lambda a, b, x=x, y=y: float(((x[a].mean(0) - y[b].mean(0)) ** 2).sum()), (60, 50), value
        )
        assert interval is not None
        hits += interval[0] <= 2 <= interval[1]
    assert 0.88 <= hits / 200 <= 0.99
    assert jackknife(lambda rows: 0.0, (3,), 0.0)[0] is None


# -- MetricFn ------------------------------------------------------------------------------------------------


def coloured(n: int, seed: int, spread: float = 60.0) -> list[np.ndarray[Any, Any]]:
    generator = np.random.default_rng(seed)
    return [
        np.clip(
            generator.normal(128, spread, (1, 1, 3)) + generator.normal(0, 20, (16, 16, 3)), 0, 255
        ).astype(np.uint8)
        for _ in range(n)
    ]


def test_metrics_of_sets_report_n_interval_and_settings() -> None:
    space = PixelSpace(4)
    ours, real = as_set(*coloured(40, 0)), as_set(*coloured(60, 1))
    for measure in (frechet(space), kernel(space), *prdc(space).values()):
        result = measure(ours, real)
        assert result.n == 40
        assert result.settings["n_real"] == 60
        assert result.ci95 is not None
        assert result.ci95[0] <= result.value <= result.ci95[1]
        assert "jackknife" in result.interval
        with pytest.raises(InputError, match="to compare with"):
            measure(ours, None)
    expected = distribution.frechet_distance(space(ours), space(real))
    assert frechet(space)(ours, real).value == expected
    for single in (vendi(space), mean_pairwise(space)):
        narrow = as_set(*(np.roll(picture // 8 + 200, 1) for picture in coloured(40, 2)))
        assert single(narrow, None).value < single(ours, None).value


def test_a_subset_uses_the_rows_of_its_base() -> None:
    space = PixelSpace(2)
    whole = as_set(*coloured(10, 3))
    part = whole.subset([7, 2]).subset([1])
    assert part.keys == ("00002",)
    np.testing.assert_array_equal(space(part), space(whole)[[2]])
    np.testing.assert_array_equal(part.pixels(0), whole.pixels(2))


def prompted(groups: list[list[np.ndarray[Any, Any]]]) -> ImageSet:
    pictures = [picture for group in groups for picture in group]
    shots = [Shot(f"prompt {g}", s) for g, group in enumerate(groups) for s in range(len(group))]
    return as_set(*pictures, shots=shots)


def test_seed_variety_is_0_where_the_seed_and_1_where_the_prompt_changes_nothing() -> None:
    space = PixelSpace(4)
    kinds = coloured(12, 4)
    assert seed_variety(space)(prompted([[kind] * 3 for kind in kinds])).value == pytest.approx(0, abs=1e-9)
    shuffled = [coloured(8, 100 + i) for i in range(12)]
    assert seed_variety(space)(prompted(shuffled)).value == pytest.approx(1, abs=0.15)
    with pytest.raises(InputError, match="two prompts"):
        seed_variety(space)(as_set(*kinds))


def test_seed_spread_is_the_deviation_between_runs() -> None:
    space = PixelSpace(2)
    real = as_set(*coloured(30, 5))
    kinds = coloured(12, 6)
    still = seed_spread(space)(prompted([[kind] * 3 for kind in kinds]), real)
    assert still.value == pytest.approx(0, abs=1e-12)
    moving = [[kind, np.full_like(kind, 250), kind] for kind in kinds]
    result = seed_spread(space)(prompted(moving), real)
    runs = result.settings["runs"]
    assert result.value == pytest.approx(np.std(runs, ddof=1))
    assert runs[1] > runs[0] == runs[2]
    assert result.ci95 is not None
    assert result.ci95[0] < result.value < result.ci95[1]
