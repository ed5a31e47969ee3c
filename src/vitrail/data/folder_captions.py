"""Captions beside pictures: ``.txt`` sidecars and ``metadata.jsonl`` (the Hugging Face ImageFolder
convention)."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from vitrail.data.folder_files import Found, Place, Problem, printable, reason_of
from vitrail.errors import DataError

__all__ = ["CaptionFile", "Entry", "clean", "entry_of", "read_metadata", "read_sidecar"]

MAX_CAPTION = 2_000
"""Characters of a caption that are kept; text encoders read far fewer."""

_MAX_SIDECAR_BYTES = 64 << 10
_MAX_LINE_BYTES = 1 << 20
_BIDI = frozenset(
    "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)  # they reorder the text around them
_CAPTION_KEYS = ("text", "caption", "captions", "prompt")


@dataclass
class Entry:
    """What is written about one picture: alternative captions and the name of its style, if any."""

    captions: list[str] = field(default_factory=list)
    style: str | None = None


@dataclass(frozen=True)
class CaptionFile:
    """The text of a sidecar, or the problem that kept it from being read."""

    text: str
    problem: str | None = None


def clean(text: str) -> str:
    """One line of printable text: NFC, white space joined, control and bidi characters removed."""
    text = unicodedata.normalize("NFC", text[: 8 * MAX_CAPTION].encode("utf-8", "replace").decode("utf-8"))
    kept = "".join(c for c in text if c.isspace() or not (c in _BIDI or unicodedata.category(c) == "Cc"))
    return " ".join(kept.split())[:MAX_CAPTION].rstrip()


def decode_text(data: bytes) -> str:
    """Bytes of a text file as text: UTF-8, or UTF-16 where a byte order mark says so. :class:`DataError`
    else."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text; save it as UTF-8") from error


def read_sidecar(path: Path) -> CaptionFile:
    """The caption in a text file: all its lines, joined. A file that cannot be read gives "" and the
    problem."""
    try:
        return CaptionFile(clean(decode_text(Place(path).read(_MAX_SIDECAR_BYTES))))
    except DataError as error:
        return CaptionFile("", str(error))


def entry_of(row: Mapping[str, object]) -> Entry:
    """Captions (``text``, ``caption``, ``captions`` or ``prompt``; a text or a list of texts) and ``style``.

    Raises :class:`DataError` if one of them is of another type.
    """
    entry = Entry()
    for key in _CAPTION_KEYS:
        value = row.get(key)
        if value is None:
            continue
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{key!r} must be a text or a list of texts")
        entry.captions += [text for text in dict.fromkeys(clean(str(text)) for text in texts) if text]
        break
    style = row.get("style")
    if style is not None and not isinstance(style, str):
        raise DataError("'style' must be a text")
    entry.style = clean(style) or None if style else None
    return entry


def parse_object(line: bytes | str) -> dict[str, object]:
    """One JSON object; :class:`DataError` for anything else, however deep it nests."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"is not JSON: {'nested too deep' if isinstance(error, RecursionError) else reason_of(error)}"
        ) from error
    if not isinstance(row, dict):
        raise DataError("is not a JSON object")
    return row


def read_metadata(found: Found, problems: list[Problem]) -> dict[Path, Entry]:
    """Every line of every ``metadata.jsonl``, by the path of the picture it speaks of.

    A line that is bad, names no picture of the folder or leads outside it is added to ``problems``. Two lines
    about one picture: their captions become alternatives of each other, and the second is noted.
    """
    known = {path for _, path in found.pictures}
    entries: dict[Path, Entry] = {}
    for path in found.metadata:
        name = printable(path.relative_to(found.root).as_posix())

        def report(number: int, reason: str, name: str = name) -> None:
            problems.append(Problem(f"{name}:{number}", "metadata", reason))

        try:
            lines = Place(path).read().split(b"\n")
        except DataError as error:
            problems.append(Problem(name, "metadata", str(error)))
            continue
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                if len(line) > _MAX_LINE_BYTES:
                    raise DataError(f"a line of {len(line)} bytes; allowed are {_MAX_LINE_BYTES}")
                row = parse_object(decode_text(line) if number == 1 else line)
                target = _target(path.parent, found.root, row.get("file_name"))
                if target not in known:
                    raise DataError(
                        f"names {_quoted(row['file_name'])}, which is not a picture in this folder"
                    )
                entry = entry_of(row)
            except DataError as error:
                report(number, str(error))
                continue
            if target in entries:
                report(
                    number,
                    f"a second line about {_quoted(row['file_name'])}; its caption was added to the first",
                )
                _merge(entries[target], entry)
            else:
                entries[target] = entry
    return entries


def _merge(into: Entry, other: Entry) -> None:
    into.captions += [caption for caption in other.captions if caption not in into.captions]
    into.style = into.style or other.style


def _target(base: Path, root: Path, name: object) -> Path:
    """The path that ``file_name`` means; never outside ``root``. No file is touched to find out."""
    if not isinstance(name, str) or not name:
        raise DataError("has no 'file_name' text")
    if "\0" in name or len(name) > 4096:
        raise DataError("'file_name' is not a file name")
    pure = PurePosixPath(name.replace("\\", "/") if os.sep == "\\" else name)
    if pure.is_absolute() or ".." in pure.parts or (os.sep == "\\" and ":" in name):
        raise DataError(f"names {_quoted(name)}, which leads outside the folder")
    return base.joinpath(*pure.parts)


def _quoted(name: object) -> str:
    text = printable(str(name))
    return f"'{text if len(text) <= 120 else text[:117] + '...'}'"
