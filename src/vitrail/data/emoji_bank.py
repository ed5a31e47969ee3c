"""The built emoji set, format 1: memory-mapped pictures and one record a picture.

A folder holds ``pictures_64.npy`` and ``pictures_128.npy`` (uint8, (N, side, side, 4), straight-alpha RGBA,
alpha 0 outside the drawing), ``metadata.jsonl`` (one record a line, same order), ``ATTRIBUTION.md`` and
``manifest.json``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.data.packages import cache_folder, file_sha256
from vitrail.errors import DataError

__all__ = [
    "FORMAT",
    "STYLES",
    "EmojiBank",
    "EmojiRecord",
    "default_emoji_folder",
    "load_emoji",
    "style_index",
]

FORMAT = 1
KIND_OF_SET = "vitrail emoji"

STYLES: tuple[str, ...] = (
    "noto",
    "noto-classic",
    "twemoji",
    "emojione",
    "firefox",
    "fluent-flat",
    "fluent-3d",
)
"""House styles in the order of their index, which counts from 1; index 0 means "no style"."""

Split = Literal["train", "cell", "concept"]
Kind = Literal["object", "symbol", "flag"]


def style_index(style: str) -> int:
    """Index of a style name, 1 to 7; 0 for ""."""
    return STYLES.index(style) + 1 if style else 0


@dataclass(frozen=True)
class EmojiRecord:
    """One picture of one concept in one house style.

    id: "noto/1f408".  concept: code points in hex without FE0F, joined by "-".  style: one of STYLES.
    name_*, keywords_*: from Unicode CLDR.  split: "train"; "cell" (this concept is trained in other styles
    only); "concept" (held out in every style).  kind: what sort of thing it is; group: Unicode's group name.
    """

    id: str
    concept: str
    style: str
    name_en: str
    name_zh: str
    keywords_en: tuple[str, ...]
    keywords_zh: tuple[str, ...]
    split: Split
    kind: Kind
    group: str
    package: str
    license: str

    @property
    def style_index(self) -> int:
        """Index of the style, 1 to 7."""
        return style_index(self.style)

    def to_json(self) -> str:
        """The line of metadata.jsonl."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def from_json(line: str) -> EmojiRecord:
        """Read a line of metadata.jsonl; raises KeyError, TypeError or ValueError when it is not one."""
        fields = json.loads(line)
        for name in ("keywords_en", "keywords_zh"):
            fields[name] = tuple(fields[name])
        record = EmojiRecord(**fields)
        if record.style not in STYLES or record.split not in ("train", "cell", "concept"):
            raise ValueError(f"style {record.style!r}, split {record.split!r}")
        return record


@dataclass(frozen=True)
class EmojiBank:
    """Records and pictures of a built set; index i means the same picture everywhere.

    records: N records.  arrays: side -> uint8 (N, side, side, 4).  manifest: as read; {} for a bank made in
    memory.
    """

    records: Sequence[EmojiRecord]
    arrays: dict[int, NDArray[np.uint8]]
    manifest: dict[str, Any]

    def __post_init__(self) -> None:
        for side, array in self.arrays.items():
            if array.dtype != np.uint8 or array.shape != (len(self.records), side, side, 4):
                raise DataError(
                    f"pictures_{side} are {array.dtype} {array.shape}, expected uint8 "
                    f"({len(self.records)}, {side}, {side}, 4); build the emoji set again"
                )

    def __len__(self) -> int:
        return len(self.records)

    def pictures(self, size: int) -> NDArray[np.uint8]:
        """The pictures of one side length, uint8 (N, size, size, 4); raises DataError if the set has none."""
        if size not in self.arrays:
            raise DataError(f"the emoji set holds pictures of {sorted(self.arrays)} pixels, not of {size}")
        return self.arrays[size]

    def indices(self, *splits: Split) -> NDArray[np.int64]:
        """Indices of the records of the given splits, in order."""
        return np.array(
            [i for i, record in enumerate(self.records) if record.split in splits], dtype=np.int64
        )


def default_emoji_folder() -> Path:
    """Where the emoji set lies unless the caller says otherwise: ``$VITRAIL_DATA`` (or
    ~/.cache/vitrail)/data/emoji.
    """
    return cache_folder() / "data" / "emoji"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check ``manifest.json`` of a built set; DataError when the folder is not one of this
    format.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise DataError(
            f"{folder} is not a built emoji set (no manifest.json); run: vitrail data build emoji"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        kind, version = manifest["kind"], manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}); build the emoji set again") from error
    if kind != KIND_OF_SET or version != FORMAT:
        raise DataError(
            f"{folder} is {kind!r} of format {version!r}, expected {KIND_OF_SET!r} of format {FORMAT}"
        )
    return dict(manifest)


def load_emoji(folder: Path | str | None = None, *, full: bool = False) -> EmojiBank:
    """Open a built set, checked against its manifest.

    folder: by default ``default_emoji_folder()``.  full: hash the picture files too (about a second), not
    only their sizes and the metadata.  Raises DataError for whatever is missing, cut short or changed.
    """
    folder = Path(folder) if folder is not None else default_emoji_folder()
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing; build the emoji set again")
        if path.stat().st_size != expected["bytes"]:
            raise DataError(
                f"{path} has {path.stat().st_size} bytes, not {expected['bytes']}; build the emoji set again"
            )
        if (full or path.suffix != ".npy") and file_sha256(path) != expected["sha256"]:
            raise DataError(
                f"{path} was changed since it was built (SHA-256 differs); build the emoji set again"
            )
    records = []
    with (folder / "metadata.jsonl").open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                records.append(EmojiRecord.from_json(line))
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{folder / 'metadata.jsonl'} line {number} is not a record: {error}"
                ) from error
    arrays = {
        int(path.stem.removeprefix("pictures_")): np.load(path, mmap_mode="r", allow_pickle=False)
        for path in sorted(folder.glob("pictures_*.npy"))
    }
    return EmojiBank(records, arrays, manifest)
