"""Walking back and forth, so that what is made fits what is known (RePaint)."""

from __future__ import annotations

import math

from torch import Tensor

from vitrail.errors import InputError
from vitrail.samplers.denoisers import Denoiser
from vitrail.samplers.paths import NoisePath
from vitrail.samplers.walk import Callback, Noise, Sampler

__all__ = ["with_resampling"]


def with_resampling(sampler: Sampler, repeats: int, jump: int = 1) -> Sampler:
    """Return ``sampler`` walking every ``jump`` steps ``repeats`` times, with fresh noise in between.

    Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1. For use with
    :func:`~vitrail.samplers.denoisers.with_known_region`, whose replacement alone hears too little of what is
    known: after the solver went from sigma s down to t, noise leads the state back up,

        x_s = (alpha_s / alpha_t) * x_t + sqrt(s^2 - (alpha_s * t / alpha_t)^2) * noise,

    which is again a state of level s, and the same steps are taken once more with what was made in view. As
    ``repeats`` grows the result comes nearer to a sample given the known region, up to the error of the
    steps; it costs as many times the evaluations. The solver begins anew with every stretch, so a multistep
    one is of first order where ``jump`` is 1. Needs ``noise``. With ``repeats`` 1 it is the sampler itself.

    Raises :class:`InputError` for repeats or jump below 1 or without noise, and what the sampler raises.
    """
    if repeats < 1 or jump < 1:
        raise InputError(f"repeats {repeats} and jump {jump} must be at least 1")
    if repeats == 1:
        return sampler

    def resampled(
        denoiser: Denoiser,
        x: Tensor,
        sigmas: Tensor,
        *,
        path: NoisePath,
        noise: Noise | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        if noise is None:
            raise InputError("resampling needs a noise source; give noise=")
        steps = len(sigmas) - 1
        for first in range(0, max(steps, 1), jump):
            part = sigmas[first : first + jump + 1]
            for _ in range(repeats - 1):
                x = sampler(denoiser, x, part, path=path, noise=noise)
                x = _back_up(x, float(part[-1]), float(part[0]), path, noise)
            x = sampler(denoiser, x, part, path=path, noise=noise, callback=_from(first, steps, callback))
        return x

    return resampled


def _from(first: int, steps: int, callback: Callback | None) -> Callback | None:
    """Tell ``callback`` the steps of a stretch that begins at step ``first`` of ``steps``."""
    if callback is None:
        return None
    tell = callback
    return lambda step, _, x0: tell(first + step, steps, x0)


def _back_up(x: Tensor, low: float, high: float, path: NoisePath, noise: Noise) -> Tensor:
    """From a state of level ``low`` to one of level ``high``, by noise."""
    ratio = path.alpha(high) / path.alpha(low)
    spread = math.sqrt(max(0.0, high**2 - (ratio * low) ** 2))
    return ratio * x + spread * noise(x).to(x)
