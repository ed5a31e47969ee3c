"""Schedules against diffusers' schedulers.

Tolerance: diffusers accumulates its table of 1000 alphas in float32, vitrail in float64. The smallest
sigmas come from 1 - 0.9999, which leaves float32 three to four digits: 8e-5 of their size is measured.
"""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from vitrail.errors import InputError
from vitrail.samplers import (
    VP,
    Flow,
    exponential,
    flow_shift,
    karras,
    lcm_times,
    leading,
    linspace,
    sgm_uniform,
    simple,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def sigmas(kind: type[Any], steps: int, **options: Any) -> Tensor:
    scheduler = kind(**options)
    scheduler.set_timesteps(steps)
    result: Tensor = scheduler.sigmas
    return result


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("steps", [2, 10, 30])
def test_karras_and_exponential(steps: int) -> None:
    euler = diffusers.EulerDiscreteScheduler
    close(karras(steps, VP()), sigmas(euler, steps, **TABLE, use_karras_sigmas=True))
    close(exponential(steps, VP()), sigmas(euler, steps, **TABLE, use_exponential_sigmas=True))
    flow = diffusers.FlowMatchEulerDiscreteScheduler
    close(karras(steps, Flow()), sigmas(flow, steps, use_karras_sigmas=True))
    close(exponential(steps, Flow()), sigmas(flow, steps, use_exponential_sigmas=True))


@pytest.mark.parametrize("steps", [1, 4, 7, 30, 999])
def test_simple_is_trailing(steps: int) -> None:
    close(
        simple(steps, VP()),
        sigmas(diffusers.EulerDiscreteScheduler, steps, **TABLE, timestep_spacing="trailing"),
    )
    linear = VP(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    close(simple(steps, linear), sigmas(diffusers.EulerDiscreteScheduler, steps, timestep_spacing="trailing"))


@pytest.mark.parametrize("steps", [1, 9, 27, 37])
def test_sgm_uniform_is_linspace_without_its_end(steps: int) -> None:
    # diffusers rounds these times to whole ones; at divisors of 999 nothing is rounded
    theirs = sigmas(diffusers.DPMSolverMultistepScheduler, steps, **TABLE, timestep_spacing="linspace")
    close(sgm_uniform(steps, VP()), theirs)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [4, 10, 30])
def test_flow(steps: int, shift: float) -> None:
    theirs = sigmas(diffusers.UniPCMultistepScheduler, steps, use_flow_sigmas=True, flow_shift=shift)
    # diffusers moves the first sigma from 1 to 1 - 1e-6
    torch.testing.assert_close(flow_shift(sgm_uniform(steps, Flow()), shift), theirs, rtol=0, atol=2e-6)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1.0 - i / steps for i in range(steps)])
    close(flow_shift(simple(steps, Flow()), shift), scheduler.sigmas)


@pytest.mark.parametrize("steps", [1, 3, 20, 50, 999])
def test_leading(steps: int) -> None:
    options = {"timestep_spacing": "leading", "steps_offset": 1}
    close(leading(steps, VP()), sigmas(diffusers.EulerDiscreteScheduler, steps, **TABLE, **options))


@pytest.mark.parametrize("steps", [2, 5, 20, 31])
def test_linspace(steps: int) -> None:
    # diffusers interpolates sigma between two training times, vitrail its logarithm: they part at the lowest
    # times alone, which lie far apart.
    theirs = sigmas(diffusers.EulerDiscreteScheduler, steps, **TABLE, timestep_spacing="linspace")
    torch.testing.assert_close(linspace(steps, VP()), theirs, rtol=3e-4, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 8, 50])
def test_lcm(steps: int) -> None:
    scheduler = diffusers.LCMScheduler(**TABLE)
    scheduler.set_timesteps(steps)
    table = torch.from_numpy(VP().table).float()
    close(lcm_times(steps, VP())[:-1], table[scheduler.timesteps])
    with pytest.raises(InputError, match="50 times"):
        lcm_times(51, VP())
