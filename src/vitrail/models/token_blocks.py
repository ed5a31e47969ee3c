"""The parts of a transformer over codes: attention with a static cache, and its block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.models.layers import FeedForward, modulate
from vitrail.recipe.priors import TokenTransformerConfig

__all__ = ["Cache", "TokenAttention", "TokenBlock"]


@dataclass
class Cache:
    """Keys and values of everything read so far, in memory that is set aside once for the whole picture.

    ``keys``, ``values``: a block's tensors (B, heads, capacity, width / heads). ``length``: places filled.
    ``hidden`` (B, capacity) is True at places that must not be attended to (padding of the words), None where
    there are none. ``modulations``: a block's six vectors (B, 6, W), which stay the same for a picture.
    """

    keys: list[Tensor]
    values: list[Tensor]
    hidden: Tensor | None
    modulations: list[Tensor] | None
    length: int = 0

    @property
    def capacity(self) -> int:
        """Places in all."""
        return self.keys[0].shape[2]


class TokenAttention(nn.Module):
    """Multi-head self-attention over tokens (B, N, C); ``normalised``: with query-key norms.

    ``blocked`` is True where a query (row) must not see a key (column); it broadcasts against
    (B, heads, N, M). With ``keys`` and ``values`` (B, heads, capacity, D) the N new tokens are written at
    ``place`` and attend to everything up to themselves.
    """

    def __init__(self, width: int, heads: int, normalised: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6) if normalised else None
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6) if normalised else None
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        blocked: Tensor | None,
        keys: Tensor | None = None,
        values: Tensor | None = None,
        place: int = 0,
    ) -> Tensor:
        batch, count, width = x.shape
        query, key, value = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads).unbind(2)
        if self.query_norm is not None and self.key_norm is not None:
            query = self.query_norm(query.float()).to(value.dtype)
            key = self.key_norm(key.float()).to(value.dtype)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if keys is not None and values is not None:
            keys[:, :, place : place + count] = key
            values[:, :, place : place + count] = value
            key = keys[:, :, : place + count].to(query.dtype)
            value = values[:, :, : place + count].to(query.dtype)
        # Written out: see vitrail.models.layers.Attention.
        logits = (query * (width // self.heads) ** -0.5) @ key.transpose(2, 3)
        if blocked is not None:
            logits = logits.masked_fill(blocked, -torch.inf)
        attended = logits.softmax(-1).to(value.dtype) @ value
        result: Tensor = self.out(attended.transpose(1, 2).reshape(batch, count, width))
        return result


class TokenBlock(nn.Module):
    """Transformer block over (B, N, W).

    "modern": norms without weights, moved and scaled by six vectors (B, 6, W) of the condition (adaLN-single,
    PixArt-alpha, arXiv:2310.00426, section 2.3), query-key norms, tanh GELU. "gpt": pre-norm with affine
    norms, exact GELU, nothing of the condition (Radford et al. 2019; minGPT's network).
    """

    def __init__(self, config: TokenTransformerConfig) -> None:
        super().__init__()
        width, modern = config.width, config.block == "modern"
        self.dropout = config.dropout
        eps = 1e-6 if modern else 1e-5
        self.norm1 = nn.LayerNorm(width, elementwise_affine=not modern, eps=eps)
        self.attention = TokenAttention(width, config.heads, modern)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=not modern, eps=eps)
        hidden = int(width * config.mlp_ratio)
        self.mlp = (
            FeedForward(width, config.mlp_ratio)
            if modern
            else nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        )
        self.offset = nn.Parameter(torch.zeros(6, width)) if modern else None

    def modulation(self, shared: Tensor) -> Tensor:
        """The block's own six vectors (B, 6, W) from those that all blocks share."""
        assert self.offset is not None
        return shared + self.offset

    def forward(
        self,
        x: Tensor,
        blocked: Tensor | None,
        modulation: Tensor | None,
        keys: Tensor | None = None,
        values: Tensor | None = None,
        place: int = 0,
    ) -> Tensor:
        if modulation is None:
            x = x + self._drop(self.attention(self.norm1(x), blocked, keys, values, place))
            return x + self._drop(self.mlp(self.norm2(x)))
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.to(x.dtype).unbind(1)
        inner = self.attention(modulate(self.norm1(x), shift1, scale1), blocked, keys, values, place)
        x = x + gate1[:, None] * self._drop(inner)
        return x + gate2[:, None] * self._drop(self.mlp(modulate(self.norm2(x), shift2, scale2)))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training) if self.dropout else x
