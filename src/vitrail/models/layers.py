"""Layers that several networks share. All of them keep the shape of their input unless they say otherwise."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Attention", "FeedForward", "modulate", "timestep_features"]


def timestep_features(t: Tensor, width: int, period: float = 1000.0) -> Tensor:
    """Return sinusoidal features (B, width) of a noise level ``t`` (B,) in [0, 1].

    The positional encoding of Vaswani et al. 2017 (arXiv:1706.03762, section 3.5) over ``1000 * t``, as DDPM
    (arXiv:2006.11239) uses it for its step.
    """
    half = width // 2
    frequencies = torch.exp(
        torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10000.0) / half)
    )
    angles = t.float()[:, None] * period * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return ``x * (1 + scale) + shift`` for tokens ``x`` (B, N, C) and one vector (B, C) a picture.

    Adaptive layer normalisation of DiT (Peebles & Xie, arXiv:2212.09748, section 3.2).
    """
    return x * (1 + scale[:, None]) + shift[:, None]


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, N, C) with normalised queries and keys.

    Query-key normalisation (Dehghani et al., arXiv:2302.05442, section 2) keeps the logits bounded, so that
    bfloat16 training does not diverge. ``mask`` (B, N) is True where a token may be attended to.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by heads {heads}; choose heads that divide it")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, count, width = x.shape
        query, key, value = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads).unbind(2)
        query = self.query_norm(query.float()).to(value.dtype)
        key = self.key_norm(key.float()).to(value.dtype)
        # Written out instead of F.scaled_dot_product_attention: on CPUs the fused kernel's backward pass
        # takes a fifth of a whole training step at these lengths (78 tokens), these two products a twentieth.
        logits = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) * (width // self.heads) ** -0.5
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None, :], -torch.inf)
        attended = logits.softmax(-1).to(value.dtype) @ value.transpose(1, 2)
        result: Tensor = self.out(attended.transpose(1, 2).reshape(batch, count, width))
        return result


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU between them; ``ratio`` is hidden width over width."""

    def __init__(self, width: int, ratio: float) -> None:
        hidden = int(width * ratio)
        super().__init__(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
