"""Ways to read a token transformer, as the samplers ask for it, and minGPT's names of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from vitrail.errors import CheckpointError
from vitrail.models.canvas import Sketch
from vitrail.models.token_blocks import Cache
from vitrail.models.token_decoding import StepDecoder
from vitrail.models.token_transformer import Conditions, TokenTransformer

__all__ = ["CachedReader", "MaskedReader", "RecomputingReader", "from_mingpt"]


class MaskedReader:
    """A masked model with its conditions: codes (R, H, W), below 0 where unknown -> logits (R, H, W, K).

    The first R rows of ``conditions`` are used, so that a pass without guidance costs half.
    """

    def __init__(self, network: TokenTransformer, conditions: Conditions) -> None:
        self.network = network
        self.conditions = conditions
        self._sketches: dict[int, Sketch | None] = {}  # by rows: the passes of a picture share one

    def __call__(self, codes: Tensor) -> Tensor:
        flat = torch.where(codes < 0, self.network.unknown, codes).flatten(1)
        rows = len(codes)
        conditions = self.conditions.rows(slice(rows))
        if rows not in self._sketches:
            self._sketches[rows] = self.network.sketch(conditions)
        logits: Tensor = self.network(flat, conditions, self._sketches[rows])
        return logits.view(*codes.shape, -1)


class CachedReader:
    """Reads codes into a causal model's cache; see :class:`vitrail.samplers.tokens.CodeReader`."""

    def __init__(self, network: TokenTransformer, conditions: Conditions) -> None:
        self.network = network
        self.conditions = conditions
        self.rows, self.columns = network.config.rows, network.config.columns
        self._cache: Cache | None = None
        self._index = 0
        self._decoder: StepDecoder | None = None
        self._vectors: list[tuple[Tensor, ...]] | None = None

    def begin(self, past: Tensor, prefix: Tensor | None = None) -> Tensor:
        conditions = self.conditions if prefix is None else self.conditions._replace(prefix=prefix)
        self._cache, logits = self.network.begin(past, conditions)
        self._index = past.shape[1]
        self._vectors = None
        return logits[:, : self.network.config.codes]

    def advance(self, code: Tensor) -> Tensor:
        assert self._cache is not None, "begin first"
        if self._decoder is None:
            self._decoder = StepDecoder(self.network)
        if self._vectors is None:
            self._vectors = self._decoder.prepare(self._cache)
        logits = self._decoder.advance(code, self._cache, self._index, self._vectors)
        self._index += 1
        return logits[:, : self.network.config.codes]


class RecomputingReader:
    """The plain reference of :class:`CachedReader`: every code costs a pass over all before it."""

    def __init__(self, network: TokenTransformer, conditions: Conditions) -> None:
        self.network = network
        self.conditions = conditions
        self.rows, self.columns = network.config.rows, network.config.columns
        self._past: Tensor | None = None
        self._given = conditions

    def begin(self, past: Tensor, prefix: Tensor | None = None) -> Tensor:
        self._given = self.conditions if prefix is None else self.conditions._replace(prefix=prefix)
        self._past = past
        return self._last()

    def advance(self, code: Tensor) -> Tensor:
        assert self._past is not None, "begin first"
        self._past = torch.cat([self._past, code[:, None]], dim=1)
        return self._last()

    def _last(self) -> Tensor:
        assert self._past is not None
        asked = functional.pad(self._past, (0, 1))  # the code that is asked for; causal, so never seen
        logits: Tensor = self.network(asked, self._given)
        return logits[:, -1, : self.network.config.codes]


_MINGPT = (
    (r"tok_emb\.weight", "code.weight"),
    (r"pos_emb", "position"),
    (r"blocks\.(\d+)\.ln1\.(weight|bias)", r"blocks.\1.norm1.\2"),
    (r"blocks\.(\d+)\.ln2\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"blocks.\1.attention.out.\2"),
    (r"blocks\.(\d+)\.mlp\.([02])\.(weight|bias)", r"blocks.\1.mlp.\2.\3"),
    (r"ln_f\.(weight|bias)", r"norm.\1"),
    (r"head\.weight", "head.weight"),
)
_QKV = re.compile(r"blocks\.(\d+)\.attn\.(query|key|value)\.(weight|bias)")


def from_mingpt(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename minGPT's weights (taming-transformers' ``transformer.*`` without that prefix) to ours.

    Query, key and value become one matrix, in that order; the causal masks, which are no weights, are left
    out. Raises :class:`CheckpointError` for a name that minGPT does not have, or a missing third of a matrix.
    """
    result: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if re.fullmatch(r"blocks\.\d+\.attn\.mask", name):
            continue
        if found := _QKV.fullmatch(name):
            thirds.setdefault(f"blocks.{found[1]}.attention.qkv.{found[3]}", {})[found[2]] = value
            continue
        for pattern, ours in _MINGPT:
            if re.fullmatch(pattern, name):
                result[re.sub(pattern, ours, name)] = value
                break
        else:
            raise CheckpointError(f"tensor {name[:80]!r} is not one of a minGPT transformer")
    for name, parts in thirds.items():
        missing = [part for part in ("query", "key", "value") if part not in parts]
        if missing:
            raise CheckpointError(f"{name} lacks its {missing[0]}; the checkpoint is incomplete")
        result[name] = torch.cat([parts["query"], parts["key"], parts["value"]])
    return result
