"""One code at a time, quickly: a causal transformer's single step with weights laid out for it.

A step of one code reads every weight once and computes little else, so its time is that of reading. On CPUs
the product of one row with a matrix stored input-major takes two thirds of the time of the usual layout, and
small operations are joined. The plain way is :meth:`TokenTransformer.advance`; a test compares both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vitrail.models.token_blocks import Cache, TokenBlock
from vitrail.models.token_transformer import TokenTransformer

__all__ = ["StepDecoder"]


@dataclass(frozen=True)
class _Linear:
    """A linear layer with its matrix input-major."""

    bias: Tensor | None
    matrix: Tensor

    @classmethod
    def of(cls, layer: torch.nn.Linear) -> _Linear:
        return cls(layer.bias, layer.weight.t().contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.matrix if self.bias is None else torch.addmm(self.bias, x, self.matrix)


@dataclass(frozen=True)
class _Step:
    """One block's weights."""

    norms: tuple[torch.nn.LayerNorm, torch.nn.LayerNorm]
    qkv: _Linear
    out: _Linear
    up: _Linear
    down: _Linear
    #: Query and key norm weights (2, 1, D), the query's with the attention's scale in it.
    scales: Tensor | None

    @classmethod
    def of(cls, block: TokenBlock) -> _Step:
        attention = block.attention
        scales = None
        if attention.query_norm is not None and attention.key_norm is not None:
            query, key = attention.query_norm.weight, attention.key_norm.weight
            scales = torch.stack([query * len(query) ** -0.5, key])[:, None]
        up, down = block.mlp[0], block.mlp[2]
        assert isinstance(up, torch.nn.Linear)
        assert isinstance(down, torch.nn.Linear)
        return cls(
            (block.norm1, block.norm2),
            _Linear.of(attention.qkv),
            _Linear.of(attention.out),
            _Linear.of(up),
            _Linear.of(down),
            scales,
        )


class StepDecoder:
    """Does what ``network.advance`` does; made once for many steps, of the weights as they are then.

    It takes as much memory as the network's blocks.
    """

    def __init__(self, network: TokenTransformer) -> None:
        blocks: list[TokenBlock] = list(network.blocks)  # type: ignore[arg-type]
        self.network = network
        self.steps = [_Step.of(block) for block in blocks]
        self.head = _Linear.of(network.head)
        self.heads = network.config.heads
        self.approximate = "tanh" if network.config.block == "modern" else "none"

    def prepare(self, cache: Cache) -> list[tuple[Tensor, ...]] | None:
        """The condition's vectors of every block and of the last norm, split, with 1 added to the scales."""
        if cache.modulations is None:
            return None
        split: list[tuple[Tensor, ...]] = []
        for vectors in cache.modulations:
            shift1, scale1, *more = vectors.unbind(1)
            if not more:
                split.append((shift1, 1 + scale1))
                continue
            gate1, shift2, scale2, gate2 = more
            split.append((shift1, 1 + scale1, gate1, shift2, 1 + scale2, gate2))
        return split

    def advance(
        self, code: Tensor, cache: Cache, index: int, vectors: list[tuple[Tensor, ...]] | None
    ) -> Tensor:
        """Read ``code`` (B,), the picture's code number ``index``; return the logits (B, K) of the next.

        ``vectors`` is what :meth:`prepare` gave for this cache.
        """
        x = self.network.embed(code[:, None], index)[:, 0]
        hidden = None if cache.hidden is None else cache.hidden[:, None, None, : cache.length + 1]
        for number, step in enumerate(self.steps):
            moved = None if vectors is None else vectors[number]
            h = _normed(step.norms[0], x)
            if moved is not None:
                h = torch.addcmul(moved[0], h, moved[1])
            told = step.out(self._attended(step, step.qkv(h), cache, number, hidden))
            x = x + told if moved is None else torch.addcmul(x, moved[2], told)
            h = _normed(step.norms[1], x)
            if moved is not None:
                h = torch.addcmul(moved[3], h, moved[4])
            told = step.down(functional.gelu(step.up(h), approximate=self.approximate))
            x = x + told if moved is None else torch.addcmul(x, moved[5], told)
        cache.length += 1
        h = _normed(self.network.norm, x)
        if vectors is not None:
            h = torch.addcmul(vectors[-1][0], h, vectors[-1][1])
        return self.head(h).float()

    def _attended(self, step: _Step, qkv: Tensor, cache: Cache, number: int, hidden: Tensor | None) -> Tensor:
        rows, place = len(qkv), cache.length
        qkv = qkv.view(rows, 3, self.heads, -1)
        pair, value = qkv[:, :2], qkv[:, 2]
        if step.scales is not None:
            pair = pair * (pair.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * step.scales
        keys, values = cache.keys[number], cache.values[number]
        keys[:, :, place] = pair[:, 1]
        values[:, :, place] = value
        query = pair[:, 0, :, None]
        if step.scales is None:
            query = query * query.shape[-1] ** -0.5
        logits = query @ keys[:, :, : place + 1].transpose(2, 3)
        if hidden is not None:
            logits = logits.masked_fill(hidden, -torch.inf)
        return (logits.softmax(-1) @ values[:, :, : place + 1]).reshape(rows, -1)


def _normed(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    return functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
