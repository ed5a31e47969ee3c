"""Attention without masks: the blocked kernel, and PyTorch's own where it cannot run."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from vitrail.kernels.layers import suits
from vitrail.kernels.library import Library
from vitrail.kernels.operations import attention

__all__ = ["attend"]


def attend(
    lib: Library | None, query: Tensor, key: Tensor, value: Tensor, heads: int, scale: float
) -> Tensor:
    """Return softmax(query key^T scale) value, head by head.

    query: (B, Q, heads * d); key, value: (B or 1, K, heads * d). The result is (B, Q, heads * d).
    """
    batch, _, inner = query.shape
    key, value = (tensor.expand(batch, -1, -1) for tensor in (key, value))
    if lib is not None and suits(query, key, value) and query.numel() and key.numel():
        return attention(lib, query, key, value, heads, scale)
    query, key, value = (
        tensor.reshape(batch, -1, heads, inner // heads).transpose(1, 2) for tensor in (query, key, value)
    )
    mixed = functional.scaled_dot_product_attention(query, key, value, scale=scale)
    return mixed.transpose(1, 2).reshape(batch, -1, inner)
