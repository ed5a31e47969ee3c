"""The newest pictures that fit, however rare or common the words are; for each database in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from vitrail.store.gallery_tables import PICTURES

__all__ = ["find_postgres", "find_sqlite"]

_WINDOW = 2000

Row = sa.Row[Any]
Found = sa.Select[Any]


def find_sqlite(
    connection: sa.Connection, found: Found, words: str | None, before: int | None, count: int
) -> Sequence[Row]:
    """Return the newest ``count`` rows of ``found`` that have ``words``, below number ``before``."""
    if words is None:
        return connection.execute(_newest(found, before, count)).all()
    # The index of words, walked from its end as far as the count; a left join keeps SQLite to this order.
    index = sa.table("pictures_words", sa.column("rowid"))
    matches = sa.text("pictures_words MATCH :words").bindparams(words=words)
    found = found.select_from(index.outerjoin(PICTURES, PICTURES.c.n == index.c.rowid)).where(matches)
    if before is not None:
        found = found.where(index.c.rowid < before)
    return connection.execute(found.order_by(index.c.rowid.desc()).limit(count)).all()


def find_postgres(
    connection: sa.Connection, found: Found, words: str | None, before: int | None, count: int
) -> Sequence[Row]:
    """Return the newest ``count`` rows of ``found`` that have ``words``, below number ``before``.

    PostgreSQL either reads the newest rows one by one or collects every hit from the index, and guesses which
    is less by how common each word is; for words that seldom meet the guess is seconds too slow. So a few of
    the newest are read first, and if they do not give a page the words are no common ones.
    """
    if words is None:
        return connection.execute(_newest(found, before, count)).all()
    matches = sa.text("to_tsvector('simple', words) @@ to_tsquery('simple', :words)")
    found = found.where(matches.bindparams(words=words))
    top = before
    if top is None:
        top = (connection.execute(sa.select(sa.func.max(PICTURES.c.n))).scalar() or 0) + 1
    rows = connection.execute(_newest(found.where(PICTURES.c.n >= top - _WINDOW), before, count)).all()
    if len(rows) == count:
        return rows
    connection.execute(sa.text("SET LOCAL enable_indexscan = off"))  # leaves it the index of words
    return connection.execute(_newest(found, before, count)).all()


def _newest(found: Found, before: int | None, count: int) -> Found:
    if before is not None:
        found = found.where(PICTURES.c.n < before)
    return found.order_by(PICTURES.c.n.desc()).limit(count)
