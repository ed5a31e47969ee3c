"""The prior as the probability model of the entropy coder.

A picture's codes are cut into blocks of the size that the prior was trained on. A masked prior is asked in a
fixed order of places, spread over the block like a Bayer matrix, a few more in each pass; a causal one in
raster order. Places of a block beyond the picture's edge stay unknown.

Reader and writer must see the same probabilities to the last bit, and floating-point networks promise no such
thing: another processor, another number of threads or another library sums in another order. So

1. the network runs in float64 throughout, where such differences are about 1e-13,
2. logits are rounded to multiples of 1/32 before anything else, so a difference matters only where a logit
   lies that close to a boundary: about one picture in a million (:data:`vitrail.store.entropy.LOGIT_STEP`),
3. the rest is whole numbers,
4. writer and reader go the same way, pass by pass, block by block (one block at a time: batching, too, may
   change how sums are ordered),
5. :func:`vitrail.tasks.compress.compress` reads back what was written and takes a static model where it
   differs; a reader finds a difference by the file's check and says so.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vitrail.errors import DataError
from vitrail.models.token_readers import CachedReader, MaskedReader
from vitrail.models.token_transformer import Conditions, TokenTransformer
from vitrail.samplers.tokens import UNKNOWN
from vitrail.store.entropy import Decoder, encode, frequencies, intervals, weights_of_logits
from vitrail.tasks.context import Context
from vitrail.tasks.loading import Loader, TokenModel
from vitrail.tasks.priors import find_prior

__all__ = ["MAX_PRIOR_CODES", "PASSES", "PriorCoder", "load_prior_coder", "order_of"]

Integers = NDArray[np.int64]
Symbols = Callable[[Integers, Integers], Integers]
"""(frequencies (n, K), places (n,)) -> the codes there: those known and written, or those read."""

MAX_PRIOR_CODES = 1 << 14
"""Most codes that are written with a prior: more would take minutes."""

PASSES = 16
"""Passes of a masked prior over a block. More passes are slower and save bits; the file says how many."""

_MAX_PASSES = 64


class _InDouble(TorchFunctionMode):
    """Makes ``tensor.float()`` in networks, meant to widen bfloat16, keep or give float64."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.float:
            return args[0].double()
        return func(*args, **(kwargs or {}))


@dataclass
class PriorCoder:
    """A prior in float64 on the CPU, told nothing of the picture."""

    name: str
    sha256: str
    network: TokenTransformer
    conditions: Conditions
    codes: int

    def write(self, codes: Integers, context: Context, passes: int = PASSES) -> bytes:
        """Write codes (rows, columns)."""
        starts: list[int] = []
        counts: list[int] = []
        flat = codes.reshape(-1)

        def known(table: Integers, places: Integers) -> Integers:
            more = intervals(table, flat[places])
            starts.extend(more[0])
            counts.extend(more[1])
            return flat[places]

        self._walk(codes.shape[0], codes.shape[1], passes, known, context)
        return bytes([passes]) + encode(starts, counts)

    def read(self, data: bytes, rows: int, columns: int, context: Context) -> Integers:
        """Read ``rows`` x ``columns`` codes; :class:`DataError` for what was never written."""
        if not data or not 1 <= data[0] <= _MAX_PASSES:
            raise DataError("the coded picture is damaged: its number of passes cannot be read")
        decoder = Decoder(data[1:])
        found = np.empty(rows * columns, dtype=np.int64)

        def read(table: Integers, places: Integers) -> Integers:
            found[places] = decoder.read(table)
            return found[places]

        self._walk(rows, columns, data[0], read, context)
        decoder.finish()
        return found.reshape(rows, columns)

    def _walk(self, rows: int, columns: int, passes: int, symbols: Symbols, context: Context) -> None:
        config = self.network.config
        numbers = np.arange(rows * columns).reshape(rows, columns)
        one_block = self._masked if config.mode == "masked" else self._causal
        with torch.inference_mode(), _InDouble():
            for top in range(0, rows, config.rows):
                for left in range(0, columns, config.columns):
                    # Where each place of the block lies in the picture; -1 beyond its edge.
                    places = np.full((config.rows, config.columns), -1, dtype=np.int64)
                    part = numbers[top : top + config.rows, left : left + config.columns]
                    places[: part.shape[0], : part.shape[1]] = part
                    one_block(places, passes, symbols, context)

    def _masked(self, places: Integers, passes: int, symbols: Symbols, context: Context) -> None:
        order = order_of(*places.shape)
        flat = places.reshape(-1)
        order = order[flat[order] >= 0]
        reader = MaskedReader(self.network, self.conditions)
        block = torch.full((1, *places.shape), UNKNOWN, dtype=torch.int64)
        done = 0
        for step in range(1, passes + 1):
            end = len(order) - int(len(order) * math.cos(math.pi / 2 * step / passes) + 1e-9)
            end = len(order) if step == passes else max(end, min(done + 1, len(order)))
            if end == done:
                continue
            context.check()
            now = order[done:end]
            logits = reader(block)[0].flatten(0, 1)[torch.from_numpy(now)]
            codes = symbols(self._table(logits), flat[now])
            block.view(-1)[torch.from_numpy(now)] = torch.from_numpy(codes)
            done = end

    def _causal(self, places: Integers, passes: int, symbols: Symbols, context: Context) -> None:
        reader = CachedReader(self.network, self.conditions)
        logits = reader.begin(torch.empty((1, 0), dtype=torch.int64))
        code = torch.zeros(1, dtype=torch.int64)
        flat = places.reshape(-1)
        for index, place in enumerate(flat):
            context.check()
            if place >= 0:  # beyond the edge the code before is repeated
                code = torch.from_numpy(symbols(self._table(logits), flat[index : index + 1]))
            if index + 1 < len(flat):
                logits = reader.advance(code)

    def _table(self, logits: Tensor) -> Integers:
        """Frequencies (n, K) of logits (n, network's codes): those beyond the tokenizer's never occur."""
        return frequencies(weights_of_logits(logits[:, : self.codes].double().numpy()))


_LOADED: WeakKeyDictionary[Loader, tuple[TokenModel, PriorCoder]] = WeakKeyDictionary()


def load_prior_coder(loader: Loader, name: str) -> PriorCoder | None:
    """Return the coder of the model called ``name``, None where it has no prior that can write a picture.

    A prior of classes or of another picture's codes has no distribution of pictures as such. Raises
    :class:`ArtifactError` for a model that is not there, damaged, or without a tokenizer.
    """
    prior = find_prior(loader, name)
    if prior is None or prior.model.network.config.prefix > 1:
        return None
    config = prior.model.network.config
    if config.block == "gpt" and config.styles:
        return None
    kept = _LOADED.get(loader)
    if kept is not None and kept[0] is prior.model:
        return kept[1]
    network = copy.deepcopy(prior.model.network).to("cpu", torch.float64)
    conditions = Conditions()
    if prior.model.text is not None:
        text = copy.deepcopy(prior.model.text).to("cpu", torch.float64)
        with torch.inference_mode(), _InDouble():
            states = text([""])
        conditions = Conditions(states.states, states.mask, states.ids)
    coder = PriorCoder(prior.name, prior.sha256, network, conditions, prior.tokenizer.codes)
    _LOADED[loader] = (prior.model, coder)
    return coder


def order_of(rows: int, columns: int) -> Integers:
    """The places of a block (rows * columns,) in a Bayer matrix's order: each next one far from the rest.

    The matrix of the next power of two, cut to the block; its entry interleaves the bits of the column and of
    row xor column, the lowest first.
    """
    down, across = np.divmod(np.arange(rows * columns), columns)
    value = np.zeros_like(down)
    for bit in range(max(rows, columns, 2).bit_length()):
        value = value << 2 | ((down ^ across) >> bit & 1) << 1 | down >> bit & 1
    # Equal-sized steps first: the lowest bits of the place are the highest of the order.
    return np.argsort(value, kind="stable")
