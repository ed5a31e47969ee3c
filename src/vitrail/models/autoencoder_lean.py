"""An encoder and a decoder that are fast on a few cores.

Pictures are folded (space to depth) before the first convolution, so nothing is computed at the full
resolution; levels change by folding and unfolding again (sub-pixel convolution, Shi et al.,
arXiv:1609.05158), which costs one product instead of a strided or an enlarged convolution. Maps keep their
channels last in memory, in which oneDNN's convolutions are fastest.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.recipe.autoencoders import LeanNetworkConfig

__all__ = ["LeanDecoder", "LeanEncoder"]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels, eps=1e-6)


class LeanBlock(nn.Module):
    """Norm, swish, 3x3 convolution, twice, added to the input; zero at the start. (B, C, H, W) -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = _norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(functional.silu(self.norm1(x)))
        result: Tensor = x + self.conv2(functional.silu(self.norm2(hidden)))
        return result


class LeanAttention(nn.Module):
    """Self-attention of heads of 32 to 64 channels over all positions, zero at the start; keeps the shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = next(heads for heads in range(max(1, channels // 64), 0, -1) if channels % heads == 0)
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(batch, height * width, 3, self.heads, -1)
        query, key, value = tokens.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        mixed = mixed.transpose(1, 2).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        result: Tensor = x + self.out(mixed)
        return result


class LeanEncoder(nn.Module):
    """Pictures (B, in_channels, H, W) -> (B, z_channels [* 2], H / downsample, W / downsample)."""

    def __init__(self, config: LeanNetworkConfig) -> None:
        super().__init__()
        self.patch = config.patch
        widths = config.widths
        self.enter = nn.Conv2d(config.in_channels * config.patch**2, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            nn.Sequential(*(LeanBlock(width) for _ in range(config.encoder_blocks))) for width in widths
        )
        self.folds = nn.ModuleList(nn.Conv2d(4 * above, below, 1) for above, below in pairwise(widths))
        self.attention = LeanAttention(widths[-1]) if config.attention else nn.Identity()
        self.norm = _norm(widths[-1])
        self.leave = nn.Conv2d(widths[-1], config.z_channels * (1 + config.double_z), 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)
        x = self.levels[0](self.enter(x))
        for fold, level in zip(self.folds, self.levels[1:], strict=True):
            x = functional.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
            x = level(fold(x))
        result: Tensor = self.leave(functional.silu(self.norm(self.attention(x))))
        return result


class LeanDecoder(nn.Module):
    """Latents (B, z_channels, h, w) -> pictures (B, out_ch, h * downsample, w * downsample)."""

    def __init__(self, config: LeanNetworkConfig) -> None:
        super().__init__()
        self.patch = config.patch
        widths = config.widths[::-1]
        self.enter = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.attention = LeanAttention(widths[0]) if config.attention else nn.Identity()
        self.levels = nn.ModuleList(
            nn.Sequential(*(LeanBlock(width) for _ in range(config.decoder_blocks))) for width in widths
        )
        self.unfolds = nn.ModuleList(nn.Conv2d(above, 4 * below, 1) for above, below in pairwise(widths))
        self.norm = _norm(widths[-1])
        self.leave = nn.Conv2d(widths[-1], config.out_ch * config.patch**2, 3, padding=1)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight at which the adaptive weight of the adversarial loss is measured."""
        weight = self.leave.weight
        assert isinstance(weight, torch.nn.Parameter)
        return weight

    def forward(self, z: Tensor) -> Tensor:
        x = self.enter(z.contiguous(memory_format=torch.channels_last))
        x = self.levels[0](self.attention(x))
        for unfold, level in zip(self.unfolds, self.levels[1:], strict=True):
            x = functional.pixel_shuffle(unfold(x), 2).contiguous(memory_format=torch.channels_last)
            x = level(x)
        x = self.leave(functional.silu(self.norm(x)))
        return functional.pixel_shuffle(x, self.patch)
