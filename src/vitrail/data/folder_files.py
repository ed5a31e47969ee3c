"""What lies in a stranger's folder: pictures, caption files, metadata and tars, found without trusting a
name.

The walk follows no symbolic link, opens nothing that is not a regular file (a named pipe would block for
ever), needs no recursion (folders nest deeper than Python does) and lists what it cannot use, with the
reason.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vitrail.errors import CancelledError, DataError, InputError, StorageError

__all__ = [
    "CAPTION_SUFFIXES",
    "FOREIGN_SUFFIXES",
    "MAX_FILE_BYTES",
    "PICTURE_SUFFIXES",
    "Cancelled",
    "Found",
    "Place",
    "Problem",
    "ProblemKind",
    "Progress",
    "printable",
    "raise_if_short",
    "stop_if",
    "walk",
]

MAX_FILE_BYTES = 256 << 20
"""Largest picture file, or picture in a tar, that is read."""

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".apng"})
CAPTION_SUFFIXES = (".txt", ".caption")
FOREIGN_SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".cr2",
        ".cr3",
        ".dng",
        ".exr",
        ".heic",
        ".heif",
        ".ico",
        ".j2k",
        ".jp2",
        ".jxl",
        ".nef",
    }
    | {".arw", ".pbm", ".pcx", ".pgm", ".ppm", ".psd", ".raw", ".svg", ".tga", ".tif", ".tiff", ".xcf"}
)
"""Pictures of formats that vitrail does not open; they are listed so that the person can convert them."""

_IGNORED_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx", "$recycle.bin"})

_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What says of the machine, not of the file, that too much is open."""

ProblemKind = Literal["picture", "unsupported", "caption", "metadata", "archive", "link", "folder"]
Progress = Callable[[int, int, str], None]
"""``progress(done, total, what)``; called from the thread that asked for the work."""
Cancelled = Callable[[], bool]


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that could not be used: ``path`` as :func:`printable` text, what it was, and why."""

    path: str
    kind: ProblemKind
    reason: str


@dataclass(frozen=True)
class Place:
    """Where the bytes of one picture lie: a whole file, or ``length`` bytes at ``offset`` of a tar."""

    path: Path
    offset: int = 0
    length: int | None = None
    follow_links: bool = False

    def read(self, limit: int = MAX_FILE_BYTES) -> bytes:
        """The bytes.

        Raises :class:`DataError` if it is no regular file, larger than ``limit``, or unreadable, and
        :class:`StorageError` where that is no fault of the file's, which may be well a moment later.
        """
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        if not self.follow_links:
            flags |= getattr(os, "O_NOFOLLOW", 0)
        try:
            handle = os.open(self.path, flags)
        except (OSError, ValueError) as error:
            raise_if_short(error)
            raise DataError(f"cannot be opened: {reason_of(error)}") from error
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise DataError("is not a regular file")
            length = status.st_size - self.offset if self.length is None else self.length
            if length > limit:
                raise DataError(f"has {length} bytes; allowed are {limit}")
            try:
                file.seek(self.offset)
                data = file.read(length)
            except OSError as error:
                raise DataError(f"cannot be read: {reason_of(error)}") from error
        if len(data) != length:
            raise DataError(f"is cut off: {len(data)} of {length} bytes are there")
        return data


@dataclass
class Found:
    """What :func:`walk` met: ``pictures`` and ``tars`` as (id, path), sorted by id; ``captions`` by stem."""

    root: Path
    pictures: list[tuple[str, Path]] = field(default_factory=list)
    tars: list[tuple[str, Path]] = field(default_factory=list)
    metadata: list[Path] = field(default_factory=list)
    captions: dict[Path, Path] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    files: int = 0
    ignored: int = 0


def printable(name: str) -> str:
    """A file name as text that can be printed, written as UTF-8 and shown in a page.

    Control characters, line breaks, bidirectional overrides and undecodable bytes become ``\\xNN``-like
    escapes and a backslash is doubled, so that two different names never become the same text.
    """
    if name.isprintable() and "\\" not in name:
        return name
    return "".join("\\\\" if c == "\\" else c if c.isprintable() else ascii(c)[1:-1] for c in name)


def reason_of(error: Exception) -> str:
    """An exception as one short printable clause."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(text or type(error).__name__)[:200]


def raise_if_short(error: BaseException) -> None:
    """Raise :class:`StorageError` where ``error`` says that too much is open, which is no file's fault."""
    if isinstance(error, OSError) and error.errno in _SHORT:
        raise StorageError(
            f"no file can be opened now: {reason_of(error)}; close other programs or raise the limit"
        ) from error


def stop_if(cancelled: Cancelled | None) -> None:
    """Raise :class:`CancelledError` if the caller wants the work to stop."""
    if cancelled is not None and cancelled():
        raise CancelledError("stopped on request")


def walk(folder: Path | str, *, follow_links: bool = False, cancelled: Cancelled | None = None) -> Found:
    """Find everything usable under ``folder`` (or in the one ``.tar`` that it names), hidden files left out.

    With ``follow_links`` symbolic links to *files* are followed (a farm of links is a common way to make a
    data set); links to folders never are, since they can form loops. Raises :class:`InputError` if there is
    no such folder, :class:`DataError` if it cannot be listed and :class:`StorageError` if too much is open.
    """
    root = Path(folder)
    found = Found(root)
    if root.is_file() and root.suffix.lower() == ".tar":
        found.tars.append((printable(root.name), root))
        found.files = 1
        return found
    if not root.is_dir():
        what = (
            "is a file; give a folder or a .tar"
            if root.exists()
            else "does not exist; give a folder of pictures"
        )
        raise InputError(f"{printable(str(root))} {what}")
    waiting = [(root, "")]
    while waiting:
        stop_if(cancelled)
        directory, prefix = waiting.pop()
        try:
            with os.scandir(directory) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise_if_short(error)
            if directory == root:
                raise DataError(f"{printable(str(root))} cannot be listed: {reason_of(error)}") from error
            found.problems.append(Problem(prefix, "folder", f"cannot be listed: {reason_of(error)}"))
            continue
        for entry in listed:
            _sort_in(found, waiting, entry, prefix, follow_links)
    found.pictures.sort()
    found.tars.sort()
    found.metadata.sort()
    return found


def _sort_in(
    found: Found, waiting: list[tuple[Path, str]], entry: os.DirEntry[str], prefix: str, follow_links: bool
) -> None:
    name, shown = entry.name, prefix + printable(entry.name)
    path, suffix = Path(entry.path), os.path.splitext(entry.name)[1].lower()
    if name.startswith(".") or name.lower() in _IGNORED_NAMES:
        found.ignored += 1
        return
    try:
        if entry.is_symlink() and not (follow_links and entry.is_file()):
            reason = "a symbolic link is not followed; put the file itself into the folder"
            found.problems.append(Problem(shown, "link", reason))
            return
        if entry.is_dir(follow_symlinks=False):
            waiting.append((path, shown + "/"))
            return
        regular = entry.is_file()
    except OSError as error:
        found.problems.append(Problem(shown, "folder", f"cannot be looked at: {reason_of(error)}"))
        return
    found.files += 1
    if not regular:
        found.problems.append(Problem(shown, "picture", "is a pipe, socket or device, not a file"))
    elif suffix in PICTURE_SUFFIXES:
        found.pictures.append((shown, path))
    elif name == "metadata.jsonl":
        found.metadata.append(path)
    elif suffix in CAPTION_SUFFIXES:
        stem = path.with_suffix("")
        if suffix == ".txt" or stem not in found.captions:
            found.captions[stem] = path
    elif suffix == ".tar":
        found.tars.append((shown, path))
    elif suffix in FOREIGN_SUFFIXES:
        reason = f"{suffix[1:].upper()} is not opened; convert it to PNG, JPEG or WebP"
        found.problems.append(Problem(shown, "unsupported", reason))
    elif name.lower().endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2", ".zip", ".7z", ".rar")):
        reason = "a compressed archive is not opened; unpack it, or make it a plain .tar"
        found.problems.append(Problem(shown, "archive", reason))
    else:
        found.ignored += 1
