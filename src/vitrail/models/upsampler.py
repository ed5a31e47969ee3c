"""A small convolutional network that draws a picture again at two or four times its size.

All work happens at the small size and the last layer unfolds it (sub-pixel convolution, Shi et al.,
arXiv:1609.05158); residual blocks without normalisation as in EDSR (Lim et al., arXiv:1707.02921, 3.1).
The network adds to a bicubic enlargement, so before training it *is* bicubic.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from vitrail.recipe import UpsamplerConfig

__all__ = ["Upsampler"]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a GELU, added to the input; (B, C, H, W) -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.conv2(functional.gelu(self.conv1(x), approximate="tanh"))
        return result


class Upsampler(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> (B, 3, scale * H, scale * W), not clamped."""

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__()
        self.config = config
        self.enter = nn.Conv2d(3, config.width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(config.width) for _ in range(config.blocks)))
        self.leave = nn.Conv2d(config.width, 3 * config.scale**2, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        enlarged = functional.interpolate(x, scale_factor=self.config.scale, mode="bicubic", antialias=False)
        features = self.blocks(self.enter(x))
        return enlarged + functional.pixel_shuffle(self.leave(features), self.config.scale)
