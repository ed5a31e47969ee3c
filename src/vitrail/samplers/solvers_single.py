"""Solvers that look at one state at a time: Euler, Euler ancestral, Heun, DPM++ SDE, DDIM, LCM.

Notation: the state x = alpha * x0 + sigma * eps at ``sigma`` (s in formulas), the next level ``after`` (t).
Each is written for any path through alpha(sigma); see :class:`vitrail.samplers.walk.Sampler` for the
arguments.
"""

from __future__ import annotations

import math

from torch import Tensor

from vitrail.errors import InputError
from vitrail.samplers.denoisers import Denoiser
from vitrail.samplers.paths import NoisePath
from vitrail.samplers.walk import Callback, Noise, Walk

__all__ = ["ddim", "dpmpp_sde", "euler", "euler_ancestral", "heun", "lcm"]


def euler(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    path: NoisePath,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Euler's method on dx/dsigma = (x - x0) / sigma: Karras et al. 2022, arXiv:2206.00364, algorithm 1
    without the correction. First order, deterministic. The step to sigma 0 returns the denoiser's x0 exactly.
    """
    walk = Walk(denoiser, x, sigmas, path, noise, callback)
    x = walk.start
    for sigma, after in walk:
        x0 = walk.denoise(x, sigma)
        x = _slide(x, x0, sigma, after)
        walk.finish(x, x0)
    return x


def euler_ancestral(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    path: NoisePath,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Euler below the next level, then fresh noise up to it. First order, stochastic.

    The Euler step goes to d = t^2 / s. The state there has picture weight alpha(d) and noise d; it is
    brought to weight alpha(t) by the factor alpha(t) / alpha(d), and noise of variance t^2 - (d * alpha(t) /
    alpha(d))^2 is added, which makes the marginal at t right on every path. On VP (alpha 1) this is
    k-diffusion's ancestral step with eta 1, sigma_up^2 = t^2 (s^2 - t^2) / s^2. On flow it is the
    rectified-flow form: without the factor the picture's weight would be too large by alpha(d) / alpha(t) at
    every step, and the sampler would not converge.
    """
    walk = Walk(denoiser, x, sigmas, path, noise, callback, stochastic=True)
    x = walk.start
    for sigma, after in walk:
        x0 = walk.denoise(x, sigma)
        down = after * after / sigma
        x = _slide(x, x0, sigma, down)
        if after > 0:
            factor = path.alpha(after) / path.alpha(down)
            up = math.sqrt(max(after**2 - (down * factor) ** 2, 0.0))
            x = factor * x + up * walk.draw(x)
        walk.finish(x, x0)
    return x


def heun(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    path: NoisePath,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Heun's method (trapezoid): Karras et al. 2022, arXiv:2206.00364, algorithm 1. Second order,
    deterministic.

    Two evaluations a step, one in the step to sigma 0, which is Euler's: the slope is not defined there. The
    callback sees the x0 of the step's first evaluation.
    """
    walk = Walk(denoiser, x, sigmas, path, noise, callback)
    x = walk.start
    for sigma, after in walk:
        x0 = walk.denoise(x, sigma)
        trial = _slide(x, x0, sigma, after)
        if after > 0:
            slope = ((x - x0) / sigma + (trial - walk.denoise(trial, after)) / after) / 2
            trial = x + slope * (after - sigma)
        x = trial
        walk.finish(x, x0)
    return x


def dpmpp_sde(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    path: NoisePath,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """SDE-DPM-Solver++ with a stop in the middle of each step: Lu et al. 2022, arXiv:2211.01095, equation 18
    with the x0 of the middle, as algorithm 1 has it for the ODE. Stochastic; others call it DPM++ SDE.

    A first-order step goes to the middle of the step in lambda; the x0 that is predicted there is used for
    the whole step. Both pieces belong to one Brownian motion: the noise at the end is what is left of the
    noise in the middle, and fresh noise for the second half. From pure noise (flow, sigma 1), where lambda
    has no middle, the stop is at lambda_t - 1/2: the mean of lambda under the weight exp(2 lambda) that x0
    has in the step.

    Two evaluations a step, one in the step to sigma 0, which returns x0 exactly. The callback sees the x0 of
    the step's first evaluation.
    """
    walk = Walk(denoiser, x, sigmas, path, noise, callback, stochastic=True)
    x = walk.start
    for sigma, after in walk:
        x0 = walk.denoise(x, sigma)
        if after > 0:
            here, there = path.log_snr(sigma), path.log_snr(after)
            middle = path.sigma_at((here + there) / 2 if here > -math.inf else there - 0.5)
            eps = walk.draw(x)
            better = walk.denoise(_diffuse(path, x, x0, sigma, middle, eps), middle)
            first, second = _shrink(path, sigma, middle), _shrink(path, middle, after)
            kept = second**2 * (1.0 - first**2) / (1.0 - (first * second) ** 2)  # share of the variance
            eps = math.sqrt(kept) * eps + math.sqrt(1.0 - kept) * walk.draw(x)
            x = _diffuse(path, x, better, sigma, after, eps)
        else:
            x = x0
        walk.finish(x, x0)
    return x


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    path: NoisePath,
    noise: Noise | None = None,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DDIM: Song et al. 2021, arXiv:2010.02502, equations 12 and 16, on any path. First order.

    x_t = alpha_t * x0 + sqrt(t^2 - tau^2) * eps + tau * noise, where eps = (x - alpha_s * x0) / s is the
    noise that the state holds and tau = eta * t * sqrt(1 - (t * alpha_s / (s * alpha_t))^2). ``eta`` 0 is
    deterministic (and then the same as Euler's method on both paths); 1 is DDPM's ancestral sampling and
    needs ``noise``. Raises :class:`InputError` for an eta outside [0, 1], besides what all solvers raise.
    """
    if not 0.0 <= eta <= 1.0:
        raise InputError(f"eta is {eta}; allowed are 0 (deterministic) to 1 (ancestral)")
    walk = Walk(denoiser, x, sigmas, path, noise, callback, stochastic=eta > 0)
    x = walk.start
    for sigma, after in walk:
        x0 = walk.denoise(x, sigma)
        alpha, alpha_after = path.alpha(sigma), path.alpha(after)
        ratio = after * alpha / (sigma * alpha_after)
        tau = eta * after * math.sqrt(1.0 - ratio**2)
        held = math.sqrt(after**2 - tau**2) / sigma
        # alpha_t * x0 + held * (x - alpha_s * x0), with one weight for x0
        x = (alpha_after - held * alpha) * x0 + held * x
        if tau > 0:
            x = x + tau * walk.draw(x)
        walk.finish(x, x0)
    return x


def lcm(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    path: NoisePath,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Multistep consistency sampling: Song et al. 2023, arXiv:2303.01469, algorithm 1; Luo et al. 2023,
    arXiv:2310.04378, algorithm 3. Stochastic.

    Each step jumps to x0 and noises it anew to the next level, x = alpha_t * x0 + t * noise; the last one
    returns x0. For networks distilled to a consistency function; with an ordinary denoiser the result is too
    smooth. The boundary weights c_skip and c_out of the papers belong to the network's adapter: they matter
    where a network is asked near sigma 0, which this solver never does of itself. At the times of LCM's own
    schedule (19 or more of 1000) c_skip is below 1e-5 and 1 - c_out below 4e-6, so an adapter may leave them
    out; at time 4, which more than 200 even steps would reach, c_skip is 1.6e-4. On the flow path there are
    none (as in diffusers' FlowMatchLCMScheduler).
    """
    walk = Walk(denoiser, x, sigmas, path, noise, callback, stochastic=True)
    x = walk.start
    for sigma, after in walk:
        x0 = walk.denoise(x, sigma)
        x = path.noised(x0, walk.draw(x), after) if after > 0 else x0
        walk.finish(x, x0)
    return x


def _slide(x: Tensor, x0: Tensor, sigma: float, after: float) -> Tensor:
    """Follow the slope (x - x0) / sigma from ``sigma`` to ``after``; at 0 that is x0 without rounding."""
    return x0 + (x - x0) * (after / sigma) if after > 0 else x0


def _shrink(path: NoisePath, sigma: float, after: float) -> float:
    """exp(-h), where h is the step in lambda to ``after`` (above 0); 0 from pure noise."""
    return after * path.alpha(sigma) / (path.alpha(after) * sigma)


def _diffuse(path: NoisePath, x: Tensor, x0: Tensor, sigma: float, after: float, eps: Tensor) -> Tensor:
    """The diffusion SDE from ``sigma`` to ``after`` (above 0) with a constant x0: arXiv:2211.01095, eq. 18.

    (sigma_t / sigma_s) exp(-h) x + alpha_t (1 - exp(-2h)) x0 + sigma_t sqrt(1 - exp(-2h)) eps
    """
    shrink = _shrink(path, sigma, after)
    rest = 1.0 - shrink**2
    return (after / sigma * shrink) * x + (path.alpha(after) * rest) * x0 + (after * math.sqrt(rest)) * eps
