"""``accelerate(network)``: the network's layers replaced by faster ones that make the same pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from vitrail.kernels.blocks import (
    FastAttention,
    FastDense,
    FastGEGLU,
    FastResnet,
    FastTransformer,
    FastUpsample,
)
from vitrail.kernels.layers import FastConv2d, FastGroupNorm, FastLinear
from vitrail.kernels.library import Library, library

__all__ = ["accelerate"]

Network = TypeVar("Network", bound=nn.Module)


def accelerate(network: Network) -> Network:
    """Make ``network`` fast on this CPU, in place, and return it.

    Known: diffusers' ``UNet2DConditionModel``, ``AutoencoderKL`` and ControlNets, ``RRDBNet``, and any other
    network for its convolutions and linear layers. Weights of the replaced layers are packed one by one, the
    old ones freed, so the peak is one layer above the network itself.

    Only for networks in eval mode with float32 weights on the CPU; another is returned as it is (a GPU has
    better kernels of its own). Where the kernels cannot be built the layout of memory and the cached text
    keys are all that changes. Raises ValueError for a network in training mode.
    """
    if network.training:
        raise ValueError("accelerate() is for networks in eval mode; call network.eval() first")
    # no list of the parameters may live on: each is freed as its packed form takes its place
    kinds = {(parameter.device.type, parameter.dtype) for parameter in network.parameters()}
    if kinds != {("cpu", torch.float32)}:
        return network
    lib = library()
    if lib is None:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _replace(network, lib)
    decoder = getattr(network, "decoder", None)
    if type(network).__name__ == "AutoencoderKL" and isinstance(decoder, nn.Module):
        for block in decoder.modules():  # one after the other, unlike a U-Net, which keeps what it skips
            if isinstance(block, FastResnet):
                block.overwrites = True
    return network


def _replace(parent: nn.Module, lib: Library | None) -> None:
    for name, child in list(parent.named_children()):
        made = _blocks(child, lib)
        if made is not child:
            setattr(parent, name, made)
        _replace(made, lib)
        if lib is None:
            continue
        if FastConv2d.fits(made) and isinstance(made, nn.Conv2d):
            _swap(parent, name, made, lambda layer, lib=lib: FastConv2d(layer, lib))
        elif FastLinear.fits(made) and isinstance(made, nn.Linear):
            _swap(parent, name, made, lambda layer, lib=lib: FastLinear(layer, lib))
        elif type(made) is nn.GroupNorm:
            setattr(parent, name, FastGroupNorm(made, lib))
    _join_last(parent, lib)


def _swap(parent: nn.Module, name: str, child: nn.Module, make: Callable[..., nn.Module]) -> None:
    made = make(child)
    # the same layer may hang in two places (diffusers' Downsample2D keeps its convolution twice)
    for other, value in list(parent.named_children()):
        if value is child:
            setattr(parent, other, made)
    setattr(parent, name, made)


def _blocks(child: nn.Module, lib: Library | None) -> nn.Module:
    if FastAttention.fits(child):
        return FastAttention(child, lib)
    if FastTransformer.fits(child):
        return FastTransformer(child)
    if lib is None:
        return child
    if FastResnet.fits(child):
        return FastResnet(child, lib)
    if FastDense.fits(child):
        return FastDense(child, lib)
    if FastUpsample.fits(child):
        return FastUpsample(child)
    if type(child).__name__ == "GEGLU" and type(getattr(child, "proj", None)) is nn.Linear:
        return FastGEGLU(child)
    return child


def _join_last(parent: nn.Module, lib: Library | None) -> None:
    """Let the last normalisation of a U-Net or a decoder take the SiLU behind it along."""
    norm, act = getattr(parent, "conv_norm_out", None), getattr(parent, "conv_act", None)
    if lib is not None and type(norm) is FastGroupNorm and type(act) is nn.SiLU:
        norm.silu = True
        parent.conv_act = nn.Identity()
