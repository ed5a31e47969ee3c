"""What the inert pickle reader builds in place of tensors, storages and objects: descriptions, plain and
frozen."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["KINDS", "OTHER_STORAGES", "STORAGES", "Kind", "Named", "Opaque", "Storage", "TensorPlan"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of number: its name in safetensors and its size in bytes."""

    name: str
    size: int


KINDS = {
    "float64": Kind("F64", 8),
    "float32": Kind("F32", 4),
    "float16": Kind("F16", 2),
    "bfloat16": Kind("BF16", 2),
    "int64": Kind("I64", 8),
    "int32": Kind("I32", 4),
    "int16": Kind("I16", 2),
    "int8": Kind("I8", 1),
    "uint8": Kind("U8", 1),
    "uint16": Kind("U16", 2),
    "uint32": Kind("U32", 4),
    "uint64": Kind("U64", 8),
    "bool": Kind("BOOL", 1),
}
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
OTHER_STORAGES = {
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
}


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """A global that the file names: never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class Opaque:
    """Stands where a plain reader would have built an object; ``what`` names it."""

    what: str


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A block of ``count`` numbers of one kind that lies elsewhere in the file under ``key``.

    ``start``: where it begins within that block, in numbers (views of the oldest format only).
    """

    key: str
    kind: Kind
    count: int
    start: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class TensorPlan:
    """Where a tensor's numbers lie: a storage, and offset, shape and stride in numbers of ``kind``."""

    storage: Storage
    kind: Kind
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers the tensor has."""
        return math.prod(self.shape)

    @property
    def contiguous(self) -> bool:
        """Whether its numbers lie one after the other."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != expected:
                return self.count == 0
            expected *= size
        return True
