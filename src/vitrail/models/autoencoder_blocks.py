"""The convolutional encoder and decoder of taming-transformers and LDM, with their names of weights.

Esser et al., "Taming Transformers" (arXiv:2012.09841), appendix A; Rombach et al. (arXiv:2112.10752),
appendix E. The names (``down.0.block.1.conv2.weight``, ``mid.attn_1.q.weight``, ...) are the ones of those
programs' checkpoint files, so their files load without a table. Level 0 is the full resolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.recipe.autoencoders import ClassicNetworkConfig

__all__ = ["ClassicDecoder", "ClassicEncoder"]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Norm, swish, 3x3 convolution, twice, added to the input: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = _norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(functional.silu(self.norm1(x)))
        hidden = self.conv2(self.dropout(functional.silu(self.norm2(hidden))))
        shortcut = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        result: Tensor = shortcut + hidden
        return result


class AttnBlock(nn.Module):
    """One head of self-attention over all positions, added to the input; (B, C, H, W) -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        hidden = self.norm(x)
        query, key, value = (
            layer(hidden).flatten(2).transpose(1, 2)[:, None].contiguous()
            for layer in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        mixed = mixed[:, 0].transpose(1, 2).reshape(batch, channels, height, width)
        result: Tensor = x + self.proj_out(mixed)
        return result


class Downsample(nn.Module):
    """Halve a map by a convolution of stride 2, padded by one on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return result


class Upsample(nn.Module):
    """Double a map by repeating pixels, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return result


class Middle(nn.Module):
    """Block, attention, block at the latent's resolution; keeps the shape."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return result


class Level(nn.Module):
    """The blocks of one resolution, an attention after each where asked for, then a change of resolution."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        blocks: int,
        attention: bool,
        dropout: float,
        resample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(inputs if index == 0 else outputs, outputs, dropout) for index in range(blocks)
        )
        self.attn = nn.ModuleList(AttnBlock(outputs) for _ in range(blocks if attention else 0))
        if resample is not None:
            # A name only where there is such a layer: level names must be those of the files.
            self.add_module("downsample" if isinstance(resample, Downsample) else "upsample", resample)

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        for name in ("downsample", "upsample"):
            layer = self._modules.get(name)
            if layer is not None:
                x = layer(x)
        return x


def _sides(config: ClassicNetworkConfig) -> list[int]:
    return [config.resolution >> level for level in range(len(config.ch_mult))]


class ClassicEncoder(nn.Module):
    """Pictures (B, in_channels, H, W) -> (B, z_channels [* 2], H / downsample, W / downsample)."""

    def __init__(self, config: ClassicNetworkConfig) -> None:
        super().__init__()
        widths = [config.ch * factor for factor in config.ch_mult]
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        before = config.ch
        for number, (width, side) in enumerate(zip(widths, _sides(config), strict=True)):
            attention = side in config.attn_resolutions
            change = Downsample(width) if number + 1 < len(widths) else None
            self.down.append(Level(before, width, config.num_res_blocks, attention, config.dropout, change))
            before = width
        self.mid = Middle(before, config.dropout)
        self.norm_out = _norm(before)
        self.conv_out = nn.Conv2d(before, config.z_channels * (1 + config.double_z), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        x = self.mid(x)
        result: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return result


class ClassicDecoder(nn.Module):
    """Latents (B, z_channels, h, w) -> pictures (B, out_ch, h * downsample, w * downsample)."""

    def __init__(self, config: ClassicNetworkConfig) -> None:
        super().__init__()
        widths = [config.ch * factor for factor in config.ch_mult]
        before = widths[-1]
        self.conv_in = nn.Conv2d(config.z_channels, before, 3, padding=1)
        self.mid = Middle(before, config.dropout)
        levels: list[nn.Module] = []
        for number in reversed(range(len(widths))):
            attention = _sides(config)[number] in config.attn_resolutions
            change = Upsample(widths[number]) if number > 0 else None
            blocks = config.num_res_blocks + 1
            levels.insert(0, Level(before, widths[number], blocks, attention, config.dropout, change))
            before = widths[number]
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(before)
        self.conv_out = nn.Conv2d(before, config.out_ch, 3, padding=1)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight at which the adaptive weight of the adversarial loss is measured."""
        weight = self.conv_out.weight
        assert isinstance(weight, torch.nn.Parameter)
        return weight

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        result: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return result
