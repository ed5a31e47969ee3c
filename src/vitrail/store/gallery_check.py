"""Compare the gallery's records with its files, and bring the two together again."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy as sa

from vitrail.errors import VitrailError
from vitrail.schema import ImageRecord
from vitrail.store.database import Database
from vitrail.store.gallery_tables import PICTURES, marked
from vitrail.store.shared_folder import SharedFolder

__all__ = ["Report", "check", "file_name"]

_FILE = re.compile(
    r"pictures/(?P<start>[0-9a-z]{2})/(?P<id>(?P=start)[0-9a-z]{6,62})(?P<suffix>\.(?:png|jpg|webp))"
)
_ROWS = 500


@dataclass
class Report:
    """What a check found, by picture id, and what a repair did about it."""

    pictures: int = 0
    missing: list[str] = field(default_factory=list)
    """A record without a file. A repair marks it lost; it shows no picture any more."""
    damaged: list[str] = field(default_factory=list)
    """A file with other bytes than were written."""
    unknown: list[str] = field(default_factory=list)
    """A file without a record; names that are not ours are listed as they are."""
    restored: list[str] = field(default_factory=list)
    """Unknown files that a repair recorded again, from what the picture says of itself."""
    marked: list[str] = field(default_factory=list)
    """Records whose file is gone that a repair marked."""
    database: str | None = None
    """What is wrong with the database's own file."""

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong, or all that was is put right."""
        left = set(self.unknown) - set(self.restored) | set(self.missing) - set(self.marked)
        return not left and not self.damaged and self.database is None


def check(
    database: Database,
    folder: SharedFolder,
    restore: Callable[[str, bytes, str, ImageRecord], None] | None,
    read_record: Callable[[bytes], ImageRecord | None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Look at every record and every file, while others go on adding and deleting.

    Parameters
    ----------
    restore: records a file again: (id, data, suffix, record); None only reports.
    read_record: reads the record that a picture holds.
    progress: is told (records looked at, records in all).

    Nothing is deleted: a file that cannot be read is worth more to its owner than a tidy folder.
    """
    report = Report(database=database.check())
    known: dict[str, str] = {}
    columns = [PICTURES.c[name] for name in ("n", "id", "suffix", "sha256", "lost")]
    with database.read() as connection:
        total = connection.execute(sa.select(sa.func.count()).select_from(PICTURES)).scalar_one()
    last = 0
    while True:
        page = sa.select(*columns).where(PICTURES.c.n > last).order_by(PICTURES.c.n).limit(_ROWS)
        with database.read() as connection:
            rows = connection.execute(page).all()
        if not rows:
            break
        last = int(rows[-1].n)
        for row in rows:
            report.pictures += 1
            known[row.id] = row.suffix
            data = folder.read(file_name(row.id, row.suffix))
            if data is None:
                if _recorded(database, row.id):  # not deleted since the page was read
                    report.missing.append(row.id)
                    if row.lost:
                        report.marked.append(row.id)
            elif hashlib.sha256(data).hexdigest() != row.sha256:
                report.damaged.append(row.id)
            elif row.lost and restore is not None:
                _mark(database, row.id, False)
        if progress is not None:
            progress(report.pictures, max(total, report.pictures))
    for name in folder.names("pictures"):
        match = _FILE.fullmatch(name)
        if match is None or known.get(match["id"], match["suffix"]) != match["suffix"]:
            report.unknown.append(name)
        elif match["id"] not in known and not _recorded(database, match["id"]):  # not added since
            report.unknown.append(match["id"])
            if restore is not None:
                _restore(match["id"], match["suffix"], folder.read(name), restore, read_record, report)
    if restore is not None:
        for id in set(report.missing) - set(report.marked):
            _mark(database, id, True)
            report.marked.append(id)
        folder.tidy()
    return report


def file_name(id: str, suffix: str) -> str:
    """Where a picture's file lies in the folder; a thousand files a folder are quick on every disk."""
    return f"pictures/{id[:2]}/{id}{suffix}"


def _recorded(database: Database, id: str) -> bool:
    with database.read() as connection:
        found = connection.execute(sa.select(PICTURES.c.n).where(PICTURES.c.id == id))
        return found.first() is not None


def _restore(
    id: str,
    suffix: str,
    data: bytes | None,
    restore: Callable[[str, bytes, str, ImageRecord], None],
    read_record: Callable[[bytes], ImageRecord | None] | None,
    report: Report,
) -> None:
    with contextlib.suppress(VitrailError):  # what cannot be read stays listed as unknown
        record = read_record(data) if read_record is not None and data is not None else None
        if record is not None and data is not None:
            restore(id, data, suffix, record)
            report.restored.append(id)


def _mark(database: Database, id: str, lost: bool) -> None:
    with database.write() as connection:
        row = sa.update(PICTURES).where(PICTURES.c.id == id, PICTURES.c.lost != lost)
        connection.execute(row.values(**marked("lost", lost)))
