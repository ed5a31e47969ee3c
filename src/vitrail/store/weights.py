"""Weights on disk: safetensors, with float16 and int8 storage that comes back as float32.

An int8 tensor ``name`` has a companion ``name::scale`` (float32, one value a row, shape ``(rows, 1, ...)``);
the weight is their product. A row is the first axis, so that one large output channel does not coarsen the
others. The largest error is half a step, ``max|row| / 254``.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitrail.errors import ArtifactError
from vitrail.files import atomic_write, shown

__all__ = [
    "SCALE",
    "Storage",
    "StorageType",
    "check_safetensors",
    "pack",
    "read_weights",
    "unpack",
    "write_weights",
]

StorageType = Literal["float32", "float16", "int8"]
Storage = StorageType | Callable[[str, Tensor], StorageType]

SCALE = "::scale"
"""What the name of an int8 tensor's companion ends in."""

MAX_HEADER_BYTES = 8 << 20
"""Longest safetensors header that is read: some 60,000 tensors. (The library itself allows 100 MB.)"""

_AT_ONCE = 256 << 20
"""Bytes that are read of one mapping of a file."""
_SMALL = 4096  # tensors below this many values (norms, biases) stay float16 under "int8": they are no weight


def pack(tensors: Mapping[str, Tensor], storage: Storage = "float32") -> dict[str, Tensor]:
    """Bring weights to their storage types; integer and bool tensors stay as they are.

    A value above float16's range keeps its tensor in float32. Raises :class:`ArtifactError` for NaN, infinity
    or a name that ends in :data:`SCALE`.
    """
    packed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        tensor = value.detach().to("cpu").contiguous()
        if name.endswith(SCALE):
            raise ArtifactError(
                f"a tensor cannot be called {shown(name)}; names ending in {SCALE} are the format's own"
            )
        if not tensor.is_floating_point():
            packed[name] = tensor.clone()
            continue
        tensor = tensor.float()
        if not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(f"{shown(name)} holds NaN or infinite values; such a model is not saved")
        kind = storage if isinstance(storage, str) else storage(name, tensor)
        if kind == "int8" and tensor.ndim >= 2 and tensor.numel() >= _SMALL:
            peak = tensor.flatten(1).abs().amax(1).clamp_min(1e-30)
            scale = (peak / 127.0).reshape(-1, *[1] * (tensor.ndim - 1))
            packed[name] = (tensor / scale).round().clamp(-127, 127).to(torch.int8)
            packed[name + SCALE] = scale
        elif kind in ("float16", "int8") and float(tensor.abs().max() if tensor.numel() else 0.0) < 65504.0:
            packed[name] = tensor.half()
        else:
            packed[name] = tensor.clone()
    return packed


def unpack(stored: Mapping[str, Tensor], place: str = "the weights") -> dict[str, Tensor]:
    """Undo :func:`pack`: float32 tensors, integers as they are. ``place`` is what messages call the file.

    Raises :class:`ArtifactError` for a scale without a tensor, a wrong shape, or values that are not finite.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(SCALE):
            if name.removesuffix(SCALE) not in stored:
                raise ArtifactError(
                    f"{place}: {shown(name)} has no tensor that it belongs to; the file is damaged"
                )
            continue
        scale = stored.get(name + SCALE)
        if scale is not None:
            rows = (tensor.shape[0], *[1] * (tensor.ndim - 1)) if tensor.ndim else ()
            if tensor.dtype != torch.int8 or scale.dtype != torch.float32 or tuple(scale.shape) != rows:
                raise ArtifactError(
                    f"{place}: the scale of {shown(name)} does not fit it; the file is damaged"
                )
            tensor = tensor.float() * scale
        elif tensor.is_floating_point():
            tensor = tensor.float()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(f"{place}: {shown(name)} holds NaN or infinite values; the model is unusable")
        weights[name] = tensor
    return weights


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically; equal tensors give equal bytes."""
    atomic_write(path, safetensors.torch.save(dict(tensors)))


def check_safetensors(path: Path, data: bytes | None = None) -> None:
    """Look at the first eight bytes of a safetensors file, then at its header, before any library reads it.

    Raises :class:`ArtifactError` for a header above :data:`MAX_HEADER_BYTES` or beyond the end of the file.
    """
    place = shown(path)
    if data is None:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
    else:
        size, start = len(data), data[:8]
    if len(start) < 8:
        raise ArtifactError(f"{place} is too short for a safetensors file; it is damaged: get it again")
    (length,) = struct.unpack("<Q", start)
    if length > MAX_HEADER_BYTES:
        raise ArtifactError(f"{place} claims a header of {length} bytes; allowed are {MAX_HEADER_BYTES}")
    if length + 8 > size:
        raise ArtifactError(f"{place} ends within its header; it is damaged: get it again")


def read_weights(path: Path, data: bytes | None = None) -> dict[str, Tensor]:
    """Every tensor of a safetensors file as it is stored; ``data`` if its bytes have been read already.

    Raises :class:`ArtifactError` for whatever is not a sound safetensors file.
    """
    try:
        check_safetensors(path, data)
        if data is not None:
            return dict(safetensors.torch.load(data))
        made: dict[str, Tensor] = {}
        names: list[str] | None = None
        while names is None or names:
            # opened anew for each part: what was read stays resident as long as the file is mapped
            with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
                names = list(file.keys())[::-1] if names is None else names
                room = _AT_ONCE
                while names and room > 0:
                    # clone: what is used must not hang on a file that may be cut off under it (SIGBUS)
                    name = names.pop()
                    made[name] = file.get_tensor(name).clone()
                    room -= made[name].nbytes
        return made
    except (
        SafetensorError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        json.JSONDecodeError,
    ) as error:
        reason = shown(str(error) or type(error).__name__, 100)
        raise ArtifactError(f"{shown(path)} is not a sound safetensors file: {reason}") from error
