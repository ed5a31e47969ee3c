"""Writes safetensors files piece by piece, hashing on the way and flushing to the disk.

Written here and not by the safetensors library because a checkpoint is hashed, and may fail, while it is
written, and must not need a second copy of the model in memory. The format is small: 8 bytes of header
length, a JSON header padded to 8 bytes, then the tensors' bytes in order. The library reads the files back.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Part", "tensor_part", "write_part"]

#: Small tensors are gathered into writes of up to this many bytes.
GATHER = 1 << 20

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Part:
    """A file before it is written: its name, its first bytes, and the tensors that follow them."""

    name: str
    head: bytes
    tensors: tuple[Tensor, ...] = ()

    @property
    def size(self) -> int:
        """Bytes that the file will have."""
        return len(self.head) + sum(t.numel() * t.element_size() for t in self.tensors)


def tensor_part(name: str, tensors: Mapping[str, Tensor]) -> Part:
    """Lay out ``name``.safetensors; the tensors are not copied until they are written."""
    header: dict[str, Any] = {}
    position = 0
    for key in sorted(tensors):
        end = position + tensors[key].numel() * tensors[key].element_size()
        kind = DTYPES[tensors[key].dtype]
        header[key] = {"dtype": kind, "shape": list(tensors[key].shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return Part(f"{name}.safetensors", head, tuple(tensors[key] for key in sorted(tensors)))


def write_part(path: Path, part: Part) -> str:
    """Write a new file and flush it to the disk; returns its SHA-256. Raises ``OSError``."""
    digest = hashlib.sha256()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    gathered = bytearray(part.head)

    def out(data: memoryview | bytearray) -> None:
        view = memoryview(data)
        digest.update(view)
        while view:
            view = view[os.write(handle, view) :]

    try:
        for tensor in part.tensors:
            data = _bytes(tensor)
            if len(gathered) + len(data) <= GATHER:
                gathered += data
                continue
            out(gathered)
            gathered = bytearray()
            out(data)
        out(gathered)
        os.fsync(handle)
    finally:
        os.close(handle)
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data)
