"""Reads the graph and the numbers of an ONNX file, and nothing else of it.

An ONNX file is one protocol-buffer message. This reader knows the few fields that hold nodes, constants and
weights, skips all others, takes no memory before it has seen the bytes for it, follows no reference to other
files and runs nothing. Field numbers: github.com/onnx/onnx, onnx/onnx.proto; wire format:
protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitrail.errors import DataError
from vitrail.files import shown

__all__ = ["Graph", "Node", "read_graph"]

MAX_NODES = 10_000
MAX_TENSORS = 10_000
MAX_NAME_BYTES = 1000

Array = np.ndarray[Any, np.dtype[Any]]

#: data types of TensorProto that are read
_TYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}


@dataclass(frozen=True)
class Node:
    """One operation: its ONNX type (``Conv``), what it is called, names of values; constants it carries."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: dict[str, Array] = field(repr=False)


@dataclass(frozen=True)
class Graph:
    """The nodes of a network in order, and its weights by name."""

    nodes: tuple[Node, ...]
    weights: dict[str, Array] = field(repr=False)


def read_graph(data: bytes) -> Graph:
    """Return the graph of an ONNX file.

    Raises :class:`~vitrail.errors.DataError` with one line for anything that is not a sound file.
    """
    try:
        graphs = [value for number, value in _fields(memoryview(data)) if number == 7]
        if len(graphs) != 1 or not isinstance(graphs[0], memoryview):
            raise DataError("the ONNX file has no graph; it is damaged: get it again")
        return _graph(graphs[0])
    except (_Broken, UnicodeDecodeError, struct.error, OverflowError, ValueError, TypeError) as error:
        raise DataError(f"the ONNX file cannot be read ({shown(error, 80)}); get it again") from None


class _Broken(Exception):
    """The bytes are no protocol-buffer message."""


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value): a number, or the bytes of a text, message or fixed-width number."""
    place, end = 0, len(data)
    while place < end:
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(data, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise _Broken(f"wire type {wire} at byte {place}")
        if size > end - place:
            raise _Broken("it is cut off")
        yield number, data[place : place + size]
        place += size


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise _Broken("it is cut off")
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7


def _graph(data: memoryview) -> Graph:
    nodes: list[Node] = []
    weights: dict[str, Array] = {}
    for number, value in _fields(data):
        if number == 1:
            nodes.append(_node(_message(value)))
        elif number == 5:
            name, array = _tensor(_message(value))
            if name in weights:
                raise _Broken("two weights have one name")
            weights[name] = array
        if len(nodes) > MAX_NODES or len(weights) > MAX_TENSORS:
            raise _Broken(f"more than {MAX_NODES} nodes or {MAX_TENSORS} weights")
    return Graph(tuple(nodes), weights)


def _node(data: memoryview) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: []}
    tensors: dict[str, Array] = {}
    for number, value in _fields(data):
        if number in texts:
            texts[number].append(_text(value))
        elif number == 5:
            name, tensor = "", None
            for inner, content in _fields(_message(value)):
                if inner == 1:
                    name = _text(content)
                elif inner == 5:
                    tensor = _tensor(_message(content))[1]
            if tensor is not None:
                tensors[name] = tensor
    kind, name = ("".join(texts[number][:1]) for number in (4, 3))
    return Node(kind, name, tuple(texts[1]), tuple(texts[2]), tensors)


def _tensor(data: memoryview) -> tuple[str, Array]:
    """Return the name and the values of a TensorProto."""
    shape: list[int] = []
    kind, name, raw = 0, "", b""
    listed: dict[int, bytearray] = {4: bytearray(), 5: bytearray(), 7: bytearray()}
    for number, value in _fields(data):
        if number == 1:
            shape += [value] if isinstance(value, int) else _numbers(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = bytes(_message(value))
        elif number == 4:
            listed[4] += _message(value)
        elif number in (5, 7):
            packed = [value] if isinstance(value, int) else _numbers(value)
            wide = "<i8" if number == 7 else "<i4"
            # Negative numbers are written as unsigned 64-bit ones.
            listed[number] += np.array(packed, "<u8").astype(wide).tobytes()
        elif number == 13 or (number == 14 and value != 0):
            raise _Broken("its weights lie in another file")
    if kind not in _TYPES:
        raise _Broken(f"numbers of type {kind}")
    if len(shape) > 8 or any(side > 1 << 31 for side in shape):
        raise _Broken(f"a tensor of shape {shape[:9]}")
    stored = np.dtype(_TYPES[kind])
    given: bytes | bytearray = raw
    if not raw and listed[5] and stored.itemsize < 4:
        given = np.frombuffer(listed[5], "<i4").astype(stored).tobytes()
    elif not raw:
        given = listed[4] or listed[5] or listed[7]
    count = 1
    for side in shape:
        count *= side
    if count * stored.itemsize != len(given):
        raise _Broken(f"{len(given)} bytes for a tensor of shape {shape}")
    return name, np.frombuffer(bytes(given), stored).reshape(shape)


def _numbers(data: memoryview) -> list[int]:
    values, place = [], 0
    while place < len(data):
        value, place = _varint(data, place)
        values.append(value)
    return values


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _Broken("a number where a message is expected")
    return value


def _text(value: int | memoryview) -> str:
    data = _message(value)
    if len(data) > MAX_NAME_BYTES:
        raise _Broken("a name is too long")
    return bytes(data).decode("utf-8")
