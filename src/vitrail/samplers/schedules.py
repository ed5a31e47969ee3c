"""Noise schedules: which sigmas a solver visits.

A schedule is a function ``(steps, path) -> sigmas``: float32, shape (steps + 1,), strictly falling from the
path's largest sigma to exactly 0. Solvers take any such tensor, so a hand-made one is as good.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from vitrail.errors import InputError
from vitrail.samplers.paths import Flow, NoisePath

__all__ = [
    "SCHEDULES",
    "Schedule",
    "exponential",
    "flow_shift",
    "karras",
    "lcm_times",
    "leading",
    "linspace",
    "sgm_uniform",
    "simple",
]

_MAX_STEPS = 1000
_TAUGHT = 50  # times that the distillation of latent consistency models jumps between
_FLOW = Flow()


class Schedule(Protocol):
    """``(steps, path) -> sigmas`` of shape (steps + 1,), strictly falling to 0; the path defaults to flow."""

    def __call__(self, steps: int, path: NoisePath = ...) -> Tensor: ...


def karras(
    steps: int,
    path: NoisePath = _FLOW,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
) -> Tensor:
    """Sigmas evenly spaced in sigma^(1/rho): Karras et al. 2022, arXiv:2206.00364, equation 5.

    ``sigma_min`` and ``sigma_max`` default to the path's. Raises :class:`InputError` for a step count or
    bounds
    that are not allowed.
    """
    low, high = _bounds(steps, path, sigma_min, sigma_max)
    if not (math.isfinite(rho) and rho > 0):
        raise InputError(f"rho is {rho}; it must be a number above 0 (the paper's is 7)")
    start, end = high ** (1 / rho), low ** (1 / rho)
    return _finish([(start + ramp * (end - start)) ** rho for ramp in _ramp(steps)])


def exponential(
    steps: int, path: NoisePath = _FLOW, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Tensor:
    """Sigmas evenly spaced in log sigma, from ``sigma_max`` to ``sigma_min`` (the path's), then 0.

    Raises :class:`InputError` for a step count or bounds that are not allowed.
    """
    low, high = _bounds(steps, path, sigma_min, sigma_max)
    start, end = math.log(high), math.log(low)
    return _finish([math.exp(start + ramp * (end - start)) for ramp in _ramp(steps)])


def simple(steps: int, path: NoisePath = _FLOW) -> Tensor:
    """Training times evenly spaced from the last one, ending one spacing above none.

    Flow: 1, 1 - 1/steps, ..., 1/steps, 0. VP: the "trailing" times round(train_steps * (1 - i/steps)) - 1 of
    Lin et al. 2023, arXiv:2305.08891, table 2. Raises :class:`InputError` for a step count that is not
    allowed.
    """
    _check_steps(steps)
    return _finish(path.uniform([1.0 - i / steps for i in range(steps)], discrete=True))


def sgm_uniform(steps: int, path: NoisePath = _FLOW) -> Tensor:
    """Training times at i / steps of the way from the last to the first, leaving the first one out.

    The discretisation of Stability AI's generative-models: ``linspace(last, first, steps + 1)[:-1]``, log
    sigma interpolated between VP's training times. Raises :class:`InputError` for a step count that is not
    allowed.
    """
    _check_steps(steps)
    return _finish(path.uniform([1.0 - i / steps for i in range(steps)], discrete=False))


def leading(steps: int, path: NoisePath = _FLOW) -> Tensor:
    """Training times 1 + i * (train_steps // steps), which stop short of the last one.

    The "leading" times of Lin et al. 2023, arXiv:2305.08891, table 2, with the offset of 1 that Stable
    Diffusion's own schedulers have (DDIM's in its first code); without it where all times are visited. A path
    without training times counts 1,000.
    Raises :class:`InputError` for a step count that is not allowed.
    """
    _check_steps(steps)
    count = _train_steps(path)
    offset = 1 if (steps - 1) * (count // steps) + 1 < count else 0
    times = [min(offset + i * (count // steps), count - 1) for i in reversed(range(steps))]
    return _finish(path.uniform([(time + 1) / count for time in times], discrete=True))


def linspace(steps: int, path: NoisePath = _FLOW) -> Tensor:
    """Training times evenly spaced from the last one to the first, both visited: "linspace" of Lin et al.
    2023, arXiv:2305.08891, table 2; "Normal" in A1111's programs.

    Raises :class:`InputError` for a step count that is not allowed.
    """
    _check_steps(steps)
    return _finish(path.uniform([1.0 - share for share in _ramp(steps)], discrete=False))


def lcm_times(steps: int, path: NoisePath = _FLOW) -> Tensor:
    """The times that latent consistency models were taught to jump between: ``steps`` of the 50 training
    times 20 i - 1, spread evenly from the last (Luo et al. 2023, arXiv:2310.04378, section 4.3).

    Raises :class:`InputError` for a step count that is not allowed; 50 are the most.
    """
    _check_steps(steps)
    if steps > _TAUGHT:
        raise InputError(f"steps is {steps}; schedule lcm has {_TAUGHT} times, use so many or fewer")
    taught = [(i + 1) / _TAUGHT for i in reversed(range(_TAUGHT))]
    return _finish(path.uniform([taught[i * _TAUGHT // steps] for i in range(steps)], discrete=True))


def flow_shift(sigmas: Tensor, shift: float) -> Tensor:
    """Return flow sigmas moved towards noise: shift * s / (1 + (shift - 1) * s); 0 and 1 stay.

    Larger pictures need more of the steps at high noise: Esser et al. 2024, arXiv:2403.03206, equation 23 (3
    for 1024 px). ``shift`` 1 changes nothing. Raises :class:`InputError` for a shift that is not above 0, or
    sigmas outside [0, 1].
    """
    if not (math.isfinite(shift) and shift > 0):
        raise InputError(f"shift is {shift}; it must be a number above 0 (1 changes nothing)")
    if not bool(((sigmas >= 0) & (sigmas <= 1)).all()):
        raise InputError("only flow sigmas, which lie in [0, 1], can be shifted")
    exact = sigmas.double()
    return (shift * exact / (1.0 + (shift - 1.0) * exact)).to(sigmas.dtype)


SCHEDULES: dict[str, Schedule] = {
    "karras": karras,
    "exponential": exponential,
    "simple": simple,
    "sgm_uniform": sgm_uniform,
    "linspace": linspace,
    "leading": leading,
    "lcm": lcm_times,
}
"""Every schedule by the name that requests use."""


def _check_steps(steps: int) -> None:
    if not 1 <= steps <= _MAX_STEPS:
        raise InputError(f"steps is {steps}; allowed are 1 to {_MAX_STEPS}")


def _train_steps(path: NoisePath) -> int:
    return int(getattr(path, "train_steps", 1000))


def _bounds(
    steps: int, path: NoisePath, sigma_min: float | None, sigma_max: float | None
) -> tuple[float, float]:
    _check_steps(steps)
    low = path.sigma_min if sigma_min is None else sigma_min
    high = path.sigma_max if sigma_max is None else sigma_max
    if not 0 < low < high <= path.sigma_limit or math.isinf(high):
        raise InputError(
            f"sigmas from {high:g} down to {low:g} are not possible; "
            f"0 < sigma_min < sigma_max <= {path.sigma_limit:g} is needed"
        )
    return low, high


def _ramp(steps: int) -> list[float]:
    return [i / (steps - 1) for i in range(steps)] if steps > 1 else [0.0]


def _finish(sigmas: list[float]) -> Tensor:
    return torch.tensor([*sigmas, 0.0], dtype=torch.float64).float()
