"""Every solver on pictures from N(mu, s^2), where the denoiser and the right answer are known in closed form.

On any path, with x = alpha * x0 + sigma * eps, the marginal is N(alpha * mu, v) with v = alpha^2 s^2 +
sigma^2; the best denoiser is mu + (alpha s^2 / v) (x - alpha mu); and the probability-flow ODE carries x at
sigma to mu + s (x - alpha mu) / sqrt(v) at 0, which is also the exact consistency function.

All maps are affine in the start and in the noise, so means and variances are computed exactly, not
estimated: one batch carries the constant, the response to the start and the response to the noise of every
    single draw.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vitrail.samplers import SAMPLERS, VP, Denoiser, Flow, NoisePath, karras, simple
from vitrail.samplers.solvers import ddim, unipc

MU, SPREAD = 0.3, 0.5
PATHS: dict[str, NoisePath] = {"vp": VP(), "flow": Flow()}
CASES = [(name, path) for name, info in SAMPLERS.items() for path in info.paths]
STOCHASTIC = [case for case in CASES if SAMPLERS[case[0]].stochastic and case[0] != "lcm"]
DETERMINISTIC = [case for case in CASES if not SAMPLERS[case[0]].stochastic]


def best_denoiser(path: NoisePath) -> Denoiser:
    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.reshape(-1, 1, 1, 1)
        alpha = path.alpha(level)
        variance = (alpha * SPREAD) ** 2 + level**2
        return MU + alpha * SPREAD**2 / variance * (x - alpha * MU)

    return denoise


def end_of_ode(path: NoisePath) -> Denoiser:
    def consistency(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.reshape(-1, 1, 1, 1)
        alpha = path.alpha(level)
        return MU + SPREAD * (x - alpha * MU) / ((alpha * SPREAD) ** 2 + level**2).sqrt()

    return consistency


def schedule(path: NoisePath, steps: int) -> Tensor:
    """A schedule whose last jump, from 0.001 to 0, costs a relative 2e-6 of the spread at most."""
    return karras(steps, path, sigma_min=0.001).double()


def moments(
    function: Any, denoiser: Denoiser, path: NoisePath, sigmas: Tensor, **options: Any
) -> tuple[float, float]:
    """Return the exact mean and standard deviation of the result, from the exact starting distribution."""
    rows = 2 * len(sigmas) + 2  # DPM++ SDE draws twice a step
    x = torch.zeros(rows, 1, 1, 1, dtype=torch.float64)
    x[1] = 1.0
    draws = 0

    def noise(like: Tensor) -> Tensor:
        nonlocal draws
        eps = torch.zeros_like(like)
        eps[2 + draws] = 1.0
        draws += 1
        return eps

    result = function(denoiser, x, sigmas, path=path, noise=noise, **options).flatten()
    response = result - result[0]
    first = float(sigmas[0])
    alpha = path.alpha(first)
    mean = result[0] + response[1] * alpha * MU
    variance = response[1] ** 2 * ((alpha * SPREAD) ** 2 + first**2) + (response[2:] ** 2).sum()
    return float(mean), math.sqrt(float(variance))


def ode_error(function: Any, path: NoisePath, sigmas: Tensor, **options: Any) -> float:
    """Return the largest deviation from the exact solution over starts within three standard deviations."""
    first = sigmas[:1]
    alpha = path.alpha(first)
    deviations = torch.linspace(-3, 3, 13, dtype=torch.float64).reshape(-1, 1, 1, 1)
    x = alpha * MU + deviations * ((alpha * SPREAD) ** 2 + first**2).sqrt()
    result = function(best_denoiser(path), x, sigmas, path=path, **options)
    return float((result - end_of_ode(path)(x, first.expand(len(x)))).abs().max())


ORDERS = {"euler": 1, "ddim": 1, "heun": 2, "dpmpp_2m": 2, "unipc": 2}


@pytest.mark.parametrize(("name", "path_name"), DETERMINISTIC)
def test_ode_solvers_converge_at_their_order(name: str, path_name: str) -> None:
    """Twice the steps, half (order 1) or a quarter (order 2) of the error."""
    path, function, order = PATHS[path_name], SAMPLERS[name].function, ORDERS[name]
    coarse, fine = (ode_error(function, path, schedule(path, steps)) for steps in (80, 160))
    print(f"{coarse:.2e} {fine:.2e} ratio {coarse / fine:.2f}")
    assert fine < (0.025 if order == 1 else 1e-3)
    # Orders hold in the limit only; at 160 steps the ratio is within a sixth of 2^order, or better.
    assert coarse / fine > 2**order * 5 / 6


@pytest.mark.parametrize("path_name", list(PATHS))
def test_unipc_gains_with_its_order(path_name: str) -> None:
    path = PATHS[path_name]
    errors = [ode_error(unipc, path, schedule(path, 40), order=order) for order in (1, 2, 3)]
    print(errors)
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def check_limit(function: Any, path: NoisePath, **options: Any) -> None:
    """Check that the spread's error halves (or better) with twice the steps and has no floor.

    Solvers of first order err by c / steps + O(1 / steps^2), so 2 * spread(2n) - spread(n) is free of the
    first
    term: what a wrong amount of noise would leave stands out there.
    """
    errors = []
    for steps in (80, 160, 320):
        mean, spread = moments(function, best_denoiser(path), path, schedule(path, steps), **options)
        assert abs(mean - MU) < 0.002
        errors.append(spread - SPREAD)
    print([f"{error:+.2e}" for error in errors], f"limit {2 * errors[2] - errors[1]:+.2e}")
    assert abs(errors[0]) > 1.8 * abs(errors[1]) > 1.8**2 * abs(errors[2])
    assert abs(errors[2]) < 0.015 * SPREAD
    assert abs(2 * errors[2] - errors[1]) < 0.0005 * SPREAD


@pytest.mark.parametrize(("name", "path_name"), STOCHASTIC)
def test_stochastic_solvers_reach_mean_and_variance(name: str, path_name: str) -> None:
    check_limit(SAMPLERS[name].function, PATHS[path_name])


@pytest.mark.parametrize(("start", "end"), [(0.9, 0.2), (0.5, 0.45), (1.0, 0.4)])
@pytest.mark.parametrize("path_name", list(PATHS))
def test_middle_and_end_of_a_dpmpp_sde_step_are_one_motion(path_name: str, start: float, end: float) -> None:
    """With a constant answer the state is an Ornstein-Uhlenbeck process: from the middle to the end its noise
    is damped as everything is, and what is added has nothing to do with it."""
    path = PATHS[path_name]
    x = torch.zeros(4, 1, dtype=torch.float64)
    x[1] = 1.0  # rows: the constant, the response to the start, to the first draw, to the second
    seen: list[tuple[Tensor, float]] = []
    draws = iter((2, 3))

    def constant(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append((x.flatten(), float(sigma[0])))
        return torch.full_like(x, MU)

    def noise(like: Tensor) -> Tensor:
        eps = torch.zeros_like(like)
        eps[next(draws)] = 1.0
        return eps

    sigmas = torch.tensor([start, end], dtype=torch.float64)
    result = SAMPLERS["dpmpp_sde"].function(constant, x, sigmas, path=path, noise=noise).flatten()
    (_, first), (middle, between) = seen
    assert first == start > between > end

    def damped(high: float, low: float) -> float:
        return low / high * math.exp(path.log_snr(high) - path.log_snr(low))

    def grown(high: float, low: float) -> float:
        return low**2 * (1 - math.exp(2 * (path.log_snr(high) - path.log_snr(low))))

    for state, level in ((middle, between), (result, end)):
        answer = state - state[0]
        assert float(answer[1]) == pytest.approx(damped(start, level), abs=1e-12)
        assert float((answer[2:] ** 2).sum()) == pytest.approx(grown(start, level), abs=1e-12)
        assert float(state[0]) == pytest.approx(
            (path.alpha(level) - damped(start, level) * path.alpha(start)) * MU
        )
    covariance = float((middle - middle[0])[2:] @ (result - result[0])[2:])
    assert covariance == pytest.approx(damped(between, end) * grown(start, between), abs=1e-12)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("path_name", list(PATHS))
def test_ddim_with_noise_reaches_mean_and_variance(path_name: str, eta: float) -> None:
    check_limit(ddim, PATHS[path_name], eta=eta)


@pytest.mark.parametrize("path_name", list(PATHS))
def test_ddim_with_eta_one_is_the_posterior_of_the_forward_process(path_name: str) -> None:
    """A step from s to t draws from q(x_t | x_s, x0), written here with Bayes' rule, as DDPM does.

    x_t given x0 is N(alpha_t x0, t^2); x_s given x_t is N(r x_t, s^2 - r^2 t^2) with r = alpha_s / alpha_t.
    """
    path, s, t, x0, x = PATHS[path_name], 0.8, 0.3, 0.7, -1.1
    r = path.alpha(s) / path.alpha(t)
    forward = s**2 - r**2 * t**2
    variance = 1 / (1 / t**2 + r**2 / forward)
    mean = variance * (path.alpha(t) * x0 / t**2 + r * x / forward)
    state = torch.full((1, 1), x, dtype=torch.float64)
    for eps in (-1.0, 0.0, 2.0):
        result = ddim(
            lambda x, sigma: torch.full_like(x, x0),
            state,
            torch.tensor([s, t], dtype=torch.float64),
            path=path,
            noise=lambda x, eps=eps: torch.full_like(x, eps),  # type: ignore[misc]
            eta=1.0,
        )
        assert result.item() == pytest.approx(mean + math.sqrt(variance) * eps, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 4, 9])
@pytest.mark.parametrize("path_name", list(PATHS))
def test_lcm_is_exact_on_a_consistency_function(path_name: str, steps: int) -> None:
    path = PATHS[path_name]
    mean, spread = moments(SAMPLERS["lcm"].function, end_of_ode(path), path, simple(steps, path).double())
    assert mean == pytest.approx(MU, abs=1e-12)
    assert spread == pytest.approx(SPREAD, abs=1e-12)


@pytest.mark.parametrize(("name", "path_name"), CASES)
def test_a_single_step_returns_the_denoisers_answer(name: str, path_name: str) -> None:
    path = PATHS[path_name]
    x = torch.linspace(-2, 2, 5).reshape(-1, 1, 1, 1)
    first = path.sigma_max
    result = SAMPLERS[name].function(
        best_denoiser(path), x, torch.tensor([first, 0.0]), path=path, noise=torch.randn_like
    )
    expected = best_denoiser(path)(x, torch.full((5,), float(torch.tensor(first))))
    assert torch.equal(result, expected)
