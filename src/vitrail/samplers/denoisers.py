"""Denoisers and what is wrapped around them: the network's adapter, guidance, known regions.

A denoiser is any callable ``(x, sigma) -> x0``: state (B, ...) and noise levels (B,) in, the expected picture
(B, ...) out, its conditions (prompt, style) already bound. Solvers know nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from vitrail.errors import InputError
from vitrail.samplers.paths import NoisePath, Predicts

__all__ = ["Denoiser", "from_network", "with_guidance", "with_known_region", "with_paired_guidance"]


class Denoiser(Protocol):
    """``(x (B, ...), sigma (B,)) -> x0 (B, ...)``."""

    def __call__(self, x: Tensor, sigma: Tensor, /) -> Tensor: ...


def from_network(
    network: Callable[[Tensor, Tensor], Tensor], path: NoisePath, predicts: Predicts
) -> Denoiser:
    """Return the denoiser of a network ``(input (B, ...), time (B,)) -> output (B, ...)``.

    The input is scaled and the time computed as ``path`` says (VP: x / sqrt(1 + sigma^2) and the DDPM time in
    [0, 999]; flow: x and t); the output is turned into the picture by ``path.to_x0`` with ``predicts``.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        output = network(path.network_input(x, sigma), path.time(sigma))
        return path.to_x0(output.to(x.dtype), x, sigma, predicts)

    return denoise


def with_guidance(
    cond: Denoiser,
    uncond: Denoiser,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
    rescale: float = 0.0,
    *,
    path: NoisePath | None = None,
) -> Denoiser:
    """Return classifier-free guidance: x0 = uncond + scale * (cond - uncond).

    Ho and Salimans 2022, arXiv:2207.12598, with Stable Diffusion's meaning of ``scale``: 1 is no guidance, 0
    is
    ``uncond``. Being linear, the rule is the same for pictures, noise and velocities.

    interval: (low, high) within [0, 1]: guide only where low <= level <= high, else return ``cond`` alone,
        at the price of one evaluation (Kynkäänniemi et al. 2024, arXiv:2404.07724). The level of a sigma is
        sigma / (alpha + sigma): on flow that is sigma itself, on VP sigma / (1 + sigma), the flow time with
        the same signal-to-noise ratio (the paper's interval 0.28 < sigma <= 2.9 is (0.219, 0.744)). An
        interval narrower than (0, 1) on VP therefore needs ``path``; without one, sigma is taken as the
        level.
    rescale: phi of Lin et al. 2023, arXiv:2305.08891, equations 15 and 16, in [0, 1]: how far the guided
        picture's standard deviation (over everything but the batch) is pulled back to that of ``cond``.

    Raises :class:`InputError` for numbers outside these ranges; when called, for a sigma above 1 with a
    narrow interval and no path.
    """

    def pair(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return cond(x, sigma), uncond(x, sigma)

    return with_paired_guidance(pair, cond, scale, interval, rescale, path=path)


def with_paired_guidance(
    pair: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    cond: Denoiser,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
    rescale: float = 0.0,
    *,
    path: NoisePath | None = None,
) -> Denoiser:
    """Return guidance as :func:`with_guidance` does, for a network that answers both questions in one pass.

    ``pair(x, sigma)`` returns (cond's x0, uncond's x0), for instance from one batch of 2B; ``cond`` alone is
    used
    where no guidance is due.
    """
    low, high = interval
    if not math.isfinite(scale):
        raise InputError(f"guidance scale is {scale}; it must be a finite number (1 is no guidance)")
    if not 0.0 <= low <= high <= 1.0:
        raise InputError(f"guidance interval is ({low}, {high}); 0 <= low <= high <= 1 is needed")
    if not 0.0 <= rescale <= 1.0:
        raise InputError(f"guidance rescale is {rescale}; allowed are 0 to 1")
    everywhere = (low, high) == (0.0, 1.0)

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        if scale == 1.0:
            return cond(x, sigma)
        if everywhere:
            return _guide(*pair(x, sigma), scale, rescale)
        level = _level(sigma, path)
        inside = (level >= low) & (level <= high)
        if not bool(inside.any()):
            return cond(x, sigma)
        with_cond, without = pair(x, sigma)
        x0 = _guide(with_cond, without, scale, rescale)
        if bool(inside.all()):
            return x0
        return torch.where(inside.reshape(-1, *([1] * (x.ndim - 1))), x0, with_cond)

    return guided


def with_known_region(inner: Denoiser, known: Tensor, mask: Tensor) -> Denoiser:
    """Return a denoiser whose answer is ``known`` wherever ``mask`` is 0 (replacement, latent blending).

    known: the picture (or latent) to keep, broadcastable to x: (B, C, H, W) or (1, C, H, W).
    mask: 1 where the picture is to be made, 0 where it is known, fractions blend; broadcastable to x, such as
        (B, 1, H, W).

    The solver then carries the known region along its exact path, since the noise in it is whatever noise the
    state holds there: a solver that ends at sigma 0 returns ``known`` itself under mask 0. Start an edit of
    an existing picture from ``path.noised(known, eps, sigmas[0])``.

    What is made is not a sample given the known region: at high noise the network sees the known region
    noised and never learns that it was fixed, so the seam shows. Of a pair of normal numbers with correlation
    0.9, one known, the other goes half as far as it should.
    :func:`~vitrail.samplers.resampling.with_resampling` around the sampler closes most of that gap, at its
    price; an inpainting network needs neither.

    Raises :class:`InputError` for a mask outside [0, 1] or a known region that is not finite; when called,
    for shapes that do not fit.
    """
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise InputError("the mask has values outside [0, 1]; 1 means make anew, 0 means keep")
    # What lies under mask 1 is never looked at, so it may be anything, even NaN.
    keep = (1 - mask.float()).to(known.device)
    try:
        kept = torch.where(keep > 0, known, torch.zeros_like(known))
    except RuntimeError as error:
        raise InputError(
            f"known region {tuple(known.shape)} and mask {tuple(mask.shape)} do not fit one another"
        ) from error
    if not bool(torch.isfinite(kept).all()):
        raise InputError("the known region has values that are not finite")

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        x0 = inner(x, sigma)
        weight, fixed = keep.to(x0), kept.to(x0)
        try:
            blended = x0 + weight * (fixed - x0)
        except RuntimeError as error:
            raise InputError(
                f"known region {tuple(known.shape)} and mask {tuple(mask.shape)} do not fit {tuple(x0.shape)}"
            ) from error
        if blended.shape != x0.shape:
            raise InputError(
                f"known region {tuple(known.shape)} and mask {tuple(mask.shape)} do not fit {tuple(x0.shape)}"
            )
        # Where the weight is exactly 1 the result is the known value to the last bit.
        return torch.where(weight == 1, fixed, blended)

    return denoise


def _level(sigma: Tensor, path: NoisePath | None) -> Tensor:
    if path is not None:
        return sigma / (path.alpha(sigma) + sigma)
    if bool((sigma > 1).any()):
        raise InputError(
            f"a guidance interval at sigma {float(sigma.max()):g} needs path=; without it sigma is at most 1"
        )
    return sigma


def _guide(cond: Tensor, uncond: Tensor, scale: float, rescale: float) -> Tensor:
    guided = uncond + scale * (cond - uncond)
    if rescale == 0.0:
        return guided
    axes = tuple(range(1, cond.ndim))
    wanted, got = cond.std(dim=axes, keepdim=True), guided.std(dim=axes, keepdim=True)
    # A flat picture has no spread to restore.
    ratio = torch.where(got > 0, wanted / got.clamp_min(torch.finfo(got.dtype).tiny), torch.ones_like(got))
    return guided * (rescale * ratio + (1.0 - rescale))
