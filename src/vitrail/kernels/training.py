"""3x3 convolutions that train on the kernels: Winograd's filtering there and back.

The result of such a convolution and the gradient of its input are both 3x3 convolutions of stride 1, so both
go by :func:`vitrail.kernels.operations.winograd`, in 4/9 to 1/4 of the products; the gradient of the weights
is PyTorch's own. The parameters stay what and where they are: checkpoints, optimizers and averages see an
``nn.Conv2d``.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vitrail.kernels.library import Library, library, pointer
from vitrail.kernels.operations import Borders, winograd

__all__ = ["TrainedConv2d", "packed_filters", "train_fast"]

_FEWEST_CHANNELS = 16
"""With fewer inputs or outputs most of a panel would be zeros."""
_FEWEST_PIXELS = 128
"""With fewer pixels in a batch (of all its pictures) packing the filters takes longer than is gained."""
_AROUND = Borders(1, 1)
_local = threading.local()


def train_fast(network: nn.Module) -> nn.Module:
    """Let the 3x3 convolutions of ``network`` run on the kernels in training, in place; returns it.

    Float32 on the CPU alone: elsewhere, under autocast, and where the kernels cannot be built they go through
    PyTorch. Gradients are of the first order; a second derivative raises RuntimeError.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and _fits(module):
            module.__class__ = TrainedConv2d
    return network


def _fits(layer: nn.Conv2d) -> bool:
    return (
        layer.kernel_size == (3, 3)
        and layer.stride == layer.dilation == (1, 1)
        and layer.padding in ((1, 1), "same")
        and layer.padding_mode == "zeros"
        and layer.groups == 1
        and min(layer.in_channels, layer.out_channels) >= _FEWEST_CHANNELS
    )


class TrainedConv2d(nn.Conv2d):
    """An ``nn.Conv2d`` made by :func:`train_fast`."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H, W), channels last."""
        lib = library() if _suits(input, self.weight) else None
        if lib is None:
            return super().forward(input)
        result: Tensor = _Convolution.apply(input, self.weight, self.bias, lib)  # type: ignore[no-untyped-call]
        return result


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.ndim == 4
        and x.numel() >= _FEWEST_PIXELS * x.shape[1]
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def packed_filters(lib: Library, weight: Tensor, *, turned: bool) -> Tensor:
    """Return filters (K, C, 3, 3) as :func:`vitrail.kernels.operations.pack_winograd` does, with one copy.

    turned: those of the convolution that gives the gradient of the input, (C, K, 3, 3). The memory is the
    calling thread's own; the next call writes over it.
    """
    weight = weight.detach()
    filters, channels, tap = weight.stride(0), weight.stride(1), weight.stride(3)
    if weight.stride(2) != 3 * tap:
        weight = weight.contiguous()
        filters, channels, tap = weight.stride(0), weight.stride(1), weight.stride(3)
    sizes, steps, first = weight.shape[:2], (filters, channels, tap), 0
    if turned:
        sizes, steps, first = sizes[::-1], (channels, filters, -tap), 8 * tap
    length = lib.raw.vitrail_pack_winograd_bytes(*map(ctypes.c_long, sizes))
    packed: Tensor | None = getattr(_local, "packed", None)
    if packed is None or len(packed) < length:
        packed = _local.packed = torch.empty(length, dtype=torch.uint8)
    lib.raw.vitrail_pack_winograd(
        ctypes.c_void_p(weight.data_ptr() + 4 * first), *map(ctypes.c_long, (*sizes, *steps)),
        pointer(packed), lib.threads,
    )  # fmt: skip
    return packed[:length]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lib: Library) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.lib, ctx.biased = lib, bias is not None
        packed = packed_filters(lib, weight, turned=False)
        return winograd(lib, x.detach(), packed, len(weight), bias, y_borders=_AROUND, x_borders=_AROUND)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        slope = slope.contiguous(memory_format=torch.channels_last)
        for_x = for_weight = for_bias = None
        if wants_x:
            turned = packed_filters(ctx.lib, weight, turned=True)
            for_x = winograd(ctx.lib, slope, turned, weight.shape[1], y_borders=_AROUND, x_borders=_AROUND)
        if wants_weight:
            for_weight = torch.ops.aten.convolution_backward(
                slope, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
            )[1]
        if wants_bias and ctx.biased:
            for_bias = slope.sum((0, 2, 3))
        return for_x, for_weight, for_bias, None
