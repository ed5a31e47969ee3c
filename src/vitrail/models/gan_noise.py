"""Latents and layer noise: one normal draw a number, shaped into other distributions, truncated, blended.

A latent is always kept as standard normal numbers g; what the network sees is x = Q(Phi(g)) with the
quantile function Q of the wanted distribution, cut off at +-t where the truncation trick asks for it (Brock
et al., arXiv:1809.11096, section 3.1, which draws again instead; the distribution is the same, but here a
picture changes smoothly with t and with the distribution). Walks are great circles between the g, so they
stay typical whatever the distribution is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitrail.errors import InputError
from vitrail.recipe.gan import Distribution

__all__ = ["DISTRIBUTIONS", "Latents", "NoiseInjection", "Spread", "draw_latents", "shaped", "slerp"]


class Spread(NamedTuple):
    """A symmetric distribution of variance 1 by its upper tail, both float64 in and out.

    ``tail``: x >= 0 -> P(X > x). ``quantile``: p in (0, 1/2] -> x >= 0 with P(X > x) = p.
    """

    tail: Callable[[Tensor], Tensor]
    quantile: Callable[[Tensor], Tensor]


def _t4_tail(x: Tensor) -> Tensor:
    """Student's t with 4 degrees, scaled from variance 2 to 1 (closed form: Shaw 2006, section 3)."""
    t = x * math.sqrt(2.0)
    s = t / (4.0 + t * t).sqrt()
    # 1/2 - (3/4)(s - s^3/3), written so that nothing cancels in the tail: s = 1 - d.
    d = 4.0 / ((4.0 + t * t) + t * (4.0 + t * t).sqrt())
    return torch.where(s > 0.5, 0.25 * d * d * (3.0 - d), 0.5 - 0.75 * (s - s**3 / 3.0))


def _t4_quantile(p: Tensor) -> Tensor:
    root = (4.0 * p * (1.0 - p)).sqrt()
    excess = (torch.cos(torch.acos(root.clamp_max(1.0)) / 3.0) / root - 1.0).clamp_min(0.0)
    return (2.0 * excess).sqrt()  # 2 sqrt(excess), over sqrt(2)


DISTRIBUTIONS: dict[str, Spread] = {
    "gaussian": Spread(
        lambda x: torch.special.erfc(x / math.sqrt(2.0)) / 2.0, lambda p: -torch.special.ndtri(p)
    ),
    "uniform": Spread(
        lambda x: (0.5 - x / (2.0 * math.sqrt(3.0))).clamp_min(0.0),
        lambda p: math.sqrt(3.0) * (1.0 - 2.0 * p),
    ),
    "laplace": Spread(
        lambda x: torch.exp(-math.sqrt(2.0) * x) / 2.0, lambda p: -torch.log(2.0 * p) / math.sqrt(2.0)
    ),
    "student_t": Spread(_t4_tail, _t4_quantile),
}
"""Every distribution by name: mean 0, variance 1."""


def shaped(
    normal: Tensor, distribution: Distribution = "gaussian", truncation: float | None = None
) -> Tensor:
    """Turn standard normal numbers into ``distribution``, none beyond ``truncation`` (in its own units).

    Returns the shape and type of ``normal``; without truncation a Gaussian is returned as it came. Raises
    :class:`InputError` for an unknown name or a truncation that is not above 0.
    """
    if distribution not in DISTRIBUTIONS:
        raise InputError(f"distribution {distribution!r} is unknown; use {', '.join(DISTRIBUTIONS)}")
    if truncation is not None and not (truncation > 0.0 and math.isfinite(truncation)):
        raise InputError(f"truncation is {truncation}; it is a number above 0, such as 0.7")
    if distribution == "gaussian" and truncation is None:
        return normal
    spread = DISTRIBUTIONS[distribution]
    size = normal.double().abs()
    p = DISTRIBUTIONS["gaussian"].tail(size)
    if truncation is not None:
        cut = float(spread.tail(torch.tensor(truncation, dtype=torch.float64)))
        p = cut + p * (1.0 - 2.0 * cut)
    x = spread.quantile(p.clamp(1e-300, 0.5))
    if truncation is not None:
        x = x.clamp_max(truncation)  # rounding alone could pass it
    return (x * normal.double().sign()).to(normal.dtype)


class Latents(NamedTuple):
    """What pictures are drawn from, standard normal: z (B, latent), noise a (B, 1, h, w) for each layer."""

    z: Tensor
    noise: tuple[Tensor, ...]

    def to(self, device: torch.device) -> Latents:
        """Return the same numbers on ``device``."""
        return Latents(self.z.to(device), tuple(layer.to(device) for layer in self.noise))

    @staticmethod
    def stack(many: Sequence[Latents]) -> Latents:
        """Join the pictures of ``many`` in one batch."""
        noise = zip(*(one.noise for one in many), strict=True)
        return Latents(torch.cat([one.z for one in many]), tuple(torch.cat(layer) for layer in noise))


def draw_latents(count: int, latent: int, noise_sizes: Sequence[int], generator: torch.Generator) -> Latents:
    """Draw ``count`` latents on the generator's device: z first, then the layers from the smallest."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device)

    z = normal(count, latent)
    return Latents(z, tuple(normal(count, 1, size, size) for size in noise_sizes))


def slerp(start: Latents, end: Latents, share: float) -> Latents:
    """Go ``share`` of the way from ``start`` to ``end`` on a great circle, each picture and layer by itself.

    Shoemake 1985, eq. 3, with the length going evenly from one to the other, so that a walk passes through
    latents as typical as its ends; near-parallel ones are joined by a line.
    """
    return Latents(
        _arc(start.z, end.z, share),
        tuple(_arc(first, last, share) for first, last in zip(start.noise, end.noise, strict=True)),
    )


def _arc(start: Tensor, end: Tensor, share: float) -> Tensor:
    a, b = start.flatten(1).double(), end.flatten(1).double()
    long_a, long_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    a, b = a / long_a.clamp_min(1e-12), b / long_b.clamp_min(1e-12)
    angle = torch.acos((a * b).sum(1, keepdim=True).clamp(-1.0, 1.0))
    sine = torch.sin(angle)
    first, last = torch.sin((1.0 - share) * angle) / sine, torch.sin(share * angle) / sine
    straight = sine < 1e-6
    direction = torch.where(straight, (1.0 - share) * a + share * b, first * a + last * b)
    length = (1.0 - share) * long_a + share * long_b
    point: Tensor = (direction * length).view_as(start).to(start.dtype)
    return point


class NoiseInjection(nn.Module):
    """Adds one noise picture to every channel of x (B, C, H, W), at a learned strength.

    StyleGAN's layer noise (Karras et al., arXiv:1812.04948, section 3.2), one strength a layer as in
    arXiv:1912.04958. Whoever draws scales the noise (B, 1, H, W) to make it stronger or weaker.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.full((1,), strength))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x + self.strength * noise
