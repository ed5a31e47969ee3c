"""WebDataset tars: an index of the samples in a ``.tar``, read in place and never unpacked to disk.

A sample is the members that share everything before the first dot of their base name: ``0001.jpg``,
``0001.txt``, ``0001.json`` (https://github.com/webdataset/webdataset, "The WebDataset Format"). Only the
512-byte headers and the small text members are read here; pictures are read later, by offset. Names are used
as labels only, but a name that would lead outside a folder is refused all the same, as are links, devices,
sparse members and members that are larger than the archive.
"""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vitrail.data.folder_captions import Entry, clean, decode_text, entry_of, parse_object
from vitrail.data.folder_files import (
    FOREIGN_SUFFIXES,
    MAX_FILE_BYTES,
    PICTURE_SUFFIXES,
    Cancelled,
    Place,
    Problem,
    printable,
    raise_if_short,
    reason_of,
    stop_if,
)
from vitrail.errors import DataError

__all__ = ["TarSample", "read_tar"]

_MAX_TEXT_BYTES = 64 << 10
_MAX_HEADER_READ = 1 << 20  # a PAX or long-name header beyond this is an attack on our memory


@dataclass
class TarSample:
    """One picture of a tar: its id (``tar/member``), where its bytes lie, and what is written about it."""

    id: str
    place: Place
    entry: Entry = field(default_factory=Entry)
    captioned: bool = False


class _Bounded(io.FileIO):
    """A file whose single reads are bounded: ``tarfile`` reads extension headers of whatever size they
    claim."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0 or size > _MAX_HEADER_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size) or b""


def read_tar(
    path: Path, tar_id: str, *, cancelled: Cancelled | None = None
) -> tuple[list[TarSample], list[Problem], int]:
    """Samples of one tar in the order of their ids, what could not be used, and how many members were passed
    over.

    A damaged archive gives the samples before the damage and a problem that says where it lies.
    """
    samples: dict[str, TarSample] = {}
    texts: dict[str, Entry] = {}
    problems: list[Problem] = []
    ignored = 0
    try:
        size = path.stat().st_size
        with _Bounded(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            kept: Any = tar
            last = -1
            while (member := _next(tar)) is not None:
                stop_if(cancelled)
                if member.offset <= last:  # a negative size would walk back for ever (CVE-2025-8194)
                    raise tarfile.ReadError(f"a member at byte {member.offset} points back")
                last = member.offset
                kept.members = []  # tarfile would keep them all, and a tar holds millions
                name = f"{tar_id}/{printable(member.name)}"
                refusal = _refusal(member, size)
                if refusal is not None:
                    problems.append(Problem(name, "archive", refusal))
                elif member.isfile() and not PurePosixPath(member.name).name.startswith("."):
                    ignored += _take(path, member, name, samples, texts, problems)
    except (OSError, tarfile.TarError, ValueError, RecursionError, EOFError) as error:
        raise_if_short(error)
        problems.append(
            Problem(tar_id, "archive", f"is damaged after {len(samples)} pictures: {reason_of(error)}")
        )
    for key, sample in samples.items():
        if key in texts:
            sample.entry, sample.captioned = texts[key], True
    return sorted(samples.values(), key=lambda sample: sample.id), problems, ignored


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member. ``tarfile`` takes a bad header after the first member for the end: that is not silent
    here."""
    member = tar.next()
    if member is None:
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        block = tar.fileobj.read(tarfile.BLOCKSIZE)
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"no header at byte {tar.offset}")
    return member


def _refusal(member: tarfile.TarInfo, archive_bytes: int) -> str | None:
    parts = PurePosixPath(member.name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or "\0" in member.name or member.name[1:2] == ":":
        return "its name leads outside the archive; it was not read"
    if member.issym() or member.islnk():
        return "a link is not followed"
    if not (member.isfile() or member.isdir()):
        return "is a pipe, device or unknown kind of member"
    if member.issparse():
        return "a sparse member is not read"
    if member.size < 0 or member.offset_data + member.size > archive_bytes:
        return f"claims {member.size} bytes, more than the archive holds"
    if member.size > MAX_FILE_BYTES:
        return f"has {member.size} bytes; allowed are {MAX_FILE_BYTES}"
    return None


def _take(
    path: Path,
    member: tarfile.TarInfo,
    name: str,
    samples: dict[str, TarSample],
    texts: dict[str, Entry],
    problems: list[Problem],
) -> int:
    """Put one regular member where it belongs; returns 1 if there is no use for it."""
    folder, base = os.path.split(member.name)
    stem, _, extension = base.partition(".")
    key, suffix = f"{folder}/{stem}", "." + extension.rpartition(".")[2].lower()
    place = Place(path, member.offset_data, member.size, follow_links=True)
    if suffix in PICTURE_SUFFIXES:
        if key in samples:
            problems.append(
                Problem(name, "archive", f"a second picture of sample {printable(key.strip('/'))!r}")
            )
        else:
            samples[key] = TarSample(name, place)
    elif suffix in (".txt", ".caption", ".json"):
        try:
            text = decode_text(place.read(_MAX_TEXT_BYTES))
            entry = entry_of(parse_object(text)) if suffix == ".json" else Entry([clean(text)])
        except DataError as error:
            problems.append(Problem(name, "caption", str(error)))
            return 0
        known = texts.setdefault(key, Entry())
        known.captions += [c for c in entry.captions if c and c not in known.captions]
        known.style = known.style or entry.style
    elif suffix in FOREIGN_SUFFIXES:
        problems.append(
            Problem(name, "unsupported", f"{suffix[1:].upper()} is not opened; convert it to PNG or JPEG")
        )
    else:
        return 1
    return 0
