"""Where the parts of a torch file lie, found without reading more than its directory.

Two formats. Since torch 1.6 a file is a zip archive of *stored* members: ``NAME/data.pkl``,
``NAME/data/KEY`` for each block of numbers, ``NAME/byteorder``. Before, it was a stream: three small
pickles, the pickle of the object, the pickle of a list of keys, then each block after its length.

The archive is read here and not by a zip library: nothing in it is ever unpacked, so there is nothing to
bomb. A member must be stored (a compressed one is refused by its directory entry), lie within the file, and
share no byte with another; names are labels and never paths, and one that would lead outside a folder is
refused all the same. Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Literal

from vitrail.backends.inert import read_inert
from vitrail.backends.inert_values import Storage
from vitrail.errors import ArtifactError
from vitrail.files import shown

__all__ = ["Block", "Parts", "check_container", "container_of", "read_parts"]

MAX_PICKLE = 64 << 20
"""Longest pickle that is read: the numbers lie outside of it, so a model's is rarely above 2 MB."""

MAX_MEMBERS = 100_000
_MAX_DIRECTORY = 16 << 20
_END = 22
_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")  # LONG1, ten bytes: torch's magic number

Container = Literal["zip", "stream", "safetensors"]


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes ``start`` to ``start + size`` of the file, and their CRC-32 where the format has one."""

    start: int
    size: int
    crc: int | None = None


@dataclass(frozen=True)
class Parts:
    """The object that the file's pickle describes, and where each block of numbers lies."""

    root: object
    blocks: Mapping[str, Block]
    foreign: frozenset[str]

    def block(self, storage: Storage) -> Block:
        """Where the numbers of ``storage`` lie; :class:`ArtifactError` unless all of them are there."""
        block = self.blocks.get(storage.key)
        if block is None:
            raise ArtifactError(
                f"it lacks the block of numbers {shown(storage.key, 40)}; the file is damaged"
            )
        first = storage.start * storage.kind.size
        if first + storage.count * storage.kind.size > block.size:
            raise ArtifactError(
                f"its block {shown(storage.key, 40)} has {block.size} bytes instead of "
                f"{storage.count * storage.kind.size}; the file is damaged"
            )
        return Block(block.start + first, storage.count * storage.kind.size, block.crc if not first else None)


def container_of(file: BinaryIO) -> Container:
    """Tell by the first bytes what ``file`` is. Raises :class:`ArtifactError` for anything else."""
    size = os.fstat(file.fileno()).st_size
    head = os.pread(file.fileno(), 512, 0)
    if head[:4] == b"PK\x03\x04":
        return "zip"
    if head[:1] == b"\x80" and _MAGIC in head[:32]:
        return "stream"
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= size - 8:
        return "safetensors"
    if not size:
        raise ArtifactError("is empty")
    if head[257:262] == b"ustar" or (head[:4] == b"sys_" or head[:7] == b"pickle\0"):
        raise ArtifactError(
            "is of torch's oldest format (tar, before 0.2); open it with torch and save it again"
        )
    if head[:2] == b"PK":
        raise ArtifactError("is an empty or damaged zip archive, not a checkpoint")
    if head[:1] == b"\x80":
        raise ArtifactError(
            "is a pickle that torch.save did not write; vitrail reads torch and safetensors files"
        )
    raise ArtifactError("is not a checkpoint; vitrail reads files that torch.save wrote, and safetensors")


def check_container(file: BinaryIO) -> Container:
    """Check the directory of ``file`` (milliseconds, no pickle is read). Raises :class:`ArtifactError`."""
    container = container_of(file)
    if container == "zip":
        _members(file)
    return container


def read_parts(file: BinaryIO, whole: bytes | memoryview) -> Parts:
    """Read a torch file's pickle, inertly, and find its blocks. ``whole``: the file's bytes, mapped.

    Raises :class:`ArtifactError`.
    """
    return _read_zip(file) if container_of(file) == "zip" else _read_stream(memoryview(whole))


# -- zip -----------------------------------------------------------------------------------------------------


def _read_zip(file: BinaryIO) -> Parts:
    members = _members(file)
    pickles = [name for name in members if name.endswith("/data.pkl") or name == "data.pkl"]
    root = pickles[0].removesuffix("data.pkl")
    order = members.get(f"{root}byteorder")
    if order is not None and os.pread(file.fileno(), 16, order.start)[: order.size] != b"little":
        raise ArtifactError("was written by a machine of another byte order; save it again on this one")
    pickle = members[pickles[0]]
    if pickle.size > MAX_PICKLE:
        raise ArtifactError(f"its pickle has {pickle.size} bytes; allowed are {MAX_PICKLE}")
    program = os.pread(file.fileno(), pickle.size, pickle.start)
    if zlib.crc32(program) != pickle.crc:
        raise ArtifactError("is damaged: its pickle differs from its checksum; get the file again")
    reading = read_inert(program)
    start = f"{root}data/"
    blocks = {name.removeprefix(start): block for name, block in members.items() if name.startswith(start)}
    return Parts(reading.value, blocks, frozenset(reading.foreign))


def _members(file: BinaryIO) -> dict[str, Block]:
    """Every member of the archive by name, checked."""
    descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
    count, directory_size, directory = _end(descriptor, size)
    if count > MAX_MEMBERS or directory_size > _MAX_DIRECTORY:
        raise ArtifactError(f"claims {count} members; allowed are {MAX_MEMBERS}")
    data = os.pread(descriptor, directory_size, directory)
    found: dict[str, Block] = {}
    place = 0
    for _ in range(count):
        name, block, place = _entry(data, place, descriptor, directory)
        if name in found:
            raise ArtifactError(f"has two members called {shown(name, 60)}")
        found[name] = block
    _check_apart(found)
    _check_torch(found)
    return found


def _end(descriptor: int, size: int) -> tuple[int, int, int]:
    """Number of members, size and place of the directory, from the records at the end of the file."""
    tail_size = min(size, 0xFFFF + _END + 20)
    tail = os.pread(descriptor, tail_size, size - tail_size)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END > len(tail):
        raise ArtifactError("is a zip archive without its end; the file is cut off: get it again")
    _, disk, start_disk, here, count, length, start, comment = struct.unpack_from("<4s4H2IH", tail, at)
    limit = size - tail_size + at
    if limit + _END + comment != size or disk or start_disk or here != count:
        raise ArtifactError("is a damaged zip archive: its end does not agree with its size")
    if at >= 20 and tail[at - 20 : at - 16] == b"PK\x06\x07":
        (record,) = struct.unpack_from("<Q", tail, at - 12)
        raw = os.pread(descriptor, 56, record) if record < size else b""
        if len(raw) < 56 or raw[:4] != b"PK\x06\x06":
            raise ArtifactError("is a damaged zip archive: its 64-bit end is not where it should be")
        count, length, start = struct.unpack_from("<3Q", raw, 32)
        limit = record
    if start + length != limit:
        raise ArtifactError("is a damaged zip archive: its directory is not where it should be")
    return count, length, start


def _entry(data: bytes, place: int, descriptor: int, directory: int) -> tuple[str, Block, int]:
    """One record of the directory: name, block, place of the next record."""
    if place + 46 > len(data) or data[place : place + 4] != b"PK\x01\x02":
        raise ArtifactError("is a damaged zip archive: its directory breaks off")
    flags, method = struct.unpack_from("<2H", data, place + 8)
    crc, packed, size, name_size, extra_size, comment_size = struct.unpack_from("<3I3H", data, place + 16)
    (at,) = struct.unpack_from("<I", data, place + 42)
    after = place + 46 + name_size + extra_size + comment_size
    if after > len(data):
        raise ArtifactError("is a damaged zip archive: its directory breaks off")
    raw = data[place + 46 : place + 46 + name_size]
    name = _safe_name(raw)
    extra = data[place + 46 + name_size : place + 46 + name_size + extra_size]
    size, packed, at = _wide(extra, size, packed, at)
    if flags & 0x2041:
        raise ArtifactError(f"is encrypted ({shown(name, 60)})")
    if method or packed != size:
        raise ArtifactError(
            f"has a compressed member ({shown(name, 60)}, {packed} bytes for {size}); torch stores them "
            f"as they are: save the file again with torch.save"
        )
    local = os.pread(descriptor, 30 + name_size, at) if at < directory else b""
    if len(local) < 30 + name_size or local[:4] != b"PK\x03\x04" or local[30:] != raw:
        raise ArtifactError(f"is a damaged zip archive: {shown(name, 60)} is not where its directory says")
    local_name, local_extra = struct.unpack_from("<2H", local, 26)
    start = at + 30 + local_name + local_extra
    if local_name != name_size or start + size > directory:
        raise ArtifactError(f"is a damaged zip archive: {shown(name, 60)} reaches beyond its end")
    return name, Block(start, size, crc), after


def _wide(extra: bytes, size: int, packed: int, at: int) -> tuple[int, int, int]:
    """The three numbers of an entry, from its zip64 field where they do not fit 32 bits."""
    place = 0
    while place + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, place)
        if tag == 1:
            field = extra[place + 4 : place + 4 + length]
            values = [value for (value,) in struct.iter_unpack("<Q", field[: len(field) // 8 * 8])]
            wide = []
            for value in (size, packed, at):
                wide.append(values.pop(0) if value == 0xFFFFFFFF and values else value)
            return wide[0], wide[1], wide[2]
        place += 4 + length
    return size, packed, at


def _safe_name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ArtifactError("has a member whose name is no text") from None
    parts = PurePosixPath(name).parts
    bad = not name or len(name) > 1000 or not name.isprintable() or "\\" in name
    if bad or name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name):
        raise ArtifactError(f"has a member called {shown(name, 60)}, which leads outside of a folder")
    return name


def _check_apart(found: Mapping[str, Block]) -> None:
    end = 0
    for name, block in sorted(found.items(), key=lambda item: item[1].start):
        if block.start < end:
            raise ArtifactError(f"has members that share bytes ({shown(name, 60)})")
        end = block.start + block.size


def _check_torch(found: Mapping[str, Block]) -> None:
    pickles = [name for name in found if name.count("/") <= 1 and name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise ArtifactError(f"is a zip archive with {len(pickles)} torch pickles; a checkpoint has one")
    root = pickles[0].removesuffix("data.pkl")
    if any(name.startswith(f"{root}code/") or name == f"{root}constants.pkl" for name in found):
        raise ArtifactError("is a TorchScript program; vitrail reads weights: ask for the state_dict of it")


# -- stream --------------------------------------------------------------------------------------------------


def _read_stream(whole: memoryview) -> Parts:
    pickles = whole[:MAX_PICKLE]
    magic = read_inert(pickles)  # compared already
    version = read_inert(pickles, magic.end)
    system = read_inert(pickles, version.end)
    if version.value != 1001 or not isinstance(system.value, dict):
        raise ArtifactError("is of a version of torch's old format that is not known")
    if system.value.get("little_endian") is not True:
        raise ArtifactError("was written by a machine of another byte order; save it again on this one")
    root = read_inert(pickles, system.end)
    listed = read_inert(pickles, root.end)
    keys, place = listed.value, listed.end
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(keys) > MAX_MEMBERS:
        raise ArtifactError("has a damaged list of its blocks of numbers")
    blocks: dict[str, Block] = {}
    for key in keys:
        if place + 8 > len(whole):
            raise ArtifactError("is cut off: its blocks of numbers are not all there")
        (count,) = struct.unpack_from("<q", whole, place)
        # The stream counts numbers, not bytes; how wide they are only the references to the block say.
        if not root.widths.get(key):
            raise ArtifactError(f"has a block of numbers {shown(key, 40)} of unknown type")
        size = count * root.widths[key]
        if count < 0 or place + 8 + size > len(whole):
            raise ArtifactError("is cut off: its blocks of numbers are not all there")
        blocks[key] = Block(place + 8, size)
        place += 8 + size
    return Parts(root.value, blocks, frozenset(root.foreign))
