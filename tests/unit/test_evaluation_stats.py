"""Intervals at their ends, and that they cover what they say."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.errors import InputError
from vitrail.evaluation.stats import Estimate, mean_interval, share_of, wilson


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_value_inside_0_and_1(pair: tuple[int, int]) -> None:
    found = wilson(*pair)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high > found.low


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(hits: int, n: int) -> None:
    with pytest.raises(InputError, match="hits"):
        wilson(hits, n)


def test_mean_interval_of_equal_values_has_no_width() -> None:
    assert mean_interval([0.25] * 9) == Estimate(0.25, 0.25, 0.25, 9)


def test_mean_interval_repeats_itself_and_narrows_with_n() -> None:
    draw = random.Random(1)
    values = [draw.expovariate(1.0) for _ in range(400)]
    few, many = mean_interval(values[:25]), mean_interval(values)
    assert mean_interval(values) == many
    # Four standard errors of the mean of 400 draws of variance 1: a width of about 0.2; of 25 draws about
    # 0.8.
    assert 0.12 < many.high - many.low < 0.28 < few.high - few.low


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_mean_interval_refuses_nothing_and_nan(values: list[float]) -> None:
    with pytest.raises(InputError, match="finite"):
        mean_interval(values)


def test_share_of_covers_the_true_ratio_about_19_times_in_20() -> None:
    draw = random.Random(7)
    p, q, n, m = 0.6, 0.8, 120, 400
    covered = 0
    for _ in range(400):
        part = wilson(sum(draw.random() < p for _ in range(n)), n)
        whole = wilson(sum(draw.random() < q for _ in range(m)), m)
        found = share_of(part, whole)
        assert found.value == pytest.approx(part.value / whole.value)
        covered += found.low <= p / q <= found.high
    # 400 trials at 95 %: 380 expected, standard deviation 4.4.
    assert 362 <= covered <= 398


def test_share_of_nothing_is_0_with_an_upper_end() -> None:
    found = share_of(wilson(0, 50), wilson(45, 50))
    assert found.value == 0
    assert found.low == 0
    assert 0 < found.high < 0.3
    with pytest.raises(InputError, match="ceiling"):
        share_of(wilson(5, 50), wilson(0, 50))
