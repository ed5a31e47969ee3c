"""Schedules: shape, bounds, and the numbers that other programs use for the same name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vitrail.errors import InputError
from vitrail.samplers import (
    SCHEDULES,
    VP,
    Flow,
    NoisePath,
    exponential,
    flow_shift,
    karras,
    sgm_uniform,
    simple,
)

#: Schedules of trained times that leave out the last ones, so that they begin below the largest sigma.
BELOW = ("leading", "lcm")

PATHS: list[NoisePath] = [VP(), Flow(), VP(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")]


@settings(deadline=None, max_examples=150)
@example(name="leading", index=0, steps=1000)  # every training time
@example(name="leading", index=0, steps=999)
@given(name=st.sampled_from(sorted(SCHEDULES)), index=st.integers(0, 2), steps=st.integers(1, 1000))
def test_every_schedule_falls_from_the_largest_sigma_to_zero(name: str, index: int, steps: int) -> None:
    path = PATHS[index]
    if name == "lcm":
        steps = min(steps, 50)  # the times that an LCM was taught
    sigmas = SCHEDULES[name](steps, path)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == torch.float32
    if name not in BELOW:
        assert sigmas[0].item() == pytest.approx(path.sigma_max, rel=1e-6)
    assert 0 < sigmas[0].item() <= path.sigma_limit
    assert sigmas[-1].item() == 0.0
    assert bool((sigmas[1:] < sigmas[:-1]).all())


def test_by_hand() -> None:
    path = Flow()
    assert simple(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert sgm_uniform(2, path).tolist() == pytest.approx([1.0, 0.5005, 0.0])
    assert exponential(3, path, sigma_min=0.01).tolist() == pytest.approx([1.0, 0.1, 0.01, 0.0])
    middle = ((14.0 ** (1 / 7) + 0.1 ** (1 / 7)) / 2) ** 7
    assert karras(3, VP(), sigma_min=0.1, sigma_max=14.0).tolist() == pytest.approx([14.0, middle, 0.1, 0.0])
    assert karras(3, VP(), sigma_min=0.1, sigma_max=14.1, rho=1.0).tolist() == pytest.approx(
        [14.1, 7.1, 0.1, 0.0]
    )
    table = VP().table
    assert simple(4, VP()).tolist() == pytest.approx([table[999], table[749], table[499], table[249], 0.0])
    assert sgm_uniform(3, VP()).tolist() == pytest.approx([table[999], table[666], table[333], 0.0])


def test_shift() -> None:
    sigmas = torch.tensor([1.0, 0.5, 0.25, 0.0])
    assert flow_shift(sigmas, 3.0).tolist() == pytest.approx([1.0, 0.75, 0.5, 0.0])
    assert torch.equal(flow_shift(sigmas, 1.0), sigmas)
    torch.testing.assert_close(flow_shift(flow_shift(sigmas, 5.0), 0.2), sigmas)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("steps", [0, -1, 1001, 10**20])
def test_impossible_step_counts_are_refused(name: str, steps: int) -> None:
    with pytest.raises(InputError, match="1 to 1000"):
        SCHEDULES[name](steps, Flow())


@pytest.mark.parametrize(
    "options",
    [
        {"sigma_min": 0.0},
        {"sigma_min": -1.0},
        {"sigma_min": 1.0},
        {"sigma_min": math.nan},
        {"sigma_max": math.nan},
        {"sigma_max": 1.5},
        {"sigma_max": math.inf},
        {"rho": 0.0},
        {"rho": math.nan},
    ],
)
def test_impossible_bounds_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        karras(4, Flow(), **options)
    if "rho" not in options:
        with pytest.raises(InputError):
            exponential(4, Flow(), **options)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan, math.inf])
def test_impossible_shifts_are_refused(shift: float) -> None:
    with pytest.raises(InputError):
        flow_shift(torch.tensor([1.0, 0.0]), shift)


def test_only_flow_sigmas_are_shifted() -> None:
    with pytest.raises(InputError):
        flow_shift(torch.tensor([14.0, 0.0]), 3.0)
