"""The network of ESRGAN and Real-ESRGAN: residual-in-residual dense blocks, then two doublings.

Wang et al., "ESRGAN", arXiv:1809.00219, section 3.1 and figure 4; Wang et al., "Real-ESRGAN",
arXiv:2107.10833, section 3.3. Names of the weights are those of the published checkpoints
(``conv_first``, ``body.0.rdb1.conv1``, ...).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["RRDBConfig", "RRDBNet"]

_SLOPE = 0.2  # of every leaky ReLU
_SHARE = 0.2  # of a residual that is added to what came in


class RRDBConfig(BaseModel):
    """Shape of :class:`RRDBNet`. Real-ESRGAN x4plus: 23 blocks; its model for drawings: 6."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["rrdb"] = "rrdb"
    scale: Literal[4] = 4
    blocks: int = Field(default=23, ge=1, le=64, description="residual-in-residual dense blocks")
    width: int = Field(default=64, ge=1, le=256, description="channels between blocks")
    growth: int = Field(default=32, ge=1, le=128, description="channels that each dense layer adds")

    @property
    def parameters(self) -> int:
        """How many numbers the network has, told without building it."""

        def layer(inputs: int, outputs: int) -> int:
            return (9 * inputs + 1) * outputs

        width, growth = self.width, self.growth
        dense = sum(layer(width + number * growth, growth) for number in range(4))
        dense += layer(width + 4 * growth, width)
        return layer(3, width) + 3 * self.blocks * dense + 4 * layer(width, width) + layer(width, 3)


class _Dense(nn.Module):
    """Five convolutions, each seeing what all before it made; (B, width, H, W) -> same."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        for number in range(1, 5):
            layer = nn.Conv2d(width + (number - 1) * growth, growth, 3, padding=1)
            self.add_module(f"conv{number}", layer)
        self.conv5 = nn.Conv2d(width + 4 * growth, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for number in range(1, 5):
            made = self.get_submodule(f"conv{number}")(seen)
            seen = torch.cat((seen, functional.leaky_relu(made, _SLOPE, inplace=not made.requires_grad)), 1)
        return torch.add(x, self.conv5(seen), alpha=_SHARE)


class _Block(nn.Module):
    """Three dense blocks around a residual; (B, width, H, W) -> same."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (_Dense(width, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.rdb3(self.rdb2(self.rdb1(x))), alpha=_SHARE)


class RRDBNet(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] -> (B, 3, 4 H, 4 W), not clamped."""

    def __init__(self, config: RRDBConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.conv_first = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(_Block(width, config.growth) for _ in range(config.blocks)))
        self.conv_body = nn.Conv2d(width, width, 3, padding=1)
        self.conv_up1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_up2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv_first(x)
        features = features + self.conv_body(self.body(features))
        for layer in (self.conv_up1, self.conv_up2):
            features = functional.leaky_relu(layer(_doubled(features)), _SLOPE)
        result: Tensor = self.conv_last(functional.leaky_relu(self.conv_hr(features), _SLOPE))
        return result


def _doubled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")
