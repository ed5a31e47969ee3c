"""The generator of MI-GAN, which fills holes in photographs: an encoder and a decoder of separable
convolutions.

Sargsyan, Navasardyan, Xu and Shi, "MI-GAN: A Simple Baseline for Image Inpainting on Mobile Devices", ICCV
2023, section 3.1. As in StyleGAN2 (arXiv:1912.04958) activations are leaky ReLUs of gain sqrt 2, clamped,
the picture grows through skips in colour, and noise is added at every layer of the decoder; here the noise is
fixed, a part of the weights. Names of the weights are those of the published model.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["MIGAN", "MIGANConfig"]

_CLAMP = 256.0
_TAPS = (1.0, 3.0, 3.0, 1.0)  # of the filter before every halving and after every doubling


class MIGANConfig(BaseModel):
    """Shape of :class:`MIGAN`.

    ``channels``: at 4 x 4, 8 x 8, ... up to the picture's own size, which is ``2 ** (len(channels) + 1)``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["migan"] = "migan"
    channels: tuple[int, ...] = Field(
        default=(512, 512, 512, 512, 512, 256, 128, 64), min_length=2, max_length=9
    )

    @model_validator(mode="after")
    def _counts(self) -> MIGANConfig:
        if not all(1 <= count <= 1024 for count in self.channels):
            raise ValueError("channels must lie between 1 and 1024")
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides in pixels, 4 first."""
        return tuple(4 << level for level in range(len(self.channels)))

    @property
    def size(self) -> int:
        """Side in pixels of the picture."""
        return self.sizes[-1]


class MIGAN(nn.Module):
    """A hole and its surroundings -> the whole square.

    ``forward(picture, known)``: (B, 3, S, S) in [-1, 1] and (B, 1, S, S), 1 where the picture is known and 0
    in the hole -> (B, 3, S, S) about [-1, 1], with S = ``config.size``. What lies in the hole is not read.
    """

    def __init__(self, config: MIGANConfig) -> None:
        super().__init__()
        self.config = config
        width = dict(zip(config.sizes, config.channels, strict=True))
        encoder, synthesis = {}, {}
        for size in config.sizes:
            here, below, above = width[size], width.get(size // 2), width.get(size * 2)
            encoder[f"b{size}"] = _Down(here, below, first=above is None)
            synthesis[f"b{size}"] = _Up(here, below, size)
        self.encoder = nn.ModuleDict(encoder)
        self.synthesis = nn.ModuleDict(synthesis)

    def forward(self, picture: Tensor, known: Tensor) -> Tensor:
        x = torch.cat((known - 0.5, picture * known), dim=1)
        skips: dict[int, Tensor] = {}
        for size in reversed(self.config.sizes):
            x, skips[size] = self.encoder[f"b{size}"](x)
        colours: Tensor | None = None
        for size in self.config.sizes:
            x, colours = self.synthesis[f"b{size}"](x, skips[size], colours)
        assert colours is not None
        return colours


class _Separable(nn.Module):
    """A 3 x 3 convolution of each channel, then a mixture of channels; with a halving or doubling between
    them, and fixed noise, where asked for.
    """

    noise: Tensor | None

    def __init__(
        self, inputs: int, outputs: int, *, change: Literal["half", "same", "double"] = "same", noise: int = 0
    ) -> None:
        super().__init__()
        self.change = change
        self.conv1 = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs)
        self.conv2 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.register_buffer("noise", torch.zeros(noise, noise) if noise else None)

    def forward(self, x: Tensor) -> Tensor:
        x = _activated(self.conv1(x))
        if self.change == "half":
            x = _halved(x)
        x = self.conv2(x)
        if self.change == "double":
            x = _doubled(x)
        if self.noise is not None:
            x = x + self.noise
        return _activated(x)


class _Down(nn.Module):
    """One level of the encoder: returns what goes down and what crosses over."""

    def __init__(self, here: int, below: int | None, *, first: bool) -> None:
        super().__init__()
        self.fromrgb = nn.Conv2d(4, here, 1) if first else None
        self.conv1 = _Separable(here, here)
        self.conv2 = _Separable(here, below, change="half") if below is not None else _Separable(here, here)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.fromrgb is not None:
            x = _activated(self.fromrgb(x))
        across = self.conv1(x)
        return self.conv2(across), across


class _Up(nn.Module):
    """One level of the decoder; the first one (``below`` None) neither doubles nor has noise."""

    def __init__(self, here: int, below: int | None, size: int) -> None:
        super().__init__()
        if below is None:
            self.conv1, self.conv2 = _Separable(here, here), _Separable(here, here)
        else:
            self.conv1 = _Separable(below, here, change="double", noise=size)
            self.conv2 = _Separable(here, here, noise=size)
        self.torgb = nn.Conv2d(here, 3, 1)

    def forward(self, x: Tensor, across: Tensor, colours: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.conv2(self.conv1(x) + across)
        made = self.torgb(x)
        return x, made if colours is None else _doubled(colours) + made


def _activated(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.2).mul_(math.sqrt(2)).clamp_(-_CLAMP, _CLAMP)


def _halved(x: Tensor) -> Tensor:
    """Smooth with (1 3 3 1) / 8 both ways and take every second pixel; beyond the edges is zero."""
    taps = torch.tensor(_TAPS, dtype=x.dtype, device=x.device) / 8
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4)
    return functional.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


def _doubled(x: Tensor) -> Tensor:
    """Zeros between the pixels, then (1 3 3 1) / 4 both ways; beyond the edges is zero.

    Written out, the new pixels are (x[i-1] + 3 x[i]) / 4 and (3 x[i] + x[i+1]) / 4: bilinear doubling of the
    picture with a frame of zeros, which is many times faster than the filter.
    """
    framed = functional.pad(x, (1, 1, 1, 1))
    doubled = functional.interpolate(framed, scale_factor=2.0, mode="bilinear", align_corners=False)
    return doubled[:, :, 2:-2, 2:-2]
