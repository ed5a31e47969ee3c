"""A person's own pictures as a checked data set: a folder, ``metadata.jsonl`` and WebDataset tars in one
list.

Every picture is read and wholly decoded once, before any training. What cannot be used is listed with its
path and the reason; what can be used is a :class:`Record`. The list of records depends on the good pictures
alone, so a training on a folder with broken files is bit-equal to one on the folder without them.

    source = FolderSource.open("my_pictures/")
    stream = FolderStream(source, batch_size=16, seed=0, size=64)     # vitrail.data.folder_stream
    for batch in stream(images_seen=0): ...
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from PIL import Image

from vitrail.data.cache import ArrayCache, cache_key
from vitrail.data.folder_captions import Entry, read_metadata, read_sidecar
from vitrail.data.folder_files import Cancelled, Found, Place, Problem, Progress, printable, stop_if, walk
from vitrail.data.tars import read_tar
from vitrail.errors import DataError, StorageError, VitrailError
from vitrail.images import MAX_PIXELS, open_image, read_header

__all__ = ["FolderSource", "Record", "Scan", "scan"]

CaptionSource = Literal["metadata", "sidecar", "tar", "none"]


@dataclass(frozen=True)
class Record:
    """One picture that can be used.

    id: its path within the folder (``tar/member`` in a tar), printable; unique.
    captions: alternatives, cleaned; empty if there is none. style: name of its style, or None.
    caption_source: where a caption was looked for with success (it may still be empty).
    width, height: in pixels, upright (EXIF orientation applied). format: PNG, JPEG, WEBP or GIF.
    file_bytes: size of the file. sha256: of its bytes.
    """

    id: str
    captions: tuple[str, ...]
    style: str | None
    caption_source: CaptionSource
    width: int
    height: int
    format: str
    file_bytes: int
    sha256: str
    place: Place

    @property
    def caption(self) -> str:
        """The first caption, or "" if there is none."""
        return self.captions[0] if self.captions else ""


@dataclass(frozen=True)
class Scan:
    """Everything that was found in a folder: records and problems by id, and counts of the rest.

    files: how many were met. ignored: hidden files and files of no use here. orphans: captions with no
        picture.
    """

    root: Path
    records: tuple[Record, ...]
    problems: tuple[Problem, ...]
    files: int
    ignored: int
    tars: int
    orphans: tuple[str, ...]


@dataclass(frozen=True)
class _Candidate:
    id: str
    place: Place
    entry: Entry
    caption_source: CaptionSource


Visit = Callable[[Record, Image.Image], None]


def scan(
    folder: Path | str,
    *,
    max_pixels: int = MAX_PIXELS,
    follow_links: bool = False,
    workers: int | None = None,
    visit: Visit | None = None,
    cache: ArrayCache | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> Scan:
    """Find, read and wholly decode every picture of ``folder``.

    Parameters
    ----------
    max_pixels: larger pictures are refused on their header alone.
    follow_links: follow symbolic links to files (never to folders).
    workers: threads that decode; default: the cores of the machine, at most 8. The result does not depend on
        it.
    visit: called with each good record and its decoded RGB picture, in any order, from several threads.
    cache: remembers by content which pictures were decoded well; the next check only reads and hashes those.

    Broken pictures are listed, not raised. Raises :class:`InputError` (no such folder), :class:`DataError`
    (it cannot be listed), :class:`StorageError` (too many files are open) and :class:`CancelledError`.
    """
    found = walk(folder, follow_links=follow_links, cancelled=cancelled)
    problems = list(found.problems)
    ignored = [found.ignored]
    candidates, orphans = _candidates(found, problems, ignored, follow_links, cancelled)
    threads = workers or min(8, os.cpu_count() or 1)
    records: list[Record] = []

    def check(candidate: _Candidate) -> Record | Problem:
        stop_if(cancelled)
        return _check(candidate, max_pixels, visit, cache)

    with warnings.catch_warnings(), ThreadPoolExecutor(threads, "vitrail-scan") as pool:
        # Pillow warns about damaged EXIF and the like, for every file and without its name.
        warnings.simplefilter("ignore", UserWarning)
        try:
            for done, result in enumerate(_in_order(pool, check, candidates, 4 * threads), start=1):
                stop_if(cancelled)
                if isinstance(result, Record):
                    records.append(result)
                else:
                    problems.append(result)
                if progress is not None:
                    progress(done, len(candidates), "check")
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return Scan(
        root=found.root,
        records=tuple(records),
        problems=tuple(sorted(problems)),
        files=found.files,
        ignored=ignored[0],
        tars=len(found.tars),
        orphans=tuple(sorted(orphans)),
    )


@dataclass(frozen=True)
class FolderSource:
    """The checked pictures of a folder, ready for training.

    records: sorted by id. problems: what was left out, exactly. styles: their names, sorted.
    """

    root: Path
    records: tuple[Record, ...]
    problems: tuple[Problem, ...]
    styles: tuple[str, ...]

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        drop_duplicates: bool = False,
        max_pixels: int = MAX_PIXELS,
        follow_links: bool = False,
        workers: int | None = None,
        cache: ArrayCache | None = None,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> FolderSource:
        """Check ``folder`` with :func:`scan` and keep what is good.

        drop_duplicates: of files with the same bytes keep the first; captions of the others become
            alternatives.

        Raises :class:`DataError` if not one picture can be used, and what :func:`scan` raises.
        """
        result = scan(
            folder,
            max_pixels=max_pixels,
            follow_links=follow_links,
            workers=workers,
            cache=cache,
            progress=progress,
            cancelled=cancelled,
        )
        if not result.records:
            first = next((p for p in result.problems if p.kind == "picture"), None) or next(
                iter(result.problems), None
            )
            bad = (
                f"; {len(result.problems)} files cannot be used, such as {first.path}: {first.reason}"
                if first
                else ""
            )
            raise DataError(f"no usable picture in {printable(str(folder))} (PNG, JPEG, WebP or GIF){bad}")
        records = _without_duplicates(result.records) if drop_duplicates else result.records
        styles = tuple(sorted({record.style for record in records if record.style is not None}))
        return cls(result.root, records, result.problems, styles)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, record: Record) -> bytes:
        """The bytes of a picture. :class:`DataError` if they are gone or no longer those that were
        checked."""
        try:
            data = record.place.read()
        except DataError as error:
            raise DataError(f"{record.id} {error}; it was good when the training began") from error
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise DataError(
                f"{record.id} has changed since it was checked; start again to check the folder anew"
            )
        return data

    def picture(self, record: Record) -> Image.Image:
        """The decoded picture: upright 8-bit RGB, transparency over white, first frame of an animation."""
        try:
            # Its header was within the cap of the scan, whatever that was.
            return open_image(self.read(record), max_pixels=max(MAX_PIXELS, record.width * record.height))
        except StorageError:
            raise
        except VitrailError as error:
            raise DataError(f"{record.id}: {error}") from error

    def content_hash(self) -> str:
        """SHA-256 over ids, picture hashes, captions and styles: what a trained model's card says it was
        fed."""
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(
                json.dumps([record.id, record.sha256, record.captions, record.style]).encode() + b"\n"
            )
        return digest.hexdigest()


def _candidates(
    found: Found, problems: list[Problem], ignored: list[int], follow_links: bool, cancelled: Cancelled | None
) -> tuple[list[_Candidate], list[str]]:
    """Every picture with what is written about it; ``metadata.jsonl`` goes before a sidecar."""
    entries = read_metadata(found, problems)
    used: set[Path] = set()
    candidates = []
    for picture_id, path in found.pictures:
        stop_if(cancelled)
        entry, source = entries.get(path), "metadata"
        # "cat.txt" belongs to "cat.png"; some tools write "cat.png.txt"
        sidecars = [found.captions[stem] for stem in (path.with_suffix(""), path) if stem in found.captions]
        used.update(sidecars)
        if (entry is None or not entry.captions) and sidecars:
            text = read_sidecar(sidecars[0])
            if text.problem is not None:
                name = printable(sidecars[0].relative_to(found.root).as_posix())
                problems.append(Problem(name, "caption", text.problem))
            else:
                entry = Entry([text.text] if text.text else [], entry.style if entry else None)
                source = "sidecar"
        candidates.append(
            _Candidate(
                picture_id,
                Place(path, follow_links=follow_links),
                entry or Entry(),
                "none" if entry is None else "sidecar" if source == "sidecar" else "metadata",
            )
        )
    for tar_id, path in found.tars:
        samples, tar_problems, passed = read_tar(path, tar_id, cancelled=cancelled)
        problems += tar_problems
        ignored[0] += passed
        candidates += [_Candidate(s.id, s.place, s.entry, "tar" if s.captioned else "none") for s in samples]
    candidates.sort(key=lambda candidate: candidate.id)
    names = (path for path in found.captions.values() if path not in used)
    return candidates, [printable(path.relative_to(found.root).as_posix()) for path in names]


def _check(
    candidate: _Candidate, max_pixels: int, visit: Visit | None, cache: ArrayCache | None
) -> Record | Problem:
    """Read, hash, look at the header, decode all of it."""
    picture: Image.Image | None = None
    try:
        data = candidate.place.read()
        digest = hashlib.sha256(data).hexdigest()
        header = read_header(data, max_pixels)
        key = cache_key(digest, decoded_by=f"Pillow {PIL.__version__}")
        known = cache.get(key) if cache is not None and visit is None else None
        if known is None or known.shape != (2,):
            picture = open_image(data, max_pixels)
            known = np.array(picture.size, dtype=np.int64)
            if cache is not None:
                cache.put(key, known)
    except StorageError:  # not this picture's fault: none is to be left out for it
        raise
    except (
        Exception
    ) as error:  # whatever a hostile file provokes is its problem, told with its path, not ours
        reason = (
            str(error) if isinstance(error, VitrailError) else f"cannot be decoded: {type(error).__name__}"
        )
        return Problem(candidate.id, "picture", printable(reason.removeprefix("the picture ")))
    record = Record(
        id=candidate.id,
        captions=tuple(caption for caption in candidate.entry.captions if caption),
        style=candidate.entry.style,
        caption_source=candidate.caption_source,
        width=int(known[0]),
        height=int(known[1]),
        format=header.format,
        file_bytes=len(data),
        sha256=digest,
        place=candidate.place,
    )
    if visit is not None and picture is not None:
        visit(record, picture)
    return record


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[_Candidate], Record | Problem],
    items: list[_Candidate],
    ahead: int,
) -> Iterator[Record | Problem]:
    """``work`` over ``items``, results in their order, at most ``ahead`` of them waiting in memory."""
    waiting: collections.deque[Future[Record | Problem]] = collections.deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _without_duplicates(records: tuple[Record, ...]) -> tuple[Record, ...]:
    kept: dict[str, Record] = {}
    for record in records:
        first = kept.get(record.sha256)
        if first is None:
            kept[record.sha256] = record
        else:
            captions = tuple(dict.fromkeys(first.captions + record.captions))
            kept[record.sha256] = replace(first, captions=captions, style=first.style or record.style)
    return tuple(kept.values())
