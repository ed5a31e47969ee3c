"""Files of codes: ``.vtl``, entropy coded and small, and ``.npz``, plain and open to everybody's NumPy.

A ``.vtl`` file, format 1; numbers are unsigned LEB128 where nothing else is said::

    VTL 0x01           magic and format
    1 byte             method: 1 static, 2 context, 3 prior   (:mod:`vitrail.store.code_models`)
    number, number     width and height of the picture in pixels
    8 bytes            first bytes of the SHA-256 of the tokenizer's weights
    8 bytes            those of the prior's weights, for method 3
    2 bytes            low half of the CRC-32 of all of the above and of the codes as int32, little-endian
    the rest           the codes, :mod:`vitrail.store.entropy`

How many codes there are follows from the picture's size and the tokenizer. An ``.npz`` file holds ``codes``
(h, w) or (h, w, q), ``size`` (width, height) and ``tokenizer_sha256`` (32 bytes).

Both come from strangers: sizes are checked before anything is allocated, and whatever is wrong is one
:class:`~vitrail.errors.DataError` line.
"""

from __future__ import annotations

import ast
import io
import os
import re
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError, InputError
from vitrail.files import shown

__all__ = [
    "MAGIC",
    "MAX_CODES",
    "MAX_PIXELS",
    "CodesFile",
    "CodingMethod",
    "Container",
    "check_codes",
    "check_size",
    "pack",
    "pack_npz",
    "read_file",
    "unpack",
    "unpack_npz",
]

MAGIC = b"VTL\x01"
MAX_PIXELS = 40_000_000
"""Largest width * height, as for pictures."""

MAX_CODES = 1 << 24
"""Most codes in a file: a picture of MAX_PIXELS in patches of 2 x 2."""

MAX_FILE_BYTES = 256 << 20
_MAX_SIDE = 1 << 20
_ZIP = b"PK\x03\x04"
_INTEGER = re.compile(r"[<>|]?[iu][1248]")

CodingMethod = Literal["static", "context", "prior"]
_METHODS: tuple[CodingMethod, ...] = get_args(CodingMethod)


@dataclass(frozen=True)
class Container:
    """What a ``.vtl`` file says: size in pixels, the models it needs, and the coded codes."""

    method: CodingMethod
    width: int
    height: int
    tokenizer: bytes
    prior: bytes | None
    check: int
    payload: bytes


@dataclass(frozen=True)
class CodesFile:
    """What an ``.npz`` file of codes holds: codes (h, w) or (h, w, q) int64, size, tokenizer's SHA-256."""

    codes: NDArray[np.int64]
    width: int
    height: int
    tokenizer_sha256: str


def read_file(path: Path | str, what: str = "file of codes") -> bytes:
    """Read a file that a request works on; ``what`` it is goes into messages.

    Raises :class:`InputError` where there is none and :class:`DataError` for one above 256 MB.
    """
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a file name"
        raise InputError(f"cannot open {shown(path)}: {reason}; give the path of a {what}") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise InputError(f"{shown(path)} is not a file; give the path of a {what}")
    with os.fdopen(handle, "rb") as file:
        if status.st_size > MAX_FILE_BYTES:
            raise DataError(f"{shown(path)} has {status.st_size} bytes; allowed are {MAX_FILE_BYTES}")
        return file.read()


def _check_of(head: bytes, codes: NDArray[np.int64]) -> int:
    """The 16-bit check of a header (without its check) and of codes of any shape."""
    return zlib.crc32(np.ascontiguousarray(codes, dtype="<i4").tobytes(), zlib.crc32(head)) & 0xFFFF


def _head_of(
    method: CodingMethod, width: int, height: int, tokenizer_sha256: str, prior_sha256: str | None
) -> bytes:
    """The first part of a ``.vtl`` file, up to its check."""
    head = MAGIC + bytes([1 + _METHODS.index(method)]) + _number(width) + _number(height)
    head += bytes.fromhex(tokenizer_sha256)[:8]
    return head + (bytes.fromhex(prior_sha256)[:8] if prior_sha256 is not None else b"")


def pack(
    method: CodingMethod,
    width: int,
    height: int,
    codes: NDArray[np.int64],
    payload: bytes,
    *,
    tokenizer_sha256: str,
    prior_sha256: str | None = None,
) -> bytes:
    """The bytes of a ``.vtl`` file: ``payload`` is what ``method`` made of ``codes``."""
    if (method == "prior") != (prior_sha256 is not None):
        raise ValueError("the prior's SHA-256 belongs to the method prior, and only to it")
    head = _head_of(method, width, height, tokenizer_sha256, prior_sha256)
    return head + struct.pack("<H", _check_of(head, codes)) + payload


def unpack(data: bytes, name: str = "the file") -> Container:
    """Read a ``.vtl`` file's header; ``name`` is what messages call it. Raises :class:`DataError`."""
    name = shown(name)
    if data[:3] != MAGIC[:3]:
        raise DataError(f"{name} is not a .vtl file; give one that vitrail compress wrote")
    if data[3:4] != MAGIC[3:]:
        raise DataError(f"{name} is of another .vtl format than 1; use a newer vitrail")
    if len(data) < 5 or not 1 <= data[4] <= len(_METHODS):
        raise DataError(f"{name} is damaged: its coding method is unknown; get it again")
    method = _METHODS[data[4] - 1]
    width, at = _read_number(data, 5, name)
    height, at = _read_number(data, at, name)
    check_size(width, height, name)
    end = at + 8 + (8 if method == "prior" else 0)
    if len(data) < end + 2:
        raise DataError(f"{name} is cut off in its header; get it again")
    return Container(
        method=method,
        width=width,
        height=height,
        tokenizer=data[at : at + 8],
        prior=data[at + 8 : end] if method == "prior" else None,
        check=int.from_bytes(data[end : end + 2], "little"),
        payload=data[end + 2 :],
    )


def check_codes(container: Container, codes: NDArray[np.int64], name: str = "the file") -> None:
    """Raise :class:`DataError` unless ``codes`` are those that ``container`` was made of."""
    head = MAGIC + bytes([1 + _METHODS.index(container.method)])
    head += _number(container.width) + _number(container.height) + container.tokenizer
    if _check_of(head + (container.prior or b""), codes) != container.check:
        raise DataError(f"{shown(name)} is damaged: its codes differ from their check; get it again")


def check_size(width: int, height: int, name: str) -> None:
    """Raise :class:`DataError` for a size that no picture of ours has."""
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE and width * height <= MAX_PIXELS):
        size = f"{width}x{height}" if max(width, height) < 10**12 else "far too many"
        raise DataError(f"{name} claims {size} pixels; allowed are {MAX_PIXELS} in all")


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _read_number(data: bytes, at: int, name: str) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[at : at + 4]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, at + index + 1
    raise DataError(f"{name} is damaged: its size cannot be read; get it again")


# -- npz -----------------------------------------------------------------------------------------------------


def pack_npz(file: CodesFile) -> bytes:
    """The bytes of an ``.npz`` file; codes in the smallest type that holds them."""
    target = io.BytesIO()
    small = np.uint16 if file.codes.max(initial=0) < 1 << 16 else np.uint32
    np.savez_compressed(
        target,
        codes=file.codes.astype(small),
        size=np.array([file.width, file.height], dtype=np.int32),
        tokenizer_sha256=np.frombuffer(bytes.fromhex(file.tokenizer_sha256), dtype=np.uint8),
    )
    return target.getvalue()


def unpack_npz(data: bytes, name: str = "the file") -> CodesFile:
    """Read an ``.npz`` file of codes; nothing in it is ever run. Raises :class:`DataError`."""
    name = shown(name)
    if data[:4] != _ZIP:
        raise DataError(f"{name} is not an .npz file of codes; give one that vitrail encode wrote")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: info for info in archive.infolist()[:8]}
            arrays = {
                key: _member(archive, members[f"{key}.npy"], limit)
                for key, limit in (("codes", MAX_CODES), ("size", 2), ("tokenizer_sha256", 32))
            }
    except KeyError as error:
        raise DataError(f"{name} holds no {error.args[0]}; give a file that vitrail encode wrote") from error
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, NotImplementedError) as error:
        reason = shown(str(error) or type(error).__name__, 80)
        raise DataError(f"{name} cannot be read as codes: {reason}; the file is damaged") from error
    except (RuntimeError, OverflowError, struct.error) as error:  # an encrypted or malformed member
        raise DataError(f"{name} cannot be read as codes; the file is damaged") from error
    codes, size, sha256 = arrays["codes"], arrays["size"], arrays["tokenizer_sha256"]
    if codes.ndim not in (2, 3) or codes.size == 0 or size.shape != (2,) or sha256.shape != (32,):
        raise DataError(f"{name} holds arrays of other shapes than a file of codes; the file is damaged")
    if codes.min() < 0 or codes.max() >= 1 << 31 or sha256.min() < 0 or sha256.max() > 255:
        raise DataError(f"{name} holds codes that are out of range; the file is damaged")
    width, height = (int(side) for side in size)
    check_size(width, height, name)
    return CodesFile(codes, width, height, bytes(sha256.astype(np.uint8)).hex())


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> NDArray[np.int64]:
    """Read one array of at most ``limit`` whole numbers, its claims checked against its size."""
    if info.file_size > limit * 8 + 4096 or info.compress_type not in (
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
    ):
        raise ValueError(f"{info.filename} is too large or packed in an unknown way")
    with archive.open(info) as stream:
        content = stream.read(limit * 8 + 4097)
    if content[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError(f"{info.filename} is not an array")
    length = int.from_bytes(content[8:10], "little")
    try:
        head = ast.literal_eval(content[10 : 10 + length].decode("latin-1").strip())
        descr, shape, fortran = head["descr"], tuple(head["shape"]), head["fortran_order"]
    except (SyntaxError, ValueError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise ValueError(f"{info.filename} has a damaged header") from error
    if not isinstance(descr, str) or not _INTEGER.fullmatch(descr) or fortran is not False or len(shape) > 3:
        raise ValueError(f"{info.filename} does not hold whole numbers")
    kind = np.dtype(descr)
    count = 1
    for side in shape:
        if not isinstance(side, int) or not 0 <= side <= MAX_CODES:
            raise ValueError(f"{info.filename} claims an impossible shape")
        count *= side
    if count > limit or count * kind.itemsize != len(content) - 10 - length:
        raise ValueError(f"{info.filename} does not hold as many numbers as it claims")
    array = np.frombuffer(content, kind, count, 10 + length).reshape(shape)
    if kind.kind == "u" and kind.itemsize == 8 and array.size and int(array.max()) > 1 << 62:
        raise ValueError(f"{info.filename} holds numbers that are too large")
    return array.astype(np.int64)
