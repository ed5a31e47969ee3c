"""Discriminators of pictures: PatchGAN, and heads over frozen features (projected GAN).

Both return logits (B, levels, h, w), higher for real, one for each part of the picture; losses average them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from vitrail.recipe.autoencoders import (
    DiscriminatorConfig,
    FeatureDiscriminatorConfig,
    PatchDiscriminatorConfig,
)

__all__ = [
    "ActNorm",
    "FeatureDiscriminator",
    "FeaturePyramid",
    "PatchDiscriminator",
    "build_discriminator",
]

#: Pictures (B, 3, H, W) in [-1, 1] -> maps (B, C_i, H_i, W_i), largest first.
FeaturePyramid = Callable[[Tensor], Sequence[Tensor]]


class ActNorm(nn.Module):
    """Scale and shift of each channel, set by the first training batch to mean 0 and deviation 1.

    Glow, Kingma & Dhariwal, arXiv:1807.03039, section 3.1. Names and shapes are taming's; ``initialized``
    is part of the state, so a resumed training does not set them again.
    """

    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not int(self.initialized):
            with torch.no_grad():
                values = x.detach().float().transpose(0, 1).flatten(1)
                self.loc.copy_(-values.mean(1).view_as(self.loc))
                self.scale.copy_(1.0 / (values.std(1).view_as(self.scale) + 1e-6))
                self.initialized.fill_(1)
        return self.scale * (x + self.loc)


def _maybe_spectral(layer: nn.Conv2d, wanted: bool) -> nn.Module:
    module: nn.Module = spectral_norm(layer) if wanted else layer
    return module


class PatchDiscriminator(nn.Module):
    """PatchGAN (pix2pix, Isola et al., arXiv:1611.07004, section 3.2), with taming's names ``main.{i}``.

    Pictures (B, c, H, W) -> logits (B, 1, h, w), with h about H / 2**layers; each sees 70 x 70 pixels with
    3 layers. Weights begin as N(0, 0.02), batch norm's scales as N(1, 0.02).
    """

    def __init__(self, config: PatchDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * min(2**level, 8) for level in range(config.layers + 1)]
        layers: list[nn.Module] = [
            self._conv(config.in_channels, widths[0], 2, bias=True),
            nn.LeakyReLU(0.2),
        ]
        for level in range(1, config.layers + 1):
            stride = 2 if level < config.layers else 1
            layers += [
                self._conv(widths[level - 1], widths[level], stride, bias=config.norm != "batch"),
                self._norm(widths[level]),
                nn.LeakyReLU(0.2),
            ]
        layers.append(self._conv(widths[-1], 1, 1, bias=True))
        self.main = nn.Sequential(*layers)

    def _conv(self, inputs: int, outputs: int, stride: int, *, bias: bool) -> nn.Module:
        layer = nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1, bias=bias)
        nn.init.normal_(layer.weight, 0.0, 0.02)
        return _maybe_spectral(layer, self.config.spectral_norm)

    def _norm(self, channels: int) -> nn.Module:
        if self.config.norm == "act":
            return ActNorm(channels)
        if self.config.norm == "group":
            return nn.GroupNorm(8, channels, eps=1e-6)
        if self.config.norm == "none":
            return nn.Identity()
        layer = nn.BatchNorm2d(channels)
        nn.init.normal_(layer.weight, 1.0, 0.02)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.main(x.contiguous(memory_format=torch.channels_last))
        return logits.float()


class FeatureDiscriminator(nn.Module):
    """Small heads over a frozen network's maps (Projected GAN, Sauer et al., arXiv:2111.01007, section 3).

    Fixed random projections mix channels (1x1, "CCM") and, from coarse to fine, scales (3x3, "CSM"), so that
    no head can look at the easiest channels alone. Every head halves its map to the size of the coarsest one,
    so levels count equally: pictures (B, 3, H, W) -> logits (B, levels, h, w) of the coarsest map's size.

    The frozen network is given by :meth:`attach`, which keeps it out of the state dict; the projections are
    buffers, drawn from ``config.seed``.
    """

    def __init__(self, config: FeatureDiscriminatorConfig, features: FeaturePyramid | None = None) -> None:
        super().__init__()
        self.config = config
        self._features: list[FeaturePyramid] = []  # in a list: a module kept as an attribute would be trained
        count, width = len(config.feature_channels), config.width
        inputs = [width] * count if config.mixing else list(config.feature_channels)
        if config.mixing:
            generator = torch.Generator().manual_seed(config.seed)
            for level, channels in enumerate(config.feature_channels):
                self._random(f"mix_channels_{level}", (width, channels, 1, 1), generator)
                if level + 1 < count:
                    self._random(f"mix_scales_{level}", (width, width, 3, 3), generator)
        self.heads = nn.ModuleList(
            self._head(channels, count - 1 - level) for level, channels in enumerate(inputs)
        )
        if features is not None:
            self.attach(features)

    def attach(self, features: FeaturePyramid) -> FeatureDiscriminator:
        """Set the frozen network: pictures in [-1, 1] to maps, largest first; gradients pass through it."""
        self._features[:] = [features]
        return self

    def _random(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> None:
        # He et al.'s deviation: the maps keep their size of values through the mixing.
        deviation = (2.0 / (shape[1] * shape[2] * shape[3])) ** 0.5
        self.register_buffer(name, torch.randn(shape, generator=generator) * deviation)

    def _head(self, channels: int, halvings: int) -> nn.Sequential:
        spectral, width = self.config.spectral_norm, self.config.width
        layers: list[nn.Module] = [_maybe_spectral(nn.Conv2d(channels, width, 3, padding=1), spectral)]
        for _ in range(halvings):
            layers += [
                nn.LeakyReLU(0.2),
                _maybe_spectral(nn.Conv2d(width, width, 4, stride=2, padding=1, bias=False), spectral),
                nn.GroupNorm(8, width, eps=1e-6),
            ]
        return nn.Sequential(
            *layers, nn.LeakyReLU(0.2), _maybe_spectral(nn.Conv2d(width, 1, 3, padding=1), spectral)
        )

    def _mixed(self, maps: Sequence[Tensor]) -> list[Tensor]:
        mixed = [
            functional.conv2d(level, getattr(self, f"mix_channels_{number}").to(level.dtype))
            for number, level in enumerate(maps)
        ]
        for number in reversed(range(len(mixed) - 1)):
            size = tuple(mixed[number].shape[2:])
            above = functional.interpolate(mixed[number + 1], size=size, mode="bilinear")
            kernel = getattr(self, f"mix_scales_{number}").to(mixed[number].dtype)
            mixed[number] = functional.conv2d(mixed[number] + above, kernel, padding=1)
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, levels, h, w); :class:`ValueError` if the maps do not fit the configuration."""
        if not self._features:
            raise ValueError("the discriminator has no features; call attach(features) first")
        maps = self._features[0](x)
        channels = tuple(level.shape[1] for level in maps)
        if channels != self.config.feature_channels:
            raise ValueError(
                f"the features have channels {channels}; expected {self.config.feature_channels}"
            )
        if self.config.mixing:
            maps = self._mixed(maps)
        logits = [head(level).float() for head, level in zip(self.heads, maps, strict=True)]
        size = logits[-1].shape[2:]
        return torch.cat([functional.adaptive_avg_pool2d(level, size) for level in logits], dim=1)


def build_discriminator(
    config: DiscriminatorConfig, features: FeaturePyramid | None = None
) -> PatchDiscriminator | FeatureDiscriminator:
    """Return the discriminator of ``config``; ``features`` is what a "feature" one looks through."""
    if isinstance(config, PatchDiscriminatorConfig):
        return PatchDiscriminator(config)
    return FeatureDiscriminator(config, features)
