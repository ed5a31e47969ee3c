"""Solvers that remember earlier predictions: DPM-Solver++(2M), its SDE form, UniPC.

They work in lambda = log(alpha / sigma), in which the ODE's linear part is solved exactly; h is the step in
lambda. All formulas hold on every path through alpha and lambda. See :class:`vitrail.samplers.walk.Sampler`
for arguments.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from vitrail.errors import InputError
from vitrail.samplers.denoisers import Denoiser
from vitrail.samplers.paths import NoisePath
from vitrail.samplers.walk import Callback, Noise, Walk

__all__ = ["dpmpp_2m", "dpmpp_2m_sde", "unipc"]

_FEW_STEPS = 15  # below this the last step is of first order in any case, as in the paper's code


def dpmpp_2m(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    path: NoisePath,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M): Lu et al. 2022, arXiv:2211.01095, algorithm 2 (midpoint form). Second order,
    deterministic.

    The first step has no history and is of first order; so is the step to sigma 0 (lambda is infinite
    there), which returns x0 exactly, and the last of fewer than 15 steps whatever it ends in.
    """
    walk = Walk(denoiser, x, sigmas, path, noise, callback)
    x = walk.start
    before: Tensor | None = None
    for sigma, after in walk:
        x0 = walk.denoise(x, sigma)
        ahead = _ahead(walk, path, x0, before)
        # sigma_t / sigma_s * x - alpha_t * (exp(-h) - 1) * ahead, where alpha_t * exp(-h) = alpha_s *
        # sigma_t / sigma_s
        decay = after / sigma
        x = decay * x + (path.alpha(after) - decay * path.alpha(sigma)) * ahead
        before = x0
        walk.finish(x, x0)
    return x


def dpmpp_2m_sde(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    path: NoisePath,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(2M): Lu et al. 2022, arXiv:2211.01095, equation 18 with the 2M extrapolation.
    Stochastic.

    x_t = (sigma_t / sigma_s) exp(-h) x + alpha_t (1 - exp(-2h)) x0 + sigma_t sqrt(1 - exp(-2h)) noise, where
    x0 is extrapolated to the middle of the step. Orders of the first and last step as in :func:`dpmpp_2m`.
    """
    walk = Walk(denoiser, x, sigmas, path, noise, callback, stochastic=True)
    x = walk.start
    before: Tensor | None = None
    for sigma, after in walk:
        x0 = walk.denoise(x, sigma)
        ahead = _ahead(walk, path, x0, before)
        shrink = (
            after * path.alpha(sigma) / (path.alpha(after) * sigma)
        )  # exp(-h), finite where lambda is not
        x = (after / sigma * shrink) * x + path.alpha(after) * (1.0 - shrink**2) * ahead
        if after > 0:
            x = x + after * math.sqrt(1.0 - shrink**2) * walk.draw(x)
        before = x0
        walk.finish(x, x0)
    return x


def _ahead(walk: Walk, path: NoisePath, x0: Tensor, before: Tensor | None) -> Tensor:
    """Return x0 extrapolated in lambda to the middle of the step, or as it is in a first-order step."""
    step, levels = walk.step, walk.levels
    last = step == walk.steps - 1
    if before is None or levels[step + 1] == 0 or (last and walk.steps < _FEW_STEPS):
        return x0
    # From pure noise (flow, sigma 1) the past lies infinitely far back, and the extrapolation vanishes.
    old, here, there = (path.log_snr(levels[i]) for i in (step - 1, step, step + 1))
    return x0 + (x0 - before) * (0.5 * (there - here) / (here - old))


def unipc(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    path: NoisePath,
    noise: Noise | None = None,
    callback: Callback | None = None,
    order: int = 2,
) -> Tensor:
    """UniPC with B(h) = exp(h) - 1 ("bh2") on x0 predictions: Zhao et al. 2023, arXiv:2302.04867, algorithms
    5 to 8.

    A predictor of ``order`` (1 to 3) and, from the second step on, a corrector that repairs the step before
    with the prediction made at its end, so it costs no evaluation. Deterministic. The order rises from 1
    over the first steps and falls to 1 over the last ones. The weight of a predictor of order 2 and of a
    corrector of order 1 is 1/2, as the paper's code has it. Raises :class:`InputError` for another order,
    besides what all solvers raise.
    """
    if order not in (1, 2, 3):
        raise InputError(f"order is {order}; allowed are 1, 2 and 3")
    walk = Walk(denoiser, x, sigmas, path, noise, callback)
    x = walk.start
    past: list[Tensor] = []  # earlier predictions, newest first
    origin, used = x, 0  # the corrected state that the last predictor started from, and its order
    for _, after in walk:
        x0 = walk.denoise(x, walk.levels[walk.step])
        if walk.step > 0:
            x = _unified(walk, path, origin, past[:used], at=walk.step - 1, arrived=x0)
        past = [x0, *past][:order]
        used = min(order, walk.steps - walk.step, walk.step + 1)
        origin = x
        x = x0 if after == 0 else _unified(walk, path, origin, past[:used], at=walk.step, arrived=None)
        walk.finish(x, x0)
    return x


def _unified(
    walk: Walk, path: NoisePath, x: Tensor, past: list[Tensor], *, at: int, arrived: Tensor | None
) -> Tensor:
    """Go from ``x`` at level ``at`` to the next one: UniP, or UniC if the prediction ``arrived`` there is
    known.

    ``past`` are the predictions at levels ``at``, ``at - 1``, ...; their number is the order p.
    """
    sigma, after = walk.levels[at], walk.levels[at + 1]
    here = _finite_log_snr(path, sigma)
    h = _finite_log_snr(path, after) - here
    newest = past[0]
    # Nodes r_k and differences D_k / r_k of equation 10; the corrector's last node is the end of the step, r
    # = 1.
    nodes = [(_finite_log_snr(path, walk.levels[at - k]) - here) / h for k in range(1, len(past))]
    slopes = [(old - newest) / node for old, node in zip(past[1:], nodes, strict=True)]
    if arrived is not None:
        nodes.append(1.0)
        slopes.append(arrived - newest)
    decrease = math.expm1(-h)  # B(h) of the bh2 variant, for x0 predictions
    correction = sum(
        (weight * slope for weight, slope in zip(_rho(nodes, h), slopes, strict=True)), start=newest * 0
    )
    return (after / sigma) * x - path.alpha(after) * decrease * (newest + correction)


def _finite_log_snr(path: NoisePath, sigma: float) -> float:
    """Return lambda, cut to its value at alpha 1e-6 where there is only noise (flow, sigma 1).

    The corrector's equations need it finite. diffusers moves the first flow sigma by the same 1e-6.
    """
    exact = path.log_snr(sigma)
    return exact if exact > -math.inf else math.log(1e-6)


def _rho(nodes: list[float], h: float) -> list[float]:
    """Solve R rho = b of equation 12 for the weights of the slopes at ``nodes``."""
    count = len(nodes)
    if count == 0:
        return []
    if count == 1:
        return [0.5]
    rows, sides = [], []
    step = -h
    phi = math.expm1(step) / step - 1.0
    factorial = 1
    for power in range(count):
        rows.append([node**power for node in nodes])
        sides.append(phi * factorial / math.expm1(step))
        factorial *= power + 2
        phi = phi / step - 1.0 / factorial
    return [float(weight) for weight in np.linalg.solve(np.array(rows), np.array(sides))]
