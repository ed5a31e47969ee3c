"""What every autoencoder gives and takes: latents, codes and Gaussians, with their scale inside.

The scale and shift of a latent (LDM, Rombach et al., arXiv:2112.10752, appendix G) are applied by the
autoencoder itself: what ``encode`` hands out has about unit variance, what ``decode`` takes is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Autoencoder", "Encoded", "LatentSpec", "Posterior", "Quantized", "Reconstruction"]


@dataclass(frozen=True)
class LatentSpec:
    """Shape and scale of a latent: (B, channels, H / downsample, W / downsample) of a picture (B, c, H, W).

    ``outward`` and ``inward`` turn the network's own numbers into those that callers see, and back.
    """

    channels: int
    downsample: int
    scale: float = 1.0
    shift: float = 0.0

    def outward(self, z: Tensor) -> Tensor:
        """Return ``(z - shift) * scale``; any shape."""
        return z if self.scale == 1.0 and self.shift == 0.0 else (z - self.shift) * self.scale

    def inward(self, z: Tensor) -> Tensor:
        """Return ``z / scale + shift``, the inverse of :meth:`outward`."""
        return z if self.scale == 1.0 and self.shift == 0.0 else z / self.scale + self.shift


class Quantized(NamedTuple):
    """What a quantizer makes of latents (B, C, h, w).

    z: quantized latents (B, C, h, w) float32, with a gradient to the encoder.
    codes: (B, h, w) int64, or (B, h, w, q) for q codes a position.
    loss: scalar, what the quantizer adds to the training loss (0 where it needs none).
    used: number of distinct codes in this batch, int64 scalar (of the first stage for several).
    """

    z: Tensor
    codes: Tensor
    loss: Tensor
    used: Tensor


class Posterior:
    """Diagonal Gaussian over latents (Kingma & Welling, arXiv:1312.6114, appendix B).

    Parameters
    ----------
    moments: (B, 2 C, h, w), the mean and then the logarithm of the variance, which is clamped to [-30, 20].
    spec: scale and shift of what :attr:`z` and :meth:`sample` hand out.
    """

    def __init__(self, moments: Tensor, spec: LatentSpec) -> None:
        mean, logvar = moments.float().chunk(2, dim=1)
        self.mean = mean
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.spec = spec

    @property
    def z(self) -> Tensor:
        """The most likely latent (B, C, h, w): the mean, scaled."""
        return self.spec.outward(self.mean)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw a latent (B, C, h, w), scaled. Noise is drawn on the generator's device (default: CPU)."""
        return self.spec.outward(self._draw(generator))

    def _draw(self, generator: torch.Generator | None) -> Tensor:
        device = generator.device if generator is not None else torch.device("cpu")
        noise = torch.randn(self.mean.shape, generator=generator, device=device).to(self.mean.device)
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Tensor:
        """Divergence from a standard normal, in nats, summed over each latent: (B,)."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).flatten(1).sum(1)


class Reconstruction(NamedTuple):
    """What an autoencoder's ``forward`` returns.

    x: pictures (B, c, H, W) float32, not clamped. latent: what they were decoded from.
    """

    x: Tensor
    latent: Quantized | Posterior

    @property
    def loss(self) -> Tensor:
        """The latent's own loss, a scalar: the quantizer's, or the divergence a picture in nats."""
        return self.latent.loss if isinstance(self.latent, Quantized) else self.latent.kl().mean()


class Encoded(Protocol):
    """A latent with what belongs to it: :class:`Quantized` or :class:`Posterior`."""

    @property
    def z(self) -> Tensor:
        """Latents (B, C, h, w), scaled."""
        ...


class Autoencoder(Protocol):
    """Pictures to latents and back; whoever uses one need not know which kind it is."""

    @property
    def latent(self) -> LatentSpec:
        """Shape and scale of the latents."""
        ...

    def encode(self, x: Tensor) -> Encoded:
        """Encode pictures (B, c, H, W) in [-1, 1]; sides must be multiples of ``latent.downsample``."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Decode latents (B, C, h, w) to pictures (B, c, H, W) float32, not clamped."""
        ...
