"""Reads networks of the ncnn format: a text of layers (``.param``) and their numbers in one row (``.bin``).

Only what a network of plain 3 x 3 convolutions needs is understood: Input, Split, Convolution, Concat,
Eltwise, BinaryOp, Interp. Nothing runs; every number is checked before memory is taken for it. The format:
github.com/Tencent/ncnn, docs/developer-guide/param-and-model-file-structure.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vitrail.errors import DataError
from vitrail.files import shown

__all__ = ["Layer", "read_network"]

MAGIC = "7767517"
MAX_PARAM_BYTES = 1 << 20
MAX_LAYERS = 10_000
MAX_WEIGHTS = 1 << 26
"""Most numbers of one layer."""

_FLOAT16, _FLOAT32 = 0x01306B47, 0
_ARRAY = -23300  # keys at and below this hold arrays: -23300 - id


@dataclass(frozen=True)
class Layer:
    """One layer: ``kind``, names of the values it takes and makes, its parameters, and its weights.

    ``inputs`` are never outputs of a Split: those stand for what was split. ``numbers`` and ``arrays`` are
    its parameters by number. ``weight`` (out, in, k, k) and ``bias`` (out,) of a Convolution are float32.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    numbers: dict[int, float]
    arrays: dict[int, tuple[float, ...]]
    weight: Tensor | None = field(default=None, repr=False)
    bias: Tensor | None = field(default=None, repr=False)


def read_network(param: bytes, weights: bytes) -> list[Layer]:
    """Return the layers of a network in order, without Input and Split.

    Raises :class:`~vitrail.errors.DataError` with one line for anything that is not exactly such a network.
    """
    if len(param) > MAX_PARAM_BYTES:
        raise DataError(f"the .param file has {len(param)} bytes; allowed are {MAX_PARAM_BYTES}")
    try:
        lines = param.decode("ascii").splitlines()
        layers, blobs = (int(word) for word in lines[1].split())
    except (ValueError, IndexError):
        raise DataError("the .param file is no text of ncnn; it is damaged") from None
    if lines[0].strip() != MAGIC or not 0 < layers <= MAX_LAYERS or blobs > 10 * MAX_LAYERS:
        raise DataError("the .param file is not of ncnn's format 7767517, or claims too many layers")
    rows = [line.split() for line in lines[2:] if line.strip()]
    if len(rows) != layers:
        raise DataError(f"the .param file claims {layers} layers and has {len(rows)}; it is damaged")
    source: dict[str, str] = {}  # the value that each name stands for
    found = []
    reader = _Numbers(weights)
    for row in rows:
        layer = _layer(row, source, reader)
        if layer is not None:
            found.append(layer)
    reader.finish()
    return found


def _layer(row: list[str], source: dict[str, str], reader: _Numbers) -> Layer | None:
    """Read one line; notes in ``source`` what its outputs stand for."""
    name = shown(row[1] if len(row) > 1 else row[0], 40)
    try:
        kind, takes, makes = row[0], int(row[2]), int(row[3])
        inputs, outputs = row[4 : 4 + takes], row[4 + takes : 4 + takes + makes]
        if min(takes, makes) < 0 or len(inputs) != takes or len(outputs) != makes:
            raise ValueError
        numbers, arrays = _parameters(row[4 + takes + makes :])
    except (ValueError, IndexError, OverflowError):
        raise DataError(f"layer {name} of the .param file cannot be read; it is damaged") from None
    if any(value not in source for value in inputs) or any(value in source for value in outputs):
        raise DataError(f"layer {name} of the .param file does not fit those before it; it is damaged")
    resolved = tuple(source[value] for value in inputs)
    if kind == "Split" and len(resolved) == 1:
        source.update(dict.fromkeys(outputs, resolved[0]))
        return None
    if len(outputs) != 1:
        raise DataError(f"layer {name} of the .param file makes {len(outputs)} values; expected is one")
    source[outputs[0]] = outputs[0]
    if kind == "Input":
        return None
    if kind not in ("Convolution", "Concat", "Eltwise", "BinaryOp", "Interp"):
        raise DataError(f"layer {name} is a {shown(kind, 40)}; no network that is known here has one")
    if kind != "Convolution":
        return Layer(kind, resolved, outputs[0], numbers, arrays)
    weight, bias = _convolution(name, numbers, reader)
    return Layer(kind, resolved, outputs[0], numbers, arrays, weight, bias)


def _parameters(words: list[str]) -> tuple[dict[int, float], dict[int, tuple[float, ...]]]:
    """Read ``0=64`` and ``-23310=1,0.2``; ValueError for anything else."""
    numbers: dict[int, float] = {}
    arrays: dict[int, tuple[float, ...]] = {}
    for word in words:
        key, _, text = word.partition("=")
        if int(key) <= _ARRAY:
            count, *values = text.split(",")
            if int(count) != len(values) or len(values) > 64:
                raise ValueError
            arrays[_ARRAY - int(key)] = tuple(_finite(value) for value in values)
        else:
            numbers[int(key)] = _finite(text)
    return numbers, arrays


def _finite(text: str) -> float:
    value = float(text)
    if not np.isfinite(value):
        raise ValueError
    return value


def _convolution(name: str, numbers: dict[int, float], reader: _Numbers) -> tuple[Tensor, Tensor]:
    """Parameters: 0 outputs, 1 kernel, 2 dilation, 3 stride, 4 padding, 5 has a bias, 6 weights in all."""
    outputs, kernel, total = (int(numbers.get(key, 0)) for key in (0, 1, 6))
    plain = all(numbers.get(key, usual) == usual for key, usual in ((2, 1), (3, 1), (5, 1)))
    if not plain or numbers.get(4, 0) != kernel // 2:
        raise DataError(f"layer {name} is no plain convolution; no network that is known here has one")
    if not (0 < outputs <= 4096 and kernel in (1, 3) and 0 < total <= MAX_WEIGHTS):
        raise DataError(f"layer {name} claims {outputs} outputs and {total} weights; that cannot be")
    inputs, rest = divmod(total, outputs * kernel * kernel)
    if rest or not inputs:
        raise DataError(f"layer {name} claims {total} weights; they do not divide by its outputs")
    weight = reader.weights(name, total).reshape(outputs, inputs, kernel, kernel)
    return torch.from_numpy(weight), torch.from_numpy(reader.floats(name, outputs))


class _Numbers:
    """Reads the ``.bin`` file from its start to its end."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self.place = 0

    def take(self, name: str, size: int) -> memoryview:
        if self.place + size > len(self.data):
            raise DataError(f"the .bin file ends within layer {name}; it is cut off: get it again")
        piece = self.data[self.place : self.place + size]
        self.place += size
        return piece

    def floats(self, name: str, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """Plain float32, little-endian."""
        values = np.frombuffer(self.take(name, 4 * count), "<f4").astype(np.float32)
        return self._sound(name, values)

    def weights(self, name: str, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """A tag, then float32, or float16 filled up to a multiple of four bytes."""
        tag = int.from_bytes(self.take(name, 4), "little")
        if tag == _FLOAT32:
            return self.floats(name, count)
        if tag != _FLOAT16:
            raise DataError(f"layer {name} is stored as {tag:#x}; known are float16 and float32")
        values = np.frombuffer(self.take(name, (2 * count + 3) // 4 * 4), "<f2")[:count]
        return self._sound(name, values.astype(np.float32))

    def finish(self) -> None:
        """Raise :class:`DataError` if anything is left over."""
        if self.place != len(self.data):
            raise DataError(
                f"the .bin file has {len(self.data) - self.place} bytes too many; it does not belong to this "
                "network"
            )

    @staticmethod
    def _sound(
        name: str, values: np.ndarray[tuple[int], np.dtype[np.float32]]
    ) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        if not np.isfinite(values).all():
            raise DataError(f"layer {name} holds NaN or infinite values; the file is damaged")
        return values
