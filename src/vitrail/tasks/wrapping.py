"""Networks whose convolutions go around the edge: pictures that can be laid side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["circular", "networks_of", "wrap_pad"]


def networks_of(*holders: object) -> list[nn.Module]:
    """Return the networks that ``holders`` keep in their attributes, themselves included, each once."""
    found: list[nn.Module] = []
    for holder in holders:
        if isinstance(holder, nn.Module):
            candidates: Iterable[Any] = [holder]
        else:
            own = list(vars(holder).values()) if hasattr(holder, "__dict__") else []
            candidates = [
                part for value in own for part in (value.values() if isinstance(value, dict) else [value])
            ]
        for value in candidates:
            if isinstance(value, nn.Module) and not any(value is known for known in found):
                found.append(value)
    return found


@contextmanager
def circular(networks: Iterable[nn.Module], *, x: bool, y: bool) -> Iterator[None]:
    """Let the convolutions of ``networks`` see around the edge for the block: ``x`` left and right, ``y`` up
    and down.

    A convolution that pads with zeros then pads with the opposite side instead. Everything else in a U-Net is
    blind to where it is, so its picture has no edge on that axis. For networks with learned places (a
    transformer) it is not enough.
    """
    changed: list[nn.Conv2d] = []
    try:
        for network in networks if x or y else ():
            for module in network.modules():
                inner = getattr(module, "conv", None)
                if _pads_by_hand(module) and isinstance(inner, nn.Conv2d):
                    inner._conv_forward = _closed(inner, x, y)  # type: ignore[method-assign, assignment]
                    changed.append(inner)
                elif isinstance(module, nn.Conv2d) and _pads(module):
                    module._conv_forward = _around(module, x, y)  # type: ignore[method-assign, assignment]
                    changed.append(module)
        yield
    finally:
        for layer in changed:
            layer.__dict__.pop("_conv_forward", None)


def wrap_pad(canvas: Tensor, margin: int, *, x: bool, y: bool) -> Tensor:
    """Return ``canvas`` (B, C, H, W) with ``margin`` places of the opposite side at each edge that wraps."""
    if margin == 0:
        return canvas
    if x:
        canvas = functional.pad(canvas, (margin, margin, 0, 0), mode="circular")
    if y:
        canvas = functional.pad(canvas, (0, 0, margin, margin), mode="circular")
    return canvas


def _pads(module: nn.Conv2d) -> bool:
    return module.padding_mode == "zeros" and not isinstance(module.padding, str) and any(module.padding)


def _pads_by_hand(module: nn.Module) -> bool:
    """diffusers' way down in an autoencoder: a row and a column of zeros at the end, then stride 2."""
    return type(module).__name__ == "Downsample2D" and getattr(module, "padding", None) == 0


def _closed(module: nn.Conv2d, x: bool, y: bool) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """As :func:`_around` for a layer whose input was padded by hand: its last row is the first again."""

    def forward(value: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x:
            value = torch.cat([value[..., :-1], value[..., :1]], dim=3)
        if y:
            value = torch.cat([value[..., :-1, :], value[..., :1, :]], dim=2)
        return functional.conv2d(value, weight, bias, module.stride, 0, module.dilation, module.groups)

    return forward


def _around(module: nn.Conv2d, x: bool, y: bool) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    assert not isinstance(module.padding, str)
    down, across = module.padding

    def forward(value: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        for margins, wraps in (((across, across, 0, 0), x), ((0, 0, down, down), y)):
            value = functional.pad(value, margins, mode="circular" if wraps else "constant")
        return functional.conv2d(value, weight, bias, module.stride, 0, module.dilation, module.groups)

    forward.wraps = (x, y)  # type: ignore[attr-defined]  # read by kernels that have a way of their own
    return forward
