"""Convolutions, linear layers and group normalisations that run on the kernels, under their own names.

Each is still an ``nn.Conv2d``, ``nn.Linear`` or ``nn.GroupNorm`` to whoever looks, hooks and all. The weights
are kept once, packed for the kernels: ``weight`` gives a copy in the usual layout that cannot be written to;
``load_weight`` replaces it (a LoRA that is merged). What the kernels do not do (gradients, another type than
float32, another device) goes through PyTorch's own operation with that copy.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.kernels.library import Library
from vitrail.kernels.operations import (
    Borders,
    direct,
    group_norm,
    linear,
    norm_table,
    pack_direct,
    pack_winograd,
    unpack_direct,
    unpack_winograd,
    winograd,
)

__all__ = ["FastConv2d", "FastGroupNorm", "FastLinear", "convolve", "multiply", "suits"]

_FEWEST_CHANNELS = 16
"""Convolutions with fewer inputs or outputs are left to PyTorch: most of a panel would be zeros."""
_MANY_CHANNELS = 64
"""With so many inputs even three outputs pay: PyTorch would bring the whole picture to another layout."""
_LARGEST_GATED = 2048
_PIXELS = 16384
"""Pixels that a layer which writes over its input computes at a time."""
_JOINED = 4 << 20
"""Numbers of a picture that no second-level or last cache would hold anyway."""


def suits(*tensors: Tensor | None) -> bool:
    """Tell whether the kernels can work on these: float32 on the CPU, no gradient asked for."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            return False
        if tensor.requires_grad and torch.is_grad_enabled():
            return False
    return not torch.is_autocast_enabled("cpu")


class _Packed(nn.Module):
    """What the layers share: one packed weight, and its usual layout on demand."""

    packed: Tensor
    lib: Library

    def _unpacked(self) -> Tensor:
        raise NotImplementedError

    def _pack(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _weight(self) -> Tensor:
        with torch.inference_mode():  # writing to it raises: it would be lost
            return self._unpacked()

    def load_weight(self, value: Tensor) -> None:
        """Replace the weight; ``value`` in the usual layout. Raises ValueError for another shape."""
        with torch.inference_mode(False), torch.no_grad():
            shape = tuple(self._weight().shape)
            if tuple(value.shape) != shape:
                raise ValueError(f"a weight of shape {tuple(value.shape)} cannot replace one of {shape}")
            self.packed = self._pack(value.detach().to(self.packed.device, torch.float32))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            self.load_weight(value)
        else:
            super().__setattr__(name, value)


class FastConv2d(_Packed, nn.Conv2d):
    """A convolution that takes the place of ``source`` (one for which :meth:`fits` is true).

    3x3 kernels of stride 1 go by Winograd's filtering, others as one blocked matrix product.
    """

    def __init__(self, source: nn.Conv2d, lib: Library) -> None:
        nn.Module.__init__(self)
        for name in (
            "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed",
            "output_padding", "groups", "padding_mode", "_reversed_padding_repeated_twice",
        ):  # fmt: skip
            setattr(self, name, getattr(source, name))
        self.lib = lib
        self.winograd = source.kernel_size == (3, 3) and source.stride == (1, 1)
        self.register_buffer("packed", self._pack(source.weight.detach()), persistent=False)
        self.bias = source.bias
        self.train(source.training)

    @staticmethod
    def fits(source: nn.Module) -> bool:
        """Tell whether the kernels serve this layer."""
        return (
            type(source) is nn.Conv2d
            and source.groups == 1
            and source.dilation == (1, 1)
            and source.in_channels >= _FEWEST_CHANNELS
            and (source.out_channels >= _FEWEST_CHANNELS or source.in_channels >= _MANY_CHANNELS)
            and source.weight.dtype == torch.float32
            and source.weight.device.type == "cpu"
        )

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(K, C, kh, kw): a copy that cannot be written to; see :meth:`load_weight`."""
        return self._weight()

    def borders(self, wraps: tuple[bool, bool] | None = None) -> tuple[Borders, Borders]:
        """Return what is seen beyond (top and bottom, left and right).

        wraps: (x, y), the axes on which the picture goes around instead of being padded with zeros.
        """
        made = []
        for axis, goes_around in ((0, wraps is not None and wraps[1]), (1, wraps is not None and wraps[0])):
            if self.padding == "valid":
                before = after = 0
            elif isinstance(self.padding, str):
                whole = self.kernel_size[axis] - 1
                before, after = whole // 2, whole - whole // 2
            else:
                before = after = self.padding[axis]
            made.append(Borders(before, after, "circular" if goes_around else self.padding_mode))
        return made[0], made[1]

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, h, w), channels last."""
        return self.run(input)

    def run(
        self,
        x: Tensor,
        *,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        slope: float = 1.0,
        enlarge: int = 1,
        norm: FastGroupNorm | None = None,
        overwrite: bool = False,
    ) -> Tensor:
        """Return leaky(convolution(enlarged x) + the layer's bias + bias + residual).

        bias: (N, K). residual: (N, K, h, w). slope: see :func:`vitrail.kernels.operations.winograd`. enlarge:
        nearest-neighbour enlargement of x. norm: one with SiLU, of x before all that; it is applied as x is
        read where x is too large for a cache. overwrite: the result may take the residual's memory.
        """
        if norm is not None and not (self.winograd and norm.joins(x)):
            x, norm = norm(x), None
        patched = self.__dict__.get("_conv_forward")
        wraps = getattr(patched, "wraps", None)
        if x.ndim != 4 or not suits(x, bias, residual) or (patched is not None and wraps is None):
            return self._plain(x if norm is None else norm(x), bias, residual, slope, enlarge)
        y_borders, x_borders = self.borders(wraps)
        if enlarge > 1:
            y_borders = Borders(y_borders.before, y_borders.after, y_borders.mode, enlarge)
            x_borders = Borders(x_borders.before, x_borders.after, x_borders.mode, enlarge)
        if min(x.shape) == 0 or any(
            border.length(size) < kernel or not _allowed(border, size)
            for border, size, kernel in zip(
                (y_borders, x_borders), x.shape[2:], self.kernel_size, strict=True
            )
        ):
            # PyTorch's own error, or its empty result
            return self._plain(x if norm is None else norm(x), bias, residual, slope, enlarge)
        whole = self.bias if bias is None else bias if self.bias is None else (bias + self.bias).contiguous()
        if self.winograd:
            return winograd(
                self.lib, x, self.packed, self.out_channels, whole, y_borders=y_borders, x_borders=x_borders,
                residual=residual, slope=slope, table=None if norm is None else norm.table(x),
                into=residual if overwrite and residual is not None and _own_pixels(residual) else None,
            )  # fmt: skip
        assert len(self.kernel_size) == 2
        assert len(self.stride) == 2
        return direct(
            self.lib, x, self.packed, self.out_channels, whole, kernel=self.kernel_size, stride=self.stride,
            y_borders=y_borders, x_borders=x_borders, residual=residual, slope=slope,
        )  # fmt: skip

    def narrows(self, x: Tensor) -> bool:
        """Tell whether :meth:`narrowed` may take ``x``: 1x1, not more outputs than inputs, whole pictures."""
        return (
            self.kernel_size == self.stride == (1, 1)
            and self.padding in ((0, 0), "valid")
            and self.out_channels <= self.in_channels
            and x.ndim == 4
            and x.shape[1] == self.in_channels
            and x.numel() > 0
            and suits(x)
            and _own_pixels(x)
            and not self._forward_hooks
            and not self._forward_pre_hooks
        )

    def narrowed(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H, W) in the memory of ``x``, which is lost; see :meth:`narrows`.

        A pixel's outputs never reach beyond its inputs, so what is read next is still whole: a large picture
        needs no second copy.
        """
        count, _, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1).view(-1, self.in_channels)
        made = pixels.view(-1)[: len(pixels) * self.out_channels].view(-1, self.out_channels)
        for start in range(0, len(pixels), _PIXELS):
            part = pixels[start : start + _PIXELS]
            made[start : start + _PIXELS] = linear(self.lib, part, self.packed, self.out_channels, self.bias)
        self.lib.forget(pixels.view(-1)[made.numel() :])
        return made.view(count, height, width, self.out_channels).permute(0, 3, 1, 2)

    def _plain(
        self, x: Tensor, bias: Tensor | None, residual: Tensor | None, slope: float, enlarge: int
    ) -> Tensor:
        if enlarge > 1:
            x = functional.interpolate(x, scale_factor=float(enlarge), mode="nearest")
        weight = self._unpacked().to(x)
        made = self._conv_forward(x, weight, None if self.bias is None else self.bias.to(x))
        if bias is not None:
            made = made + bias[:, :, None, None]
        if residual is not None:
            made = made + residual
        return made if slope == 1.0 else functional.leaky_relu(made, slope)

    def _pack(self, weight: Tensor) -> Tensor:
        packed = (pack_winograd if self.winograd else pack_direct)(weight, self.lib.panel)
        return self.lib.large_pages(torch.empty_like(packed)).copy_(packed)

    def _unpacked(self) -> Tensor:
        if self.winograd:
            return unpack_winograd(self.packed, self.out_channels, self.lib.panel)
        return unpack_direct(
            self.packed, (self.out_channels, self.in_channels, *self.kernel_size), self.lib.panel
        )


class FastLinear(_Packed, nn.Linear):
    """A linear layer that takes the place of ``source``."""

    def __init__(self, source: nn.Linear, lib: Library) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.lib = source.in_features, source.out_features, lib
        self.register_buffer("packed", self._pack(source.weight.detach()), persistent=False)
        self.register_parameter("bias", source.bias)
        self.train(source.training)

    @staticmethod
    def fits(source: nn.Module) -> bool:
        """Tell whether the kernels serve this layer."""
        return (
            type(source) is nn.Linear
            and min(source.in_features, source.out_features) >= 32
            and source.weight.dtype == torch.float32
            and source.weight.device.type == "cpu"
        )

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(out, in): a copy that cannot be written to; see :meth:`load_weight`."""
        return self._weight()

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.run(input)

    def run(self, x: Tensor, *, residual: Tensor | None = None, gated: bool = False) -> Tensor:
        """Return x W^T + bias + residual; gated: its left half times gelu of its right half, instead."""
        gate = not gated or (
            self.in_features <= _LARGEST_GATED and self.out_features % (2 * self.lib.panel) == 0
        )
        if x.numel() and x.shape[-1] == self.in_features and suits(x, residual) and gate:
            return linear(
                self.lib, x, self.packed, self.out_features, self.bias, residual=residual, gated=gated
            )
        made = functional.linear(x, self._unpacked().to(x), None if self.bias is None else self.bias.to(x))
        if gated:
            left, right = made.chunk(2, -1)
            made = left * functional.gelu(right)
        return made if residual is None else made + residual

    def _pack(self, weight: Tensor) -> Tensor:
        packed = pack_direct(weight, self.lib.panel)
        return self.lib.large_pages(torch.empty_like(packed)).copy_(packed)

    def _unpacked(self) -> Tensor:
        return unpack_direct(self.packed, (self.out_features, self.in_features), self.lib.panel)


class FastGroupNorm(nn.GroupNorm):
    """A group normalisation, with the SiLU that follows it where ``silu``; takes the place of ``source``."""

    def __init__(self, source: nn.GroupNorm, lib: Library, *, silu: bool = False) -> None:
        nn.Module.__init__(self)
        self.num_groups, self.num_channels = source.num_groups, source.num_channels
        self.eps, self.affine = source.eps, source.affine
        self.lib, self.silu = lib, silu
        self.register_parameter("weight", source.weight)
        self.register_parameter("bias", source.bias)
        self.train(source.training)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *) -> same, channels last."""
        if input.ndim >= 2 and input.numel() and suits(input, self.weight, self.bias):
            return group_norm(
                self.lib, input, self.num_groups, self.weight, self.bias, self.eps, silu=self.silu
            )
        made = super().forward(input)
        return functional.silu(made) if self.silu else made

    def joins(self, x: Tensor) -> bool:
        """Whether a convolution should apply this as it reads: a result too large for a cache is not made."""
        return (
            self.silu
            and x.ndim == 4
            and x.numel() >= _JOINED
            and suits(x, self.weight, self.bias)
            and not self._forward_hooks
            and not self._forward_pre_hooks
        )

    def table(self, x: Tensor) -> Tensor:
        """Return what this multiplies each channel of ``x`` (N, C, H, W) by, and then adds: (N, 2, C)."""
        return norm_table(self.lib, x, self.num_groups, self.weight, self.bias, self.eps)


def convolve(
    layer: nn.Module,
    x: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    enlarge: int = 1,
    norm: nn.Module | None = None,
    overwrite: bool = False,
) -> Tensor:
    """Call a convolution with what :meth:`FastConv2d.run` can take along; a hooked or foreign one plainly."""
    if norm is not None and not isinstance(norm, FastGroupNorm):
        x, norm = norm(x), None
    if isinstance(layer, FastConv2d) and not layer._forward_hooks and not layer._forward_pre_hooks:
        return layer.run(x, bias=bias, residual=residual, enlarge=enlarge, norm=norm, overwrite=overwrite)
    if norm is not None:
        x = norm(x)
    if enlarge > 1:
        x = functional.interpolate(x, scale_factor=float(enlarge), mode="nearest")
    made: Tensor = layer(x)
    if bias is not None:
        made = made + bias[:, :, None, None]
    return made if residual is None else made + residual


def multiply(layer: nn.Module, x: Tensor, *, residual: Tensor | None = None, gated: bool = False) -> Tensor:
    """Call a linear layer with what :meth:`FastLinear.run` can take along; a hooked one plainly."""
    if isinstance(layer, FastLinear) and not layer._forward_hooks and not layer._forward_pre_hooks:
        return layer.run(x, residual=residual, gated=gated)
    made: Tensor = layer(x)
    if gated:
        left, right = made.chunk(2, -1)
        made = left * functional.gelu(right)
    return made if residual is None else made + residual


def _own_pixels(x: Tensor) -> bool:
    """Whether ``x`` (N, C, H, W) is a whole picture, channels last, that may be written to."""
    return x.is_contiguous(memory_format=torch.channels_last)


def _allowed(border: Borders, size: int) -> bool:
    """Tell whether an axis is long enough for what it repeats beyond its ends."""
    most = {"circular": size * border.enlarge, "reflect": size * border.enlarge - 1}.get(
        border.mode, math.inf
    )
    return max(border.before, border.after) <= most
