"""The few calls of a pickle that build something, written again as functions of plain values."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vitrail.backends.inert_values import (
    KINDS,
    OTHER_STORAGES,
    STORAGES,
    Kind,
    Named,
    Opaque,
    Storage,
    TensorPlan,
)
from vitrail.errors import ArtifactError
from vitrail.files import shown

__all__ = ["CALLS", "call", "plain_key", "storage_of"]

MAX_DIMENSIONS = 32
_MAX_ENCODED = 4096


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ArtifactError(f"a tensor's layout holds {shown(type(value).__name__)} instead of a count")
    return value


def _ordered(args: tuple[Any, ...]) -> object:
    made: dict[object, object] = {}
    for pair in args[0] if args and isinstance(args[0], list | tuple) else ():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ArtifactError("an OrderedDict is made of something other than pairs")
        made[plain_key(pair[0])] = pair[1]
    return made


def _tensor(args: tuple[Any, ...], kind: Kind | None = None) -> object:
    """``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)``, checked number by number."""
    storage, offset, shape, stride = args[:4]
    if not isinstance(storage, Storage):
        raise ArtifactError("a tensor is made of something other than a block of numbers")
    if not isinstance(shape, tuple | list) or not isinstance(stride, tuple | list):
        raise ArtifactError("a tensor's shape or stride is no list of numbers")
    if len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
        raise ArtifactError(f"a tensor has {len(shape)} sizes and {len(stride)} strides")
    plan = TensorPlan(
        storage, kind or storage.kind, _whole(offset), tuple(map(_whole, shape)), tuple(map(_whole, stride))
    )
    if plan.count:
        last = sum((size - 1) * step for size, step in zip(plan.shape, plan.stride, strict=True))
        held = storage.count * storage.kind.size // plan.kind.size
        if plan.offset + last >= held:
            raise ArtifactError(f"a tensor reaches beyond its block of {held} numbers; the file is damaged")
    return plan


def _tensor_v3(args: tuple[Any, ...]) -> object:
    dtype = args[6]
    if not isinstance(dtype, Named) or dtype.module != "torch" or dtype.name not in KINDS:
        return Opaque("a tensor of a type that vitrail does not read")
    return _tensor(args, KINDS[dtype.name])


def _first(args: tuple[Any, ...]) -> object:
    return args[0]


def _from_type(args: tuple[Any, ...]) -> object:
    """``torch._tensor._rebuild_from_type_v2(function, type, arguments, state)``: a tensor with attributes."""
    function, _, inner = args[:3]
    if isinstance(function, Named) and isinstance(inner, tuple):
        made = call(function, inner)
        if isinstance(made, TensorPlan):
            return made
    return Opaque("a tensor of a class of its own")


def _size(args: tuple[Any, ...]) -> object:
    return tuple(args[0]) if isinstance(args[0], list | tuple) else Opaque("torch.Size")


def _encode(args: tuple[Any, ...]) -> object:
    """``_codecs.encode(text, "latin1")``: how old pickles carry bytes."""
    if len(args) == 2 and isinstance(args[0], str) and args[1] == "latin1" and len(args[0]) <= _MAX_ENCODED:
        return args[0].encode("latin1")
    return Opaque("_codecs.encode")


_NUMPY = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b"}
_NUMPY |= {"u8": "Q", "u4": "I", "u2": "H", "u1": "B", "b1": "?"}


@dataclass(frozen=True, slots=True, eq=False)
class _NumpyType:
    letter: str


def _numpy_type(args: tuple[Any, ...]) -> object:
    name = args[0] if args else None
    letter = _NUMPY.get(name.lstrip("<|=")) if isinstance(name, str) else None
    return _NumpyType(letter) if letter else Opaque("numpy.dtype")


def _numpy_scalar(args: tuple[Any, ...]) -> object:
    """``numpy.core.multiarray.scalar(dtype, bytes)`` of a plain number."""
    if len(args) != 2 or not isinstance(args[0], _NumpyType) or not isinstance(args[1], bytes):
        return Opaque("a numpy value")
    return struct.unpack("<" + args[0].letter, args[1])[0]


CALLS: dict[tuple[str, str], Callable[[tuple[Any, ...]], object]] = {
    ("collections", "OrderedDict"): _ordered,
    ("collections", "defaultdict"): lambda args: {},
    ("builtins", "dict"): _ordered,
    ("__builtin__", "dict"): _ordered,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch", "Size"): _size,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _numpy_type,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
}
"""The only calls that build something; each is a function of this file, of plain values."""


def call(function: Named, args: tuple[Any, ...]) -> object:
    known = CALLS.get((function.module, function.name))
    if known is None:
        return Opaque(str(function))
    try:
        return known(args)
    except (IndexError, ValueError, TypeError) as error:
        raise ArtifactError(f"it calls {function} wrongly: {shown(error, 80)}") from None


def plain_key(value: object) -> object:
    """A dictionary key that can be hashed quickly and without recursion; others become placeholders."""
    if value is None or type(value) in (str, bool, bytes) or isinstance(value, Named | Opaque):
        return value
    if type(value) is int and abs(value) < 2**60:  # beyond, integers can be chosen to share one hash
        return value
    return Opaque(f"a {type(value).__name__} as a key")


def storage_of(reference: object, widths: dict[str, int]) -> object:
    """A persistent id: ``("storage", type, key, device, count[, (view key, offset, count)])``."""
    if not isinstance(reference, tuple) or not reference or reference[0] != "storage":
        return Opaque("a reference that is no storage")
    if len(reference) not in (5, 6):
        raise ArtifactError("a reference to a block of numbers is damaged")
    _, type_, key, _, count = reference[:5]
    if not isinstance(type_, Named) or type_.module not in ("torch", "torch.storage"):
        raise ArtifactError("a block of numbers is of a type that is no torch storage")
    if not isinstance(key, str):
        raise ArtifactError("a block of numbers has a key that is no text")
    if type_.name not in STORAGES:
        widths[key] = OTHER_STORAGES.get(type_.name, 0)
        return Opaque(f"torch.{type_.name}")
    widths[key] = KINDS[STORAGES[type_.name]].size
    start = 0
    if len(reference) == 6 and reference[5] is not None:
        view = reference[5]
        if not isinstance(view, tuple) or len(view) != 3:
            raise ArtifactError("a view of a block of numbers is damaged")
        start, count = _whole(view[1]), _whole(view[2])
    return Storage(key, KINDS[STORAGES[type_.name]], _whole(count), start)
