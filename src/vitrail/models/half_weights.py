"""Networks whose weights are kept in bfloat16, for passes that autocast computes in it.

Autocast converts the weights of every layer again in every pass, which on two CPU cores is an eighth of a
picture. Converted once they give the same numbers to the bit.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

__all__ = ["in_bfloat16"]

N = TypeVar("N", bound=nn.Module)

#: Layers that autocast computes in bfloat16 on every device; norms and tables of words stay as they are.
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def in_bfloat16(network: N) -> N:
    """Return ``network`` with the weights of its matrix products in bfloat16; all else is shared with it.

    Not to be trained, and for use under autocast to bfloat16 alone: there its answers are those of
    ``network``.
    """
    lowered = {
        parameter
        for layer in network.modules()
        if isinstance(layer, _LAYERS)
        for parameter in layer.parameters(recurse=False)
    }
    memo: dict[int, object] = {}
    for tensor in [*network.parameters(), *network.buffers()]:
        memo[id(tensor)] = tensor
        if tensor in lowered:
            memo[id(tensor)] = nn.Parameter(tensor.detach().to(torch.bfloat16), requires_grad=False)
    return copy.deepcopy(network, memo)
