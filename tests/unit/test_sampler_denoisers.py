"""Guidance and known regions around a denoiser."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from vitrail.errors import InputError
from vitrail.samplers import (
    SAMPLERS,
    VP,
    Flow,
    NoisePath,
    Predicts,
    from_network,
    simple,
    with_guidance,
    with_known_region,
    with_paired_guidance,
)


class Fixed:
    """A denoiser that always answers the same and counts its calls."""

    def __init__(self, x0: Tensor) -> None:
        self.x0, self.calls = x0, 0

    def __call__(self, x: Tensor, sigma: Tensor, /) -> Tensor:
        self.calls += 1
        return self.x0


@pytest.fixture
def pair() -> tuple[Fixed, Fixed]:
    one, two = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return Fixed(one), Fixed(two)


X = torch.zeros(3, 2, 4, 4)


def at(*sigmas: float) -> Tensor:
    return torch.tensor(sigmas)


def test_guidance_by_hand(pair: tuple[Fixed, Fixed]) -> None:
    cond, uncond = pair
    guided = with_guidance(cond, uncond, 5.0)(X, at(0.5, 0.5, 0.5))
    torch.testing.assert_close(guided, 5 * cond.x0 - 4 * uncond.x0)
    torch.testing.assert_close(with_guidance(cond, uncond, 0.0)(X, at(0.5, 0.5, 0.5)), uncond.x0)


def test_guiding_pictures_is_guiding_the_networks_output() -> None:
    """Ho and Salimans guide the noise; being linear, that is the same in every parametrisation."""
    generator = torch.Generator().manual_seed(0)
    one, two, x = (torch.randn(3, 2, 4, 4, generator=generator) for _ in range(3))
    sigma = at(14.0, 1.0, 0.1)
    outputs: list[Predicts] = ["eps", "v"]
    for predicts in outputs:
        cond = from_network(Fixed(one), VP(), predicts)
        uncond = from_network(Fixed(two), VP(), predicts)
        whole = from_network(Fixed(two + 7.5 * (one - two)), VP(), predicts)
        guided = with_guidance(cond, uncond, 7.5)(x, sigma)
        torch.testing.assert_close(guided, whole(x, sigma), rtol=1e-4, atol=1e-4)


def test_scale_one_asks_once(pair: tuple[Fixed, Fixed]) -> None:
    cond, uncond = pair
    assert torch.equal(with_guidance(cond, uncond, 1.0)(X, at(0.5, 0.5, 0.5)), cond.x0)
    assert (cond.calls, uncond.calls) == (1, 0)


@pytest.mark.parametrize("rescale", [0.0, 0.3, 0.7, 1.0])
def test_rescale_is_that_of_diffusers(pair: tuple[Fixed, Fixed], rescale: float) -> None:
    cond, uncond = pair
    ours = with_guidance(cond, uncond, 7.5, rescale=rescale)(X, at(0.5, 0.5, 0.5))
    theirs = rescale_noise_cfg(uncond.x0 + 7.5 * (cond.x0 - uncond.x0), cond.x0, guidance_rescale=rescale)
    torch.testing.assert_close(ours, theirs)
    if rescale == 1.0:
        torch.testing.assert_close(ours.std(dim=(1, 2, 3)), cond.x0.std(dim=(1, 2, 3)))


def test_rescale_of_a_flat_picture_is_finite() -> None:
    flat = Fixed(torch.ones(3, 2, 4, 4))
    guided = with_guidance(flat, flat, 3.0, rescale=1.0)(X, at(0.5, 0.5, 0.5))
    assert torch.equal(guided, flat.x0)


@pytest.mark.parametrize(
    ("sigma", "guided"), [(0.1, False), (0.2, True), (0.5, True), (0.8, True), (0.9, False)]
)
def test_interval_on_flow_is_in_sigma(pair: tuple[Fixed, Fixed], sigma: float, guided: bool) -> None:
    cond, uncond = pair
    for path in (None, Flow()):
        level = torch.full((3,), sigma, dtype=torch.float64)
        result = with_guidance(cond, uncond, 5.0, interval=(0.2, 0.8), path=path)(X, level)
        torch.testing.assert_close(result, 5 * cond.x0 - 4 * uncond.x0 if guided else cond.x0)
    assert uncond.calls == (2 if guided else 0)


def test_interval_on_vp_is_in_the_flow_time_of_the_same_noise(pair: tuple[Fixed, Fixed]) -> None:
    cond, uncond = pair
    denoiser = with_guidance(cond, uncond, 5.0, interval=(0.219, 0.744), path=VP())
    result = denoiser(X, at(0.27, 1.0, 3.0))  # Kynkäänniemi et al. guide in 0.28 < sigma <= 2.9
    assert torch.equal(result[0], cond.x0[0])
    torch.testing.assert_close(result[1], 5 * cond.x0[1] - 4 * uncond.x0[1])
    assert torch.equal(result[2], cond.x0[2])


def test_an_interval_on_vp_needs_its_path(pair: tuple[Fixed, Fixed]) -> None:
    with pytest.raises(InputError, match="path="):
        with_guidance(*pair, 5.0, interval=(0.2, 0.8))(X, at(14.0, 14.0, 14.0))
    whole = with_guidance(*pair, 5.0)(X, at(14.0, 14.0, 14.0))  # the whole interval needs none
    torch.testing.assert_close(whole, 5 * pair[0].x0 - 4 * pair[1].x0)


def test_one_pass_for_both_is_the_same(pair: tuple[Fixed, Fixed]) -> None:
    cond, uncond = pair
    both = with_paired_guidance(lambda x, sigma: (cond.x0, uncond.x0), cond, 4.0, (0.3, 1.0), 0.5)
    separate = with_guidance(cond, uncond, 4.0, (0.3, 1.0), 0.5)
    for sigma in (0.1, 0.3, 1.0):
        assert torch.equal(both(X, at(sigma, sigma, sigma)), separate(X, at(sigma, sigma, sigma)))


@pytest.mark.parametrize(
    "options",
    [
        {"scale": math.nan},
        {"scale": math.inf},
        {"interval": (0.8, 0.2)},
        {"interval": (-0.1, 1.0)},
        {"interval": (0.0, 1.1)},
        {"interval": (math.nan, 1.0)},
        {"rescale": -0.1},
        {"rescale": 1.1},
        {"rescale": math.nan},
    ],
)
def test_impossible_guidance_is_refused(pair: tuple[Fixed, Fixed], options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        with_guidance(*pair, **{"scale": 2.0, **options})


@pytest.mark.parametrize("path", [VP(), Flow()], ids=["vp", "flow"])
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_sampler_returns_the_known_region_to_the_bit(name: str, path: NoisePath) -> None:
    generator = torch.Generator().manual_seed(3)
    known = torch.randn(2, 3, 8, 8, generator=generator)
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:6, 2:6] = 1.0

    def dim(x: Tensor, sigma: Tensor) -> Tensor:
        return 0.5 * torch.tanh(x)

    sigmas = simple(6, path)
    x = path.start(torch.randn(known.shape, generator=generator), float(sigmas[0]))
    denoiser = with_known_region(dim, known, mask)
    result = SAMPLERS[name].function(denoiser, x, sigmas, path=path, noise=torch.randn_like)
    outside = mask.expand_as(known) == 0
    assert torch.equal(result[outside], known[outside])
    assert bool((result[~outside].abs() <= 0.5).all())


def test_a_known_region_travels_on_its_own_path() -> None:
    """A deterministic solver holds alpha * known + sigma * eps there, with the eps of the start."""
    generator = torch.Generator().manual_seed(4)
    known, eps = torch.randn(2, 1, 3, 4, 4, generator=generator, dtype=torch.float64)
    mask = torch.zeros(1, 1, 4, 4)
    path, seen = Flow(), []

    def inner(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append((x, sigma))
        return torch.zeros_like(x)

    sigmas = simple(5, path)
    denoiser = with_known_region(inner, known, mask)
    for name in ("euler", "heun", "dpmpp_2m", "ddim"):
        SAMPLERS[name].function(denoiser, path.noised(known, eps, float(sigmas[0])), sigmas, path=path)
    assert len(seen) == 5 + 9 + 5 + 5
    for x, sigma in seen:
        torch.testing.assert_close(x, path.noised(known, eps, sigma))


def test_mask_blends_and_ignores_what_it_hides() -> None:
    known = torch.tensor([1.0, 1.0, math.nan]).reshape(1, 1, 1, 3)
    mask = torch.tensor([0.0, 0.25, 1.0]).reshape(1, 1, 1, 3)
    made = Fixed(torch.full((2, 1, 1, 3), 3.0))
    result = with_known_region(made, known, mask)(torch.zeros(2, 1, 1, 3), at(0.5, 0.5))
    assert result[:, 0, 0].tolist() == [[1.0, 1.5, 3.0]] * 2


def test_impossible_known_regions_are_refused() -> None:
    made = Fixed(torch.zeros(1, 3, 4, 4))
    picture = torch.zeros(1, 3, 4, 4)
    for mask in (
        torch.full((1, 1, 4, 4), 1.5),
        torch.full((1, 1, 4, 4), math.nan),
        torch.full((1, 1, 4, 4), -1.0),
    ):
        with pytest.raises(InputError, match="mask"):
            with_known_region(made, picture, mask)
    with pytest.raises(InputError, match="finite"):
        with_known_region(made, picture * math.nan, torch.zeros(1, 1, 4, 4))
    with pytest.raises(InputError, match="fit"):
        with_known_region(made, picture, torch.zeros(1, 1, 5, 5))
    for shape in ((1, 3, 8, 8), (5, 3, 4, 4)):
        denoiser = with_known_region(made, torch.zeros(shape), torch.zeros(1, 1, 1, 1))
        with pytest.raises(InputError, match="fit"):
            denoiser(picture, at(0.5))
