"""diffusers' blocks with their steps joined: the same children and names, fewer passes over memory.

Normalisation and SiLU become one pass; the time embedding and the shortcut are added where the convolution
writes its result; a nearest-neighbour enlargement is read through, never made; the gate of a feed-forward is
applied in the product. A child that carries a hook (a live LoRA) is called as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.kernels.attention import attend
from vitrail.kernels.layers import FastConv2d, FastGroupNorm, FastLinear, convolve, multiply, suits
from vitrail.kernels.library import Library, give_back
from vitrail.kernels.operations import Borders, winograd

__all__ = [
    "FastAttention",
    "FastDense",
    "FastGEGLU",
    "FastResnet",
    "FastTransformer",
    "FastUpsample",
    "take_children",
]

_GREAT = 16 << 20
"""Numbers of a picture whose enlargement alone takes hundreds of megabytes."""


def take_children(target: nn.Module, source: nn.Module) -> None:
    """Give ``target`` the children, parameters, buffers and plain attributes of ``source``, as they are."""
    nn.Module.__init__(target)
    for name, value in vars(source).items():
        if not name.startswith("_") or name in ("_modules", "_parameters", "_buffers"):
            target.__dict__[name] = value
    for name in ("_from_deprecated_attn_block", "_chunk_size", "_chunk_dim"):
        if name in vars(source):
            target.__dict__[name] = vars(source)[name]


class FastResnet(nn.Module):
    """diffusers' ``ResnetBlock2D``: norm, SiLU, 3x3, + time, norm, SiLU, 3x3, + shortcut."""

    norm1: nn.Module
    norm2: nn.Module
    conv1: nn.Module
    conv2: nn.Module
    nonlinearity: nn.Module
    time_emb_proj: nn.Module | None
    conv_shortcut: nn.Module | None
    output_scale_factor: float
    skip_time_act: bool
    overwrites: bool

    def __init__(self, source: nn.Module, lib: Library) -> None:
        take_children(self, source)
        self.overwrites = False  # True: nobody but this block needs its input, the result may take its memory
        for name in ("norm1", "norm2"):
            norm = getattr(source, name)
            if type(norm) is nn.GroupNorm:
                setattr(self, name, FastGroupNorm(norm, lib, silu=True))

    @staticmethod
    def fits(source: Any) -> bool:
        """Tell whether this block is of the plain kind that Stable Diffusion uses."""
        return (
            type(source).__name__ == "ResnetBlock2D"
            and type(source.nonlinearity) is nn.SiLU
            and (
                source.time_embedding_norm == "default"
                or (source.time_embedding_norm == "group" and source.time_emb_proj is None)
            )
            and source.upsample is None
            and source.downsample is None
            and type(source.norm1) is nn.GroupNorm
            and type(source.norm2) is nn.GroupNorm
        )

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """(N, C, H, W), (N, T) -> (N, K, H, W)."""
        time: Tensor | None = None
        if self.time_emb_proj is not None and temb is not None:
            time = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))
            time = time.expand(input_tensor.shape[0], -1).contiguous()
        hidden = convolve(self.conv1, input_tensor, bias=time, norm=self.norm1)
        overwrite = self.overwrites or isinstance(self.conv_shortcut, FastConv2d)
        shortcut = self._shortcut(input_tensor)
        del input_tensor
        made = convolve(self.conv2, hidden, residual=shortcut, norm=self.norm2, overwrite=overwrite)
        return made if self.output_scale_factor == 1.0 else made / self.output_scale_factor

    def _shortcut(self, x: Tensor) -> Tensor:
        layer = self.conv_shortcut
        if layer is None:
            return x
        if self.overwrites and isinstance(layer, FastConv2d) and layer.narrows(x):
            return layer.narrowed(x)
        made: Tensor = layer(x)
        return made


class FastUpsample(nn.Module):
    """diffusers' ``Upsample2D`` with a convolution: the doubled picture is read through an index."""

    conv: nn.Module

    def __init__(self, source: nn.Module) -> None:
        take_children(self, source)

    @staticmethod
    def fits(source: Any) -> bool:
        """Tell whether this enlarges by nearest neighbours and convolves."""
        return (
            type(source).__name__ == "Upsample2D"
            and source.use_conv
            and not source.use_conv_transpose
            and source.interpolate
            and source.norm is None
            and source.name == "conv"
        )

    def forward(
        self, hidden_states: Tensor, output_size: Any | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """(N, C, H, W) -> (N, K, 2 H, 2 W), or ``output_size``."""
        height, width = hidden_states.shape[-2:]
        if output_size is not None and tuple(output_size) != (2 * height, 2 * width):
            made: Tensor = self.conv(functional.interpolate(hidden_states, size=output_size, mode="nearest"))
            return made
        if hidden_states.numel() >= _GREAT:
            give_back()  # what smaller layers needed to work, before the largest results of all
        return convolve(self.conv, hidden_states, enlarge=2)


class FastGEGLU(nn.Module):
    """diffusers' ``GEGLU``: half of a linear layer times gelu of the other half."""

    proj: nn.Module

    def __init__(self, source: nn.Module) -> None:
        take_children(self, source)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., C) -> (..., D)."""
        return multiply(self.proj, hidden_states, gated=True)


class FastAttention(nn.Module):
    """diffusers' ``Attention`` without masks or extra norms, by :func:`vitrail.kernels.attention.attend`.

    The keys and values of a text are computed when a text first comes, and kept while the same tensor comes
    again and the weights stay. With a mask, a processor of someone's own or anything unusual, diffusers'
    forward is called.
    """

    heads: int
    scale: float
    to_q: nn.Module
    to_k: nn.Module
    to_v: nn.Module
    to_out: nn.ModuleList
    group_norm: nn.Module | None

    def __init__(self, source: Any, lib: Library | None) -> None:
        take_children(self, source)
        self.lib = lib
        self.slow = source.__class__
        self.usual = type(source.processor).__name__
        self._text: tuple[Tensor, int, tuple[Any, ...], Tensor, Tensor] | None = None

    @staticmethod
    def fits(source: Any) -> bool:
        """Tell whether this attention is of the plain kind that Stable Diffusion uses."""
        return (
            type(source).__name__ == "Attention"
            and type(source.processor).__name__ in ("AttnProcessor2_0", "AttnProcessor")
            and source.spatial_norm is None
            and source.norm_q is None
            and source.norm_k is None
            and not source.norm_cross
            and source.added_kv_proj_dim is None
            and source.to_k is not None
            and source.inner_dim == source.inner_kv_dim
            and not source.is_causal
            and not source.upcast_attention
        )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            slow = self.__dict__.get("slow")
            if slow is None or name.startswith("__") or not hasattr(slow, name):
                raise
            found = getattr(slow, name)
            return found.__get__(self) if hasattr(found, "__get__") else found

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        residual: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, Q, C) or (B, C, H, W) -> same; ``residual`` is added last."""
        processor: Any = self.processor
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        if attention_mask is not None or kwargs or type(processor).__name__ != self.usual:
            made: Tensor = self.slow.forward(
                self, hidden_states, encoder_hidden_states, attention_mask, **kwargs
            )
            return made if residual is None else made + residual
        given, shape = hidden_states, hidden_states.shape
        if self.group_norm is not None:
            flat = hidden_states if hidden_states.ndim == 4 else hidden_states.transpose(1, 2)
            hidden_states = self.group_norm(flat)
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        elif hidden_states.ndim == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        query = self.to_q(hidden_states)
        if encoder_hidden_states is None:
            key, value = self.to_k(hidden_states), self.to_v(hidden_states)
        else:
            key, value = self._text_keys(encoder_hidden_states)
        mixed = attend(self.lib, query, key, value, self.heads, self.scale)
        plain = self.to_out[0]
        if given.ndim == 4:
            made = multiply(plain, mixed).transpose(1, 2).reshape(shape)
        else:
            made = multiply(plain, mixed, residual=residual)
            residual = None
        if self.residual_connection:
            made = made + given
        if self.rescale_output_factor != 1.0:
            made = made / self.rescale_output_factor
        return made if residual is None else made + residual

    def _text_keys(self, states: Tensor) -> tuple[Tensor, Tensor]:
        layers = (self.to_k, self.to_v)
        if any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers) or states.requires_grad:
            return self.to_k(states), self.to_v(states)
        stamp = tuple((id(weight), _version(weight)) for layer in layers for weight in _weights(layer))
        held = self._text
        if held is not None and held[0] is states and held[1] == _version(states) and held[2] == stamp:
            return held[3], held[4]
        key, value = self.to_k(states), self.to_v(states)
        # states itself is held: its identity cannot be taken over by another tensor while it is compared
        self._text = None if key.requires_grad else (states, _version(states), stamp, key, value)
        return key, value


class FastTransformer(nn.Module):
    """diffusers' ``BasicTransformerBlock`` with plain layer norms: residuals added inside the products."""

    norm1: nn.Module
    norm2: nn.Module
    norm3: nn.Module
    attn1: nn.Module
    attn2: nn.Module | None
    ff: Any
    only_cross_attention: bool

    def __init__(self, source: nn.Module) -> None:
        take_children(self, source)
        self.slow = source.__class__

    @staticmethod
    def fits(source: Any) -> bool:
        """Tell whether this block is of the plain kind that Stable Diffusion uses."""
        return (
            type(source).__name__ == "BasicTransformerBlock"
            and source.norm_type == "layer_norm"
            and source.pos_embed is None
            and source._chunk_size is None
            and type(source.ff.net[0]).__name__ in ("GEGLU", "FastGEGLU")
            and type(source.ff.net[2]) in (nn.Linear, FastLinear)
            and len(source.ff.net) == 3
            and getattr(source, "fuser", None) is None
        )

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """(B, T, C) -> same."""
        extra = cross_attention_kwargs or {}
        for attention, norm, states, mask in (
            (
                self.attn1,
                self.norm1,
                encoder_hidden_states if self.only_cross_attention else None,
                attention_mask,
            ),
            (self.attn2, self.norm2, encoder_hidden_states, encoder_attention_mask),
        ):
            if attention is None:
                continue
            if isinstance(attention, FastAttention) and not extra and not attention._forward_hooks:
                hidden_states = attention.forward(norm(hidden_states), states, mask, hidden_states)
            else:
                hidden_states = hidden_states + attention(
                    norm(hidden_states), encoder_hidden_states=states, attention_mask=mask, **extra
                )
        gate, _, last = self.ff.net
        return multiply(last, gate(self.norm3(hidden_states)), residual=hidden_states)


class FastDense(nn.Module):
    """The dense block of ``RRDBNet`` (ESRGAN): all layers write into one picture, no copies join them."""

    def __init__(self, source: nn.Module, lib: Library) -> None:
        take_children(self, source)
        self.lib, self.slow = lib, source.__class__

    @staticmethod
    def fits(source: nn.Module) -> bool:
        """Tell whether these are five 3x3 convolutions, each seeing what all before it made."""
        layers = list(source.children())
        if type(source).__name__ != "_Dense" or len(layers) != 5:
            return False
        return all(
            FastConv2d.fits(layer)
            and isinstance(layer, nn.Conv2d)
            and (layer.kernel_size, layer.stride, layer.padding, layer.padding_mode)
            == ((3, 3), (1, 1), (1, 1), "zeros")
            for layer in layers
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> same: x + 0.2 conv5(...), leaky rectifiers of 0.2 between."""
        layers = [layer for layer in self.children() if isinstance(layer, FastConv2d)]
        usual = all(not layer._forward_hooks and "_conv_forward" not in vars(layer) for layer in layers)
        if not usual or not suits(x) or not x.numel():
            made: Tensor = self.slow.forward(self, x)
            return made
        count, width, height, across = x.shape
        sizes = (count, layers[-1].in_channels, height, across)
        seen = self.lib.large_pages(torch.empty(sizes, memory_format=torch.channels_last))
        seen[:, :width] = x
        for layer in layers[:-1]:
            into = seen[:, layer.in_channels : layer.in_channels + layer.out_channels]
            self._run(layer, seen[:, : layer.in_channels], into=into, slope=0.2)
        return self._run(layers[-1], seen, residual=x, scale=0.2)

    def _run(self, layer: FastConv2d, x: Tensor, **more: Any) -> Tensor:
        edge = Borders(1, 1)
        return winograd(
            self.lib, x, layer.packed, layer.out_channels, layer.bias, y_borders=edge, x_borders=edge, **more
        )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _weights(layer: nn.Module) -> list[Tensor]:
    found = [layer.packed] if isinstance(layer, FastLinear) else [getattr(layer, "weight", None)]
    return [tensor for tensor in (*found, getattr(layer, "bias", None)) if isinstance(tensor, Tensor)]
