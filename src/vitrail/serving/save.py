"""The one step that puts a picture on disk: its record inside it, a name of its own, written whole or not
at all.

Whatever marks a picture as generated belongs here and nowhere else, so that no way to a file can forget it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from vitrail.errors import InputError, StorageError
from vitrail.files import atomic_write, check_space, ensure_folder, shown
from vitrail.images import grid
from vitrail.provenance import metadata
from vitrail.request_fields import FileRef
from vitrail.schema import ImageRecord

__all__ = [
    "ENDINGS",
    "Destination",
    "Format",
    "animation_bytes",
    "picture_bytes",
    "save_animation",
    "save_grid",
    "save_picture",
    "save_preview",
    "save_sheet",
]

Format = Literal["png", "jpeg", "webp"]

_SUFFIXES: dict[str, Format] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_UNWRITTEN = re.compile(r"\.(gif|bmp|tiff?|avif|heic|jxl|jp2|ico|svg|pdf|mp4)", re.IGNORECASE)
ENDINGS: dict[Format, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""The ending of a file of each format."""

_NUMBERED = re.compile(r"^(\d{4,9})-")


@dataclass(frozen=True)
class Destination:
    """Where pictures go.

    With ``name`` None they are numbered in ``folder`` (``0001-cat-sitting-seed42.png``) and never replace
    another file. With a name, one picture is ``folder/name`` and replaces a file of that name, as the
    person who gave the name expects; of ``cat.png`` several are ``cat-1.png``, ``cat-2.png`` and so on, and
    ``cat-grid.png``.
    """

    folder: Path = Path("out")
    name: str | None = None
    format: Format = "png"

    @classmethod
    def of(cls, output: str | None = None, format: str | None = None) -> Destination:
        """Read ``-o`` and ``--format``: a path with a picture's ending is a file, any other one a folder.

        Raises :class:`InputError` for a format that is not written, or two formats that disagree.
        """
        if format is not None and format not in get_args(Format):
            raise InputError(
                f"format '{shown(format, 40)}' is unknown; allowed are {', '.join(get_args(Format))}"
            )
        if output is not None and (not output.strip() or "\0" in output):
            raise InputError(
                "the output path is empty or holds a NUL character; give a folder or a file name"
            )
        path = Path("out" if output is None else output).expanduser()
        if _UNWRITTEN.fullmatch(path.suffix) and not path.is_dir():
            raise InputError(
                f"{shown(path.name, 80)} names a format that is not written; allowed are .png, .jpg and .webp"
            )
        named = _SUFFIXES.get(path.suffix.lower())
        if named is not None and not path.is_dir():
            if format is not None and format != named:
                raise InputError(
                    f"the file name says {named} and --format says {format}; leave one of them out"
                )
            return cls(path.parent, path.name, named)
        return cls(path, None, next((known for known in get_args(Format) if known == format), "png"))

    def prepare(self) -> None:
        """Make the folder; raises :class:`StorageError` now, not after the work, if it cannot be used."""
        ensure_folder(self.folder)
        check_space(self.folder, 1 << 16, margin=0)

    def _named(self, addition: str) -> Path:
        name = Path(self.name or "")
        return self.folder / f"{name.stem}{addition}{name.suffix}"


def picture_bytes(picture: Image.Image, format: Format, record: ImageRecord | None = None) -> bytes:
    """The file of ``picture``, with ``record`` inside it: what every picture that is kept goes through."""
    return metadata.encode(picture, format, record)


def animation_bytes(pictures: Sequence[Image.Image], fps: float, record: ImageRecord) -> bytes:
    """As :func:`picture_bytes`, of an animated WebP."""
    return metadata.encode_animation(pictures, fps, record)


def save_picture(picture: Image.Image, record: ImageRecord, destination: Destination) -> Path:
    """Write ``picture`` with ``record`` inside it; returns its path. Raises :class:`StorageError`."""
    data = picture_bytes(picture, destination.format, record)
    if destination.name is not None:
        return atomic_write(destination._named(f"-{record.index + 1}" if record.request.n > 1 else ""), data)
    return _numbered(f"{_slug(record)}-seed{record.seed}", data, destination)


def save_grid(pictures: Sequence[Image.Image], record: ImageRecord, destination: Destination) -> Path:
    """Write all pictures of a request as one sheet; ``record`` is the first picture's. Returns the path."""
    data = picture_bytes(grid(pictures), destination.format)
    if destination.name is not None:
        return atomic_write(destination._named("-grid"), data)
    return _numbered(f"{_slug(record)}-grid", data, destination)


def save_sheet(sheet: Image.Image, name: str, destination: Destination) -> Path:
    """Write a sheet that shows a model and not a request, such as its codebook; returns its path."""
    data = picture_bytes(sheet, destination.format)
    if destination.name is not None:
        return atomic_write(destination._named(""), data)
    return _numbered(name, data, destination)


def save_animation(
    pictures: Sequence[Image.Image], record: ImageRecord, fps: float, destination: Destination
) -> Path:
    """Write the pictures of a walk as one animated WebP beside them, with the walk's record inside.

    Lossless, so that its frames are the pictures themselves. ``record`` is the first picture's. Returns the
    path.
    """
    data = animation_bytes(pictures, fps, record)
    if destination.name is not None:
        return atomic_write(destination.folder / f"{Path(destination.name).stem}-animated.webp", data)
    return _numbered(f"{_slug(record)}-animated", data, replace(destination, format="webp"))


def save_preview(picture: Image.Image, index: int, destination: Destination) -> Path:
    """Write how picture ``index`` stands as ``preview-1.png``, over the one before; returns its path."""
    if destination.name is not None:
        path = destination._named(f"-preview-{index + 1}")
    else:
        path = destination.folder / f"preview-{index + 1}{ENDINGS[destination.format]}"
    return atomic_write(path, picture_bytes(picture, destination.format))


def _numbered(name: str, data: bytes, destination: Destination) -> Path:
    """Write ``data`` as ``0007-name.png`` with the next number; the file system decides who gets a name."""
    numbers = (_NUMBERED.match(entry.name) for entry in destination.folder.iterdir())
    number = max((int(match[1]) for match in numbers if match), default=0) + 1
    while True:
        path = destination.folder / f"{number:04d}-{name}{ENDINGS[destination.format]}"
        try:
            return atomic_write(path, data, overwrite=False)
        except StorageError:
            if not path.exists():  # not taken by another process: the disk itself refused
                raise
            number += 1


def _slug(record: ImageRecord) -> str:
    """Return up to six plain words of what the model was given, for a file name that every system takes."""
    request = record.request
    text = (record.understood_as or request.prompt).lower()
    if not text and isinstance(source := getattr(request, "picture", None), FileRef):
        text = f"{Path(source.name).stem} {request.kind}".lower()
    words = [word for word in re.findall(r"[a-z0-9]+", text) if word not in _SMALL_WORDS]
    return "-".join(words[:6])[:48].strip("-") or ("walk" if request.kind == "walk" else "picture")


_SMALL_WORDS = {"a", "an", "the", "of", "in", "on", "at", "and", "with", "to", "is", "by", "for"}
