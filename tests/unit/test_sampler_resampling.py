"""Known regions with and without walking back and forth, where the right answer is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vitrail.errors import InputError
from vitrail.samplers import SAMPLERS, SCHEDULES, with_known_region, with_resampling
from vitrail.samplers.denoisers import Denoiser
from vitrail.samplers.paths import VP, Flow, NoisePath

RHO, KNOWN, COUNT = 0.9, 1.5, 6000
COVARIANCE = torch.tensor([[1.0, RHO], [RHO, 1.0]], dtype=torch.float64)
MEAN, SPREAD = RHO * KNOWN, math.sqrt(1 - RHO**2)  # of the one number given the other


def exact_denoiser(path: NoisePath) -> Denoiser:
    """E[x0 | x] for x = alpha x0 + sigma eps with x0 ~ N(0, COVARIANCE)."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma[:1]
        alpha = path.alpha(level)
        noisy = alpha**2 * COVARIANCE + level**2 * torch.eye(2, dtype=torch.float64)
        return x @ (alpha * torch.linalg.solve(noisy, COVARIANCE))

    return denoise


def given_the_known(path: NoisePath, name: str, repeats: int, jump: int = 1, steps: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    known = torch.tensor([[0.0, KNOWN]], dtype=torch.float64)
    denoiser = with_known_region(exact_denoiser(path), known, torch.tensor([[1.0, 0.0]]))
    sigmas = SCHEDULES["simple"](steps, path)
    start = path.start(noise(torch.empty(COUNT, 2)), float(sigmas[0]))
    sampler = with_resampling(SAMPLERS[name].function, repeats, jump)
    out = sampler(denoiser, start, sigmas, path=path, noise=noise)
    assert (out[:, 1] == KNOWN).all()
    return out[:, 0]


@pytest.mark.parametrize("path", [Flow(), VP()], ids=["flow", "vp"])
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
def test_resampling_closes_most_of_the_gap_of_replacement(path: NoisePath, name: str) -> None:
    alone = given_the_known(path, name, 1)
    assert 0.4 * MEAN < alone.mean() < 0.6 * MEAN  # what the documentation says of replacement alone
    assert alone.std() > 1.3 * SPREAD
    errors = [abs(float(given_the_known(path, name, repeats).mean()) - MEAN) for repeats in (1, 3, 10)]
    assert errors[0] > 2 * errors[1] > 2.5 * errors[2]
    assert errors[2] < 0.1 * MEAN
    stretched = given_the_known(path, name, 10, jump=4)
    assert abs(float(stretched.mean()) - MEAN) < 0.13 * MEAN
    assert abs(float(stretched.std()) - SPREAD) < 0.1 * SPREAD


@pytest.mark.parametrize("path", [Flow(), VP()], ids=["flow", "vp"])
def test_without_a_known_region_the_distribution_stays(path: NoisePath) -> None:
    """Going up by noise gives again a state of that level: nothing drifts."""
    generator = torch.Generator().manual_seed(1)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    sigmas = SCHEDULES["simple"](40, path)
    start = path.start(noise(torch.empty(20_000, 2)), float(sigmas[0]))
    sampler = with_resampling(SAMPLERS["heun"].function, 3, 8)
    out = sampler(exact_denoiser(path), start, sigmas, path=path, noise=noise)
    assert torch.allclose(torch.cov(out.T), COVARIANCE, atol=0.05)
    assert out.mean(0).abs().max() < 0.03


def test_steps_are_told_once_each_and_in_order() -> None:
    path, told = Flow(), list[tuple[int, int]]()
    sigmas = SCHEDULES["simple"](7, path)
    sampler = with_resampling(SAMPLERS["euler"].function, 3, 3)
    sampler(
        exact_denoiser(path),
        torch.zeros(2, 2, dtype=torch.float64),
        sigmas,
        path=path,
        noise=torch.randn_like,
        callback=lambda step, steps, x0: told.append((step, steps)),
    )
    assert told == [(step, 7) for step in range(7)]


def test_one_repeat_is_the_sampler_itself_and_nonsense_is_refused() -> None:
    euler = SAMPLERS["euler"].function
    assert with_resampling(euler, 1) is euler
    for repeats, jump in ((0, 1), (2, 0)):
        with pytest.raises(InputError, match="at least 1"):
            with_resampling(euler, repeats, jump)
    with pytest.raises(InputError, match="noise source"):
        with_resampling(euler, 2)(
            exact_denoiser(Flow()), torch.zeros(1, 2), torch.tensor([1.0, 0.0]), path=Flow()
        )


def test_lcms_boundary_weights_are_what_the_solver_says() -> None:
    """c_skip = s^2 / ((10 t)^2 + s^2), c_out = 10 t / sqrt((10 t)^2 + s^2), s = 0.5 (LCM, appendix)."""

    def weights(time: float) -> tuple[float, float]:
        scaled = 10.0 * time
        return 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)

    skip, out = weights(19)
    assert skip < 1e-5
    assert 1 - out < 4e-6
    assert weights(4)[0] == pytest.approx(1.6e-4, rel=0.03)
