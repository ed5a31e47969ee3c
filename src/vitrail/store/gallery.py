"""The pictures that were made: a record of each in a database, the picture itself as a file.

A picture is found by an opaque id, never by a path. Its file is written whole inside the transaction that
records it, so that of two processes that make the same picture one writes, and a crash at any point leaves at
worst a file that nobody knows, which :mod:`vitrail.store.gallery_check` finds again. The folder may be on a
disk or behind any address that fsspec reads (``s3://bucket/pictures``).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from PIL import Image
from sqlalchemy import exc

from vitrail.errors import DataError, InputError, StorageError
from vitrail.files import ensure_folder, shown
from vitrail.picture_headers import walk_header
from vitrail.schema import ImageRecord
from vitrail.store.database import Database
from vitrail.store.gallery_check import Report, check, file_name
from vitrail.store.gallery_search import find_postgres, find_sqlite
from vitrail.store.gallery_tables import FTS, PICTURES, TABLES, facet, fts_query, marked, searchable, ts_query
from vitrail.store.shared_folder import SharedFolder

__all__ = ["ID_PATTERN", "Gallery", "Page", "Picture", "PictureFile", "PictureFileError", "picture_id"]

MAX_PAGE = 500
SIDES = (16, 1024)
"""Smallest and largest side of a thumbnail in pixels."""

_MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}
SUFFIXES = tuple(_MEDIA_TYPES)

ID_PATTERN = "[0-9a-z]{8,64}"
"""What a picture's id looks like."""

_ID = re.compile(ID_PATTERN)
_MAX_PIXELS = 100_000_000  # of a picture of our own; a sheet of many is larger than one that is taken in


class PictureFileError(StorageError):
    """A picture's file is gone or damaged; the disk itself is well."""


@dataclass(frozen=True)
class Picture:
    """A picture of the gallery. ``suffix``: .png, .jpg or .webp; ``lost``: a repair found its file gone."""

    id: str
    job: str
    kind: str
    model: str
    style: str | None
    prompt: str
    seed: int
    width: int
    height: int
    favourite: bool
    created: datetime
    suffix: str
    bytes: int
    sha256: str
    record: ImageRecord
    lost: bool = False

    @property
    def media_type(self) -> str:
        """Its MIME type."""
        return _MEDIA_TYPES[self.suffix]


class PictureFile(NamedTuple):
    """What must be known of a picture to send its file."""

    id: str
    suffix: str
    sha256: str

    @property
    def media_type(self) -> str:
        """Its MIME type."""
        return _MEDIA_TYPES[self.suffix]


@dataclass(frozen=True)
class Page:
    """Pictures, the newest first; ``next`` is what to give as ``before`` for the ones after them."""

    pictures: tuple[Picture, ...]
    next: str | None


def picture_id(job: str, index: int) -> str:
    """The id of picture ``index`` of a job: the same whenever it is made again, and nothing can be read
    from it.
    """
    return hashlib.sha256(f"vitrail picture {job} {index}".encode()).hexdigest()[:32]


class Gallery:
    """Pictures in ``folder``, their records in ``database``; for any number of threads and processes.

    Parameters
    ----------
    folder: a path, or an address that fsspec reads.
    database: an open one, an address such as ``postgresql://...``, or None for ``vitrail.sqlite`` in the
        folder (which then must be on a disk).
    """

    def __init__(self, folder: str | Path, database: Database | str | None = None) -> None:
        self.folder = SharedFolder(folder)
        if isinstance(database, Database):
            self.database = database
        else:
            if database is None and self.folder.local is None:
                raise InputError("a gallery in an object store needs --database postgresql://...")
            self.database = Database(database, (self.folder.local or Path()) / "vitrail.sqlite")
        self.database.create(TABLES, *FTS["sqlite" if self.database.sqlite else "postgresql"])

    def check_writable(self) -> None:
        """Raise :class:`StorageError` unless this process's user may keep records and pictures here."""
        with self.database.write() as connection:
            connection.execute(sa.delete(PICTURES).where(sa.false()))  # SQLite refuses no earlier
        if self.folder.local is not None and (pictures := self.folder.local / "pictures").exists():
            ensure_folder(pictures)

    def close(self) -> None:
        """Close the database's connections."""
        self.database.close()

    # -- changing --------------------------------------------------------------------------------------------

    def add(
        self,
        data: bytes,
        suffix: str,
        record: ImageRecord,
        *,
        id: str,
        job: str,
        kind: str | None = None,
        durable: bool = True,
        wanted: Callable[[sa.Connection], None] | None = None,
        tell: Callable[[sa.Connection, Picture], None] | None = None,
    ) -> Picture:
        """Keep a picture and return it; what is there already under ``id`` stays as it is.

        ``data`` is a whole file as :func:`vitrail.provenance.metadata.encode` makes it. ``durable``: as of
        :meth:`vitrail.store.database.Database.write`; without it a crash of the machine may leave the file
        and no record, until the next durable commit. ``wanted`` is called first in the transaction that keeps
        the picture, and nothing is kept if it raises; ``tell`` is called last in it, with the picture. Raises
        :class:`StorageError`; then there is no record.
        """
        if not _ID.fullmatch(id) or suffix not in SUFFIXES:
            raise InputError(f"a picture needs an id of letters and digits and one of {', '.join(SUFFIXES)}")
        row = self._row(data, suffix, record, id=id, job=job, kind=kind or record.request.kind)

        def keep() -> Picture:
            with self.database.write(durable=durable) as connection:
                if wanted is not None:
                    wanted(connection)
                picture = self._keep(connection, row, data, record)
                if tell is not None:
                    tell(connection, picture)
                return picture

        try:
            return keep()
        except exc.IntegrityError:  # another machine was quicker, and its file is the one to keep
            return keep()

    def discard(
        self, data: bytes, suffix: str, record: ImageRecord, *, id: str, job: str, kind: str | None = None
    ) -> None:
        """Remove the file that an :meth:`add` may have left which could not be committed; not one that is
        recorded by now. Of two who add and discard the same picture one waits for the other.
        """
        row = self._row(data, suffix, record, id=id, job=job, kind=kind or record.request.kind)
        with contextlib.suppress(exc.IntegrityError, _UndoneError), self.database.write() as connection:
            connection.execute(sa.insert(PICTURES).values(**row))
            self.folder.remove(file_name(id, suffix))
            raise _UndoneError

    def set_favourite(self, id: str, favourite: bool) -> Picture:
        """Mark a picture, or take the mark away; :class:`InputError` for an unknown id."""
        self.get(id)
        with self.database.write() as connection:
            row = sa.update(PICTURES).where(PICTURES.c.id == id, PICTURES.c.favourite != favourite)
            connection.execute(row.values(**marked("favourite", favourite)))
        return self.get(id)

    def delete(self, id: str) -> None:
        """Remove a picture and its record for good; :class:`InputError` for an unknown id."""
        picture = self.get(id)
        # The record goes last: after a crash in between, a file without one would be found and kept again.
        self.folder.remove(file_name(id, picture.suffix))
        for name in [name for name in self.folder.names(f"thumbs/{id[:2]}") if id in name]:
            self.folder.remove(name)
        with self.database.write() as connection:
            connection.execute(sa.delete(PICTURES).where(PICTURES.c.id == id))

    # -- looking ---------------------------------------------------------------------------------------------

    def get(self, id: str) -> Picture:
        """Return the picture; :class:`InputError` for an unknown id."""
        return _picture(self._find(id, *PICTURES.c)._asdict())

    def file(self, id: str) -> PictureFile:
        """Return what :meth:`open` needs; :class:`InputError` for an unknown id. No record is read for it."""
        row = self._find(id, PICTURES.c.suffix, PICTURES.c.sha256)
        return PictureFile(id, row.suffix, row.sha256)

    def page(
        self,
        *,
        query: str | None = None,
        model: str | None = None,
        kind: str | None = None,
        style: str | None = None,
        favourite: bool | None = None,
        job: str | None = None,
        lost: bool = False,
        before: str | None = None,
        limit: int = 50,
    ) -> Page:
        """Return the newest pictures that fit all of what is given, those after ``before`` (an id) if given.

        ``query``: words that the prompt, or the words the model was given, must hold, in English or Chinese;
        a Latin word may be cut short. ``lost``: those whose file is gone, in place of the others. Raises
        :class:`InputError` for a limit outside 1 to 500, or a ``before`` that is not there.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InputError(f"limit {shown(limit, 40)} is out of range; allowed 1 to {MAX_PAGE}")
        found = sa.select(PICTURES).where(PICTURES.c.lost if lost else ~PICTURES.c.lost)
        facets = [facet(name) for name, on in (("favourite", favourite), ("lost", lost)) if on]
        for column, value in (("model", model), ("kind", kind), ("style", style), ("job", job)):
            if value is not None:
                if not value.isprintable():  # a NUL or half a character is none for a database to look up
                    return Page((), None)
                found = found.where(PICTURES.c[column] == value)
                facets.append(facet(column, value))
        if favourite is not None:
            found = found.where(PICTURES.c.favourite == favourite)
        words: str | None = None
        asked = query is not None and bool(query.strip())
        # A few marked pictures among many of a style: only the words' index walks both at once.
        if asked or ((favourite or lost) and len(facets) > 1):
            find = fts_query if self.database.sqlite else ts_query
            words = find(query if asked and query is not None else None, facets)
            if words is None:
                return Page((), None)
        with self.database.read() as connection:
            last = None
            if before is not None:
                named = sa.select(PICTURES.c.n).where(PICTURES.c.id == before)
                last = connection.execute(named).scalar_one_or_none() if _ID.fullmatch(before) else None
                if last is None:
                    raise InputError("the picture to go on from is not there; begin again without 'before'")
            rows = (find_sqlite if self.database.sqlite else find_postgres)(
                connection, found, words, last, limit + 1
            )
        return Page(
            tuple(_picture(row._asdict()) for row in rows[:limit]),
            str(rows[limit - 1].id) if len(rows) > limit else None,
        )

    def count(self) -> int:
        """How many pictures there are, lost ones not counted."""
        counted = sa.select(sa.func.count()).select_from(PICTURES).where(~PICTURES.c.lost)
        with self.database.read() as connection:
            return int(connection.execute(counted).scalar_one())

    def open(self, picture: str | PictureFile) -> bytes:
        """Return the file of a picture, or of the one with this id.

        Raises :class:`InputError` for an unknown id, :class:`PictureFileError` if its file is gone.
        """
        if isinstance(picture, str):
            picture = self.file(picture)
        data = self.folder.read(file_name(picture.id, picture.suffix))
        if data is None:
            raise PictureFileError("the file of this picture is gone; run: vitrail gallery check --repair")
        return data

    def thumbnail(self, id: str, side: int = 256) -> bytes:
        """Return the picture as a WebP of at most ``side`` pixels a side; made once and kept."""
        low, high = SIDES
        if not low <= side <= high:
            raise InputError(f"a thumbnail's side {shown(side, 40)} is out of range; allowed {low} to {high}")
        found = self.file(id)
        name = f"thumbs/{id[:2]}/{id}-{side}.webp"
        kept = self.folder.read(name)
        if kept is not None:
            return kept
        data, target = self.open(found), io.BytesIO()
        try:
            walk_header(io.BytesIO(data), "the picture", _MAX_PIXELS)
            with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP"]) as picture:
                small = picture.convert("RGB")
                small.thumbnail((side, side), Image.Resampling.LANCZOS)
                small.save(target, "WEBP", quality=82, method=4)
        except (OSError, ValueError, SyntaxError, DataError) as error:  # what Pillow raises for damaged files
            raise PictureFileError(
                "the file of this picture is damaged; run: vitrail gallery check"
            ) from error
        with contextlib.suppress(StorageError):  # a full disk, or one that is read only, can be looked at
            self.folder.write(name, target.getvalue())
        return target.getvalue()

    def check(
        self,
        repair: bool = False,
        *,
        read_record: Callable[[bytes], ImageRecord | None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Report:
        """Compare the records with the files; see :func:`vitrail.store.gallery_check.check`."""
        return check(self.database, self.folder, self._restore if repair else None, read_record, progress)

    # -- inside ----------------------------------------------------------------------------------------------

    def _find(self, id: str, *columns: sa.Column[Any]) -> sa.Row[Any]:
        row = None
        if _ID.fullmatch(id):
            with self.database.read() as connection:
                row = connection.execute(_of_picture(*columns), {"picture": id}).one_or_none()
        if row is None:
            raise InputError("there is no such picture; it may have been deleted")
        return row

    def _keep(
        self, connection: sa.Connection, row: dict[str, Any], data: bytes, record: ImageRecord
    ) -> Picture:
        here = PICTURES.c.id == row["id"]
        found = connection.execute(_of_picture(*PICTURES.c), {"picture": row["id"]}).one_or_none()
        if found is not None and not found.lost:
            return _picture(found._asdict())
        favourite = False
        if found is not None:  # made again: in its old place, with its old mark
            connection.execute(sa.delete(PICTURES).where(here))
            row, favourite = {**row, "n": found.n}, found.favourite
        connection.execute(_ADD, row)
        if favourite:
            connection.execute(sa.update(PICTURES).where(here).values(**marked("favourite", True)))
        self.folder.write(file_name(row["id"], row["suffix"]), data)
        return _picture({**row, "favourite": favourite}, record)

    def _restore(self, id: str, data: bytes, suffix: str, record: ImageRecord) -> None:
        """Record a file that lies in the folder already; of no job, as nothing says which it was."""
        row = self._row(data, suffix, record, id=id, job="", kind=record.request.kind)
        with contextlib.suppress(exc.IntegrityError), self.database.write() as connection:
            connection.execute(sa.insert(PICTURES).values(**row))

    def _row(
        self, data: bytes, suffix: str, record: ImageRecord, *, id: str, job: str, kind: str
    ) -> dict[str, Any]:
        header = walk_header(io.BytesIO(data), "the picture", _MAX_PIXELS)
        prompt = str(getattr(record.request, "prompt", ""))
        about = f"{prompt} {record.understood_as or ''}"
        style = getattr(record.request, "style", None)
        return {
            "id": id,
            "job": job,
            "kind": kind,
            "model": record.model_name,
            "style": style,
            "prompt": prompt,
            "seed": record.seed,
            "width": header.width,
            "height": header.height,
            "favourite": False,
            "created": record.created.timestamp(),
            "suffix": suffix,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "record": record.to_json(),
            "words": searchable(about, model=record.model_name, kind=kind, style=style, job=job),
            "lost": False,
        }


@functools.cache
def _of_picture(*columns: sa.Column[Any]) -> sa.Select[Any]:
    """Columns of one picture, built once: it takes five times as long to build as to ask."""
    return sa.select(*columns).where(PICTURES.c.id == sa.bindparam("picture"))


_ADD = sa.insert(PICTURES)


class _UndoneError(Exception):
    """Takes a transaction back."""


def _picture(values: Mapping[str, Any], record: ImageRecord | None = None) -> Picture:
    """The picture of a row; ``record``: its record, where it need not be read."""
    return Picture(
        **{name: values[name] for name in Picture.__dataclass_fields__ if name not in ("created", "record")},
        created=datetime.fromtimestamp(values["created"], UTC),
        record=record or ImageRecord.from_json(values["record"]),
    )
