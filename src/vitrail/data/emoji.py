"""Building the emoji set: the same two thousand concepts drawn by seven houses, with names in two languages.

The artwork comes from pinned registry packages (`vitrail.data.packages`), is drawn at 256 px and reduced, and
is written with its attribution into a folder outside the repository. See `vitrail.data.emoji_bank` for the
format.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.data.emoji_art import STYLE_PACKAGES, Source, collect_sources, downsample, draw_all, is_flag
from vitrail.data.emoji_bank import (
    FORMAT,
    KIND_OF_SET,
    STYLES,
    EmojiBank,
    EmojiRecord,
    Kind,
    Split,
    default_emoji_folder,
    load_emoji,
    read_manifest,
)
from vitrail.data.emoji_names import Annotation, family_of, read_annotations
from vitrail.data.packages import PACKAGES, Progress, fetch, file_sha256
from vitrail.errors import DataError, InputError, StorageError

__all__ = ["STYLES", "EmojiBank", "EmojiRecord", "build_emoji", "default_emoji_folder", "load_emoji"]

CLDR_PACKAGES = ("cldr-annotations-full", "cldr-annotations-derived-full")
HELD_OUT_CONCEPTS = 0.05
HELD_OUT_CELLS = 0.06
MIN_TRAIN_CELLS = 3


def build_emoji(
    out: Path | str | None = None,
    *,
    size: int = 128,
    packages_cache: Path | str | None = None,
    progress: Progress | None = None,
    workers: int = 2,
) -> Path:
    """Build the emoji set and return its folder.

    out: folder to make, by default ``default_emoji_folder()``; a set built earlier is replaced, any other
    folder that is not empty is refused.  size: largest side, 64, 128 or 256; smaller sides down to 64 are
    written too. packages_cache: folder of package archives; missing ones are fetched, so an interrupted build
    goes on where it was. progress(stage, done, total).  The set appears at `out` in one rename when it is
    complete.

    Raises InputError, DataError (packages), StorageError (disk), MissingExtraError (resvg-py).
    """
    if size not in (64, 128, 256):
        raise InputError(f"size is {size}; the emoji set is built at 64, 128 or 256 pixels")
    out = Path(out) if out is not None else default_emoji_folder()
    _refuse_foreign(out)
    tell = progress or (lambda stage, done, total: None)
    names = [*CLDR_PACKAGES, *STYLE_PACKAGES.values()]
    archives: dict[str, Path] = {}
    for number, name in enumerate(names):
        tell("fetching packages", number, len(names))
        archives[name] = fetch(PACKAGES[name], Path(packages_cache) if packages_cache else None)
    tell("fetching packages", len(names), len(names))
    annotations = read_annotations(archives[name] for name in CLDR_PACKAGES)
    sources, groups, matched = collect_sources(archives, annotations)
    pictures, drawn = draw_all(sources, size, workers, tell)
    keep = distinct(drawn, downsample(pictures, 32), tell)
    records = make_records([drawn[i] for i in keep], annotations, groups)
    return write_set(out, records, pictures[keep], matched, tell, dropped=len(sources) - len(keep))


def _refuse_foreign(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        try:
            read_manifest(out)
        except DataError as error:
            raise InputError(
                f"{out} exists and is not an emoji set; name another folder or empty it"
            ) from error
    elif out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder")


# --- choosing and splitting -----------------------------------------------------------------------


def distinct(drawn: list[Source], small: NDArray[np.uint8], tell: Progress) -> list[int]:
    """Indices to keep: within a style, a picture that is nearly that of a simpler concept is dropped.

    small: uint8 (N, 32, 32, 4). Two pictures are the same when, on white, no pixel differs by more than 24 of
    255 and the mean by less than 0.8. The concept with fewer code points stays, then the lower one.
    """
    alpha = small[..., 3:].astype(np.float32) / 255
    flat = (small[..., :3] * alpha + 255 * (1 - alpha)).reshape(len(small), -1).astype(np.int16)
    keep: list[int] = []
    for style in STYLES:
        members = [i for i, source in enumerate(drawn) if source.style == style]
        members.sort(key=lambda i: (len(drawn[i].concept.split("-")), drawn[i].concept))
        if not members:
            continue
        # Near-equal pictures have near-equal means over 4 x 4 blocks: a cheap bound before the exact test.
        coarse = flat[members].reshape(-1, 4, 8, 4, 8, 3).mean(axis=(2, 4)).reshape(len(members), -1)
        kept: list[int] = []
        for position, i in enumerate(members):
            near = np.flatnonzero(np.abs(coarse[kept] - coarse[position]).max(axis=1, initial=0) < 12)
            difference = [np.abs(flat[members[kept[j]]] - flat[i]) for j in near]
            if not any(d.max() <= 24 and d.mean() < 0.8 for d in difference):
                kept.append(position)
        keep.extend(members[position] for position in kept)
        tell("comparing", len(keep), len(drawn))
    return sorted(keep)


def fraction(text: str) -> float:
    """A number in [0, 1) from the text alone, so that what is held out depends on no order and on nothing
    else.
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest()) / 2**56


def split_cells(cells: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Split]:
    """Split of every (concept, style): 5 % of concept families, and 6 % of cells whose concept keeps three
    others.
    """
    styles_of: dict[str, list[str]] = {}
    for concept, style in cells:
        styles_of.setdefault(concept, []).append(style)
    splits: dict[tuple[str, str], Split] = {}
    for concept, styles in styles_of.items():
        if fraction(f"concept 1 {family_of(concept)}") < HELD_OUT_CONCEPTS:
            splits.update({(concept, style): "concept" for style in styles})
            continue
        left = len(styles)
        for chance, style in sorted((fraction(f"cell 1 {concept} {style}"), style) for style in styles):
            held = chance < HELD_OUT_CELLS and left > MIN_TRAIN_CELLS
            left -= held
            splits[concept, style] = "cell" if held else "train"
    return splits


def kind_of(concept: str, group: str) -> Kind:
    """Flag, symbol (letters, arrows, signs, clocks) or object."""
    if is_flag(concept) or group == "Flags":
        return "flag"
    first = int(concept.split("-")[0], 16)
    clock = 0x1F550 <= first <= 0x1F567
    hearts = first in (0x2764, 0x1F9E1, 0x1F90D, 0x1F90E) or 0x1F493 <= first <= 0x1F49F
    return "symbol" if (group in ("Symbols", "") and not hearts) or clock or "20e3" in concept else "object"


def make_records(
    drawn: list[Source], annotations: dict[str, Annotation], groups: dict[str, str]
) -> list[EmojiRecord]:
    """One record a picture."""
    splits = split_cells((source.concept, source.style) for source in drawn)
    records = []
    for source in drawn:
        annotation, group = annotations[source.concept], groups.get(source.concept, "")
        package = PACKAGES[STYLE_PACKAGES[source.style]]
        records.append(
            EmojiRecord(
                id=f"{source.style}/{source.concept}",
                concept=source.concept,
                style=source.style,
                name_en=annotation.name_en,
                name_zh=annotation.name_zh,
                keywords_en=annotation.keywords_en,
                keywords_zh=annotation.keywords_zh,
                split=splits[source.concept, source.style],
                kind=kind_of(source.concept, group),
                group=group,
                package=f"{package.name}@{package.version}",
                license=package.licence,
            )
        )
    return records


# --- writing --------------------------------------------------------------------------------------


def write_set(
    out: Path,
    records: list[EmojiRecord],
    pictures: NDArray[np.uint8],
    matched: dict[str, dict[str, int]],
    tell: Progress,
    *,
    dropped: int,
) -> Path:
    """Write the folder beside `out` and rename it into place; a set that was there before goes away last."""
    size = pictures.shape[1]
    staged = out.parent / f".{out.name}.building-{os.getpid()}"
    retired = out.parent / f".{out.name}.old-{os.getpid()}"
    tell("writing", 0, 1)
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        for side in _sides(size):
            np.save(staged / f"pictures_{side}.npy", pictures if side == size else downsample(pictures, side))
        text = "".join(record.to_json() + "\n" for record in records)
        (staged / "metadata.jsonl").write_text(text, encoding="utf-8")
        (staged / "ATTRIBUTION.md").write_text(attribution(), encoding="utf-8")
        manifest = {
            "kind": KIND_OF_SET,
            "format": FORMAT,
            "size": size,
            "styles": list(STYLES),
            "packages": [
                {"name": p.name, "version": p.version, "sha256": p.sha256, "licence": p.licence}
                for p in PACKAGES.values()
            ],
            "renderer": f"resvg-py {importlib.metadata.version('resvg-py')}",
            "counts": _counts(records) | {"dropped_empty_or_duplicate": dropped},
            "matched": matched,
            "files": {
                path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
                for path in sorted(staged.iterdir())
            },
        }
        (staged / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            os.replace(out, retired)
        os.replace(staged, out)
        shutil.rmtree(retired, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise StorageError(f"cannot write the emoji set to {out}: {error.strerror or error}") from error
    tell("writing", 1, 1)
    return out


def _sides(size: int) -> Iterator[int]:
    while size >= 64:
        yield size
        size //= 2


def _counts(records: list[EmojiRecord]) -> dict[str, Any]:
    def tally(key: Callable[[EmojiRecord], str]) -> dict[str, int]:
        result: dict[str, int] = {}
        for record in records:
            result[key(record)] = result.get(key(record), 0) + 1
        return result

    return {
        "pictures": len(records),
        "concepts": len({record.concept for record in records}),
        "by_style": tally(lambda r: r.style),
        "by_split": tally(lambda r: r.split),
        "by_kind": tally(lambda r: r.kind),
        "by_style_and_split": tally(lambda r: f"{r.style} {r.split}"),
    }


def attribution() -> str:
    """Who made the artwork and the names, and under which licence."""
    lines = [
        "# Attribution",
        "",
        "The pictures in this folder are the artwork below, drawn at a small size and not changed otherwise.",
        "Names and keywords come from Unicode CLDR.",
        "",
        "| package | licence | by |",
        "|---|---|---|",
    ]
    lines += [f"| {p.name} {p.version} | {p.licence} | {p.credit} |" for p in PACKAGES.values()]
    lines += [
        "",
        "Licences: Apache-2.0 https://www.apache.org/licenses/LICENSE-2.0,",
        "CC-BY-4.0 https://creativecommons.org/licenses/by/4.0/, MIT https://opensource.org/license/mit,",
        "Unicode-3.0 https://www.unicode.org/license.txt",
    ]
    return "\n".join(lines) + "\n"
