"""The figures of evaluation against scipy and torch: intervals, neighbours, the block transform, the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from scipy.fft import dctn
from scipy.spatial import cKDTree
from torch.nn import functional

from vitrail.evaluation.matcher_training import _quantise_blocks, contrastive_loss
from vitrail.evaluation.memorisation import memorisation
from vitrail.evaluation.stats import mean_interval, wilson


@pytest.mark.parametrize(
    ("hits", "n"), [(0, 1), (1, 1), (0, 40), (3, 7), (17, 20), (52, 100), (480, 484), (90, 90)]
)
def test_wilson_equals_scipy(hits: int, n: int) -> None:
    expected = scipy_stats.binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
    found = wilson(hits, n)
    assert found.value == hits / n
    assert found.n == n
    assert found.low == pytest.approx(expected.low, abs=1e-12)
    assert found.high == pytest.approx(expected.high, abs=1e-12)


def test_bootstrap_interval_equals_scipys_within_its_own_noise() -> None:
    values = np.random.default_rng(5).gamma(2.0, 0.4, size=120)
    expected = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    found = mean_interval(values.tolist())
    # The ends of a percentile interval of 4,000 resamples wander by about 3 % of its width.
    width = expected.high - expected.low
    assert found.value == pytest.approx(values.mean(), rel=1e-12)
    assert found.low == pytest.approx(expected.low, abs=0.05 * width)
    assert found.high == pytest.approx(expected.high, abs=0.05 * width)


def test_memorisation_equals_a_search_by_kd_tree() -> None:
    draw = np.random.default_rng(3)
    train, queries = draw.normal(size=(300, 6)), draw.normal(size=(25, 6)) * 1.3
    tree = cKDTree(train)
    distance, row = tree.query(queries)
    around, _ = tree.query(train[row], k=51)  # the first of the 51 is the row itself
    expected = distance / around[:, 1:].mean(axis=1)
    found = memorisation(torch.from_numpy(queries), torch.from_numpy(train))
    assert found.nearest[:, 0].tolist() == row.tolist()
    # Searched in float32: 1e-5 is a hundred roundings.
    assert np.allclose(found.ratios.numpy(), expected, rtol=1e-5)
    assert found.mean.value == pytest.approx(expected.mean(), rel=1e-5)


def test_block_quantisation_equals_scipys_transform() -> None:
    picture = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    step = 0.3
    growth = 1 + np.add.outer(np.arange(8), np.arange(8)) * (8 / 14)
    expected = np.empty((3, 16, 24))
    for channel in range(3):
        for top in range(0, 16, 8):
            for left in range(0, 24, 8):
                block = picture[0, channel, top : top + 8, left : left + 8].double().numpy()
                rounded = np.round(dctn(block, norm="ortho") / (step * growth)) * step * growth
                expected[channel, top : top + 8, left : left + 8] = dctn(rounded, type=3, norm="ortho")
    found = _quantise_blocks(picture, torch.tensor([step]))[0].numpy()
    # float32 against float64; a coefficient exactly between two steps may fall either way, and none is here.
    assert np.allclose(found, expected, atol=1e-5)


def test_loss_is_clips_when_every_picture_has_one_caption() -> None:
    scores = torch.randn(7, 7, generator=torch.Generator().manual_seed(2)) * 3
    target = torch.arange(7)
    expected = (functional.cross_entropy(scores, target) + functional.cross_entropy(scores.T, target)) / 2
    assert contrastive_loss(scores, torch.eye(7, dtype=torch.bool)).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_loss_with_shared_and_idle_captions_is_the_written_formula() -> None:
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(4))
    right = torch.tensor(
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.bool
    )  # caption 3 is of no picture
    rows = scores.double().softmax(1)
    columns = scores.double().softmax(0)
    expected_rows = -np.log([rows[0, 0], rows[1, 0] + rows[1, 1], rows[2, 2]]).mean()
    expected_columns = -np.log([columns[0, 0] + columns[1, 0], columns[1, 1], columns[2, 2]]).mean()
    assert contrastive_loss(scores, right).item() == pytest.approx(
        (expected_rows + expected_columns) / 2, rel=1e-6
    )
