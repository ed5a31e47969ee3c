"""Hashes by which other programs know a model file, remembered so that gigabytes are read once.

A1111 calls the first ten digits of a file's SHA-256 the model hash. A LoRA is known by the first twelve
digits of the SHA-256 of what follows the header in a safetensors file: its metadata may change, and it is
the same LoRA.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

from vitrail.errors import ArtifactError, StorageError
from vitrail.files import atomic_write, cache_folder, sha256_of, shown

__all__ = ["file_sha256", "lora_hash", "model_hash"]

_MOST = 10_000  # files that are remembered
_MAX_BYTES = 8 << 20


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file in hexadecimal; the one of last time where size and time of change are the same.

    Raises :class:`~vitrail.errors.ArtifactError` for a file that cannot be read.
    """
    return _remembered(Path(path), "file", sha256_of)


def model_hash(path: Path | str) -> str:
    """Return A1111's hash of a checkpoint: ten digits."""
    return file_sha256(path)[:10]


def lora_hash(path: Path | str) -> str:
    """Return A1111's hash of a LoRA: twelve digits, of a safetensors file without its header.

    Raises :class:`~vitrail.errors.ArtifactError` for a file that cannot be read or ends within its header.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        return file_sha256(path)[:12]
    return _remembered(path, "body", _body_sha256)[:12]


def _body_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(8)
        size = os.fstat(file.fileno()).st_size
        if len(start) < 8 or (body := 8 + struct.unpack("<Q", start)[0]) > size:
            raise ArtifactError(f"{shown(path)} ends within its header; it is damaged: get it again")
        file.seek(body)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remembered(path: Path, what: str, compute: Callable[[Path], str]) -> str:
    try:
        real = path.resolve()
        status = real.stat()
        key, state = f"{what}:{real}", [status.st_size, status.st_mtime_ns]
        known = _read()
        entry = known.get(key)
        if entry is not None and entry[:2] == state:
            return str(entry[2])
        value = compute(real)
    except OSError as error:
        raise ArtifactError(f"cannot read {shown(path)}: {error.strerror or error}") from error
    known = {**_read(), key: [*state, value]}
    while len(known) > _MOST:
        del known[next(iter(known))]
    with contextlib.suppress(StorageError):  # without a place to write to, it is computed again next time
        atomic_write(_place(), json.dumps(known, indent=0))
    return value


def _place() -> Path:
    return cache_folder() / "hashes.json"


def _read() -> dict[str, list[int | str]]:
    """What is remembered; nothing where that is damaged, for it can be computed again."""
    try:
        with open(_place(), "rb") as file:
            value = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {
        key: entry
        for key, entry in value.items()
        if isinstance(entry, list) and len(entry) == 3 and isinstance(entry[2], str) and len(entry[2]) == 64
    }
