"""``vitrail data inspect``: what is in a folder of pictures, before any training is spent on it.

    report = inspect("my_pictures/")
    print("\\n".join(report.summary("en")))
    write_report(report, "out/")                  # vitrail.data.inspect_report

One pass reads, hashes and decodes every picture (:func:`vitrail.data.folder.scan`, the check that a training
does) and takes a fingerprint of it; pairs of fingerprints then give the near-duplicates.
"""

from __future__ import annotations

import io
import statistics
import time
from collections import Counter
from pathlib import Path

from PIL import Image
from pydantic import BaseModel, ConfigDict, PrivateAttr

from vitrail.data.buckets import assign, make_buckets, shuffled
from vitrail.data.duplicates import Fingerprint, fingerprint, near_groups
from vitrail.data.folder import FolderSource, Record, Scan, scan
from vitrail.data.folder_files import Cancelled, Problem, ProblemKind, Progress, printable, stop_if
from vitrail.data.inspect_advice import Advice, Language, advise, phrase, reason_in
from vitrail.errors import StorageError, VitrailError
from vitrail.images import MAX_PIXELS, open_image

__all__ = ["Captions", "InspectReport", "Sample", "SizeCount", "inspect"]

HUGE_PIXELS = 20_000_000
EXTREME_RATIO = 2.5
_THUMBNAIL = 208
_TOLD = 20
_SUFFIXES = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Captions(_Model):
    """How the pictures are captioned. ``found`` + ``empty`` + ``missing`` = pictures.

    sources: pictures by where the caption came from. chinese: captions with Chinese characters. distinct:
    different captions. median_words: words, a Chinese character counting as one. orphans: caption files with
    no picture.
    """

    found: int
    empty: int
    missing: int
    sources: dict[str, int]
    chinese: int
    distinct: int
    median_words: float
    orphans: list[str]


class FileProblem(_Model):
    """One file that cannot be used: its path, what it was taken for, and why not."""

    path: str
    kind: ProblemKind
    reason: str


class SizeCount(_Model):
    """``count`` pictures are ``width`` x ``height`` pixels."""

    width: int
    height: int
    count: int


class Sample(_Model):
    """One picture of the contact sheet."""

    id: str
    caption: str
    width: int
    height: int


class InspectReport(_Model):
    """What :func:`inspect` found; ``model_dump_json()`` is ``report.json``.

    pictures: usable ones. files: all that were met, without hidden ones. unusable: problems that cost a file,
    not just a caption. exact_duplicates: groups of ids with the same bytes. near_duplicates: groups that look
    alike but differ in bytes. tiny: shorter side below ``size``. huge: above 20 Mpx. extreme: sides beyond
    2.5 : 1. plain: of one colour. misnamed: the ending belongs to another format. buckets: pictures by aspect
    bucket at ``size``. cropped: mean share of a picture that a square cuts off.
    """

    folder: str
    size: int
    seconds: float
    files: int
    ignored: int
    tars: int
    pictures: int
    total_bytes: int
    formats: dict[str, int]
    captions: Captions
    styles: dict[str, int]
    problems: list[FileProblem]
    unusable: int
    exact_duplicates: list[list[str]]
    near_duplicates: list[list[str]]
    sizes: list[SizeCount]
    tiny: list[str]
    huge: list[str]
    extreme: list[str]
    plain: list[str]
    misnamed: list[str]
    buckets: dict[str, int]
    cropped: float
    content_hash: str
    advice: list[Advice]
    samples: list[Sample]

    _thumbnails: dict[str, bytes] = PrivateAttr(default_factory=dict)

    @property
    def thumbnails(self) -> dict[str, bytes]:
        """WebP pictures of at most 208 px by id: the samples and the first members of the duplicate
        groups."""
        return self._thumbnails

    @property
    def repeats(self) -> int:
        """Files that repeat an earlier one byte for byte."""
        return sum(len(group) - 1 for group in self.exact_duplicates)

    def summary(self, language: Language = "en") -> list[str]:
        """Lines for the terminal: counts, the advice, and the first twenty problems."""
        formats = ", ".join(f"{name} {count}" for name, count in self.formats.items()) or "-"
        lines = [
            phrase(
                "pictures_line",
                language,
                pictures=self.pictures,
                formats=formats,
                problems=self.unusable,
            ),
            phrase(
                "captions_line", language, found=self.captions.found, lack=self.pictures - self.captions.found
            ),
            phrase("doubles_line", language, exact=self.repeats, near=len(self.near_duplicates)),
        ]
        lines += [f"- {item.text(language)}" for item in self.advice]
        for problem in self.problems[:_TOLD]:
            lines.append(f"  {problem.path}: {reason_in(language, problem.reason)}")
        return lines + (["  ..."] if len(self.problems) > _TOLD else [])


def inspect(
    folder: Path | str,
    *,
    size: int = 64,
    granularity: int = 8,
    samples: int = 48,
    max_pixels: int = MAX_PIXELS,
    follow_links: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> InspectReport:
    """Look through a folder (or one ``.tar``) and report on it. Broken files are part of the report.

    Parameters
    ----------
    size: the side in pixels that a training would use; smaller pictures count as tiny.
    samples: pictures on the contact sheet.
    progress: ``progress(done, total, what)`` with what = "check", "compare" or "thumbnails".
    cancelled: asked now and then; :class:`CancelledError` is raised once it says True.

    Raises :class:`InputError` if there is no such folder; a folder without one usable picture is reported,
    not raised.
    """
    begun = time.monotonic()
    prints: dict[str, Fingerprint] = {}

    def look(record: Record, picture: Image.Image) -> None:
        prints[record.id] = fingerprint(picture)

    found = scan(
        folder,
        max_pixels=max_pixels,
        follow_links=follow_links,
        workers=workers,
        visit=look,
        progress=progress,
        cancelled=cancelled,
    )
    records = found.records
    exact = _exact_groups(records)
    repeated = {identity for group in exact for identity in group[1:]}
    distinct = [record for record in records if record.id not in repeated]
    near = near_groups(
        [prints[record.id] for record in distinct],
        [record.width / record.height for record in distinct],
        progress=progress,
        cancelled=cancelled,
    )
    near_ids = [[distinct[i].id for i in group] for group in near]
    chosen = sorted(shuffled(len(records), 0, "samples")[:samples].tolist())
    shown = [records[i] for i in chosen]
    by_id = {record.id: record for record in records}
    wanted = dict.fromkeys(record.id for record in shown)
    wanted.update(dict.fromkeys(i for group in near_ids[:12] for i in group[:6]))
    wanted.update(dict.fromkeys(group[0] for group in exact[:12]))
    thumbnails, vanished = _thumbnails([by_id[i] for i in wanted], max_pixels, progress, cancelled)
    plain = [record.id for record in records if prints[record.id].plain]
    report = _report(found, size, granularity, exact, near_ids, plain, [*found.problems, *vanished], shown)
    report = report.model_copy(update={"seconds": round(time.monotonic() - begun, 2)})
    report = report.model_copy(update={"advice": advise(report)})
    report._thumbnails.update(thumbnails)
    return report


def _report(
    found: Scan,
    size: int,
    granularity: int,
    exact: list[list[str]],
    near: list[list[str]],
    plain: list[str],
    problems: list[Problem],
    shown: list[Record],
) -> InspectReport:
    records = found.records
    sizes = Counter((record.width, record.height) for record in records)
    buckets = make_buckets(size, granularity)
    filled = (
        Counter(str(buckets[b]) for b in assign([(r.width, r.height) for r in records], buckets))
        if records
        else {}
    )
    cut = [1 - min(r.width, r.height) / max(r.width, r.height) for r in records]
    source = FolderSource(found.root, records, found.problems, ())
    return InspectReport(
        folder=printable(str(found.root)),
        size=size,
        seconds=0.0,
        files=found.files,
        ignored=found.ignored,
        tars=found.tars,
        pictures=len(records),
        total_bytes=sum(record.file_bytes for record in records),
        formats=dict(sorted(Counter(record.format for record in records).items())),
        captions=_caption_counts(found),
        styles=dict(sorted(Counter(r.style for r in records if r.style is not None).items())),
        problems=[FileProblem(path=p.path, kind=p.kind, reason=p.reason) for p in sorted(problems)],
        unusable=sum(1 for p in problems if p.kind not in ("caption", "metadata")),
        exact_duplicates=exact,
        near_duplicates=near,
        sizes=[SizeCount(width=w, height=h, count=n) for (w, h), n in sorted(sizes.items())],
        tiny=[r.id for r in records if min(r.width, r.height) < size],
        huge=[r.id for r in records if r.width * r.height > HUGE_PIXELS],
        extreme=[r.id for r in records if max(r.width, r.height) > EXTREME_RATIO * min(r.width, r.height)],
        plain=plain,
        misnamed=[r.id for r in records if not r.id.lower().endswith(_SUFFIXES[r.format])],
        buckets=dict(sorted(filled.items())),
        cropped=round(statistics.fmean(cut), 4) if cut else 0.0,
        content_hash=source.content_hash(),
        advice=[],
        samples=[Sample(id=r.id, caption=r.caption, width=r.width, height=r.height) for r in shown],
    )


def _caption_counts(found: Scan) -> Captions:
    texts = [record.caption for record in found.records if record.captions]
    return Captions(
        found=len(texts),
        empty=sum(1 for r in found.records if not r.captions and r.caption_source != "none"),
        missing=sum(1 for r in found.records if not r.captions and r.caption_source == "none"),
        sources=dict(sorted(Counter(r.caption_source for r in found.records).items())),
        chinese=sum(1 for text in texts if any(_is_chinese(c) for c in text)),
        distinct=len(set(texts)),
        median_words=float(statistics.median(map(_words, texts))) if texts else 0.0,
        orphans=list(found.orphans),
    )


def _is_chinese(character: str) -> bool:
    return "㐀" <= character <= "鿿" or "𠀀" <= character <= "𳎯"


def _words(text: str) -> int:
    return len("".join(f" {c} " if _is_chinese(c) else c for c in text).split())


def _exact_groups(records: tuple[Record, ...]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for record in records:
        groups.setdefault(record.sha256, []).append(record.id)
    return sorted(group for group in groups.values() if len(group) > 1)


def _thumbnails(
    records: list[Record], max_pixels: int, progress: Progress | None, cancelled: Cancelled | None
) -> tuple[dict[str, bytes], list[Problem]]:
    made: dict[str, bytes] = {}
    vanished = []
    for done, record in enumerate(records, start=1):
        stop_if(cancelled)
        try:
            picture = open_image(record.place.read(), max_pixels)
        except StorageError:  # not this picture's fault
            raise
        except VitrailError as error:
            vanished.append(Problem(record.id, "picture", f"changed while it was looked at: {error}"))
            continue
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=3.0)
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=82)
        made[record.id] = buffer.getvalue()
        if progress is not None:
            progress(done, len(records), "thumbnails")
    return made, vanished
