"""The gallery's tables, and the words by which a picture is found, in English and Chinese alike.

SQLite's and PostgreSQL's own ways to cut a text into words know no Chinese, and an index of three letters at
a time (trigrams) cannot find a word of one or two, which most Chinese words are. So the text is cut here:
Latin words as they are, a run of Chinese as its characters and its pairs of neighbours. A query of two
characters is then one look-up, one of more is all its pairs together.

What pictures are filtered by (model, style, a mark) stands among the words too, behind a character that no
query can bring there: a search for a word that all pictures have, of a model that made three, walks one index
for the two together and not all the pictures.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

import sqlalchemy as sa

__all__ = ["FTS", "PICTURES", "TABLES", "facet", "fts_query", "marked", "searchable", "ts_query", "words_of"]

TABLES = sa.MetaData()

PICTURES = sa.Table(
    "pictures",
    TABLES,
    sa.Column("n", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("job", sa.Text, nullable=False, index=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("style", sa.Text),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("favourite", sa.Boolean, nullable=False, default=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("suffix", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("words", sa.Text, nullable=False),
    sa.Column("lost", sa.Boolean, nullable=False, default=False),
    sa.Index("pictures_model", "model", "n"),
    sa.Index("pictures_kind", "kind", "n"),
    sa.Index("pictures_style", "style", "n"),
    sa.Index("pictures_favourite", "favourite", "n"),
    sqlite_autoincrement=True,
)
"""One row a picture; ``n`` counts them in the order in which they came. ``words``: :func:`searchable`."""

# SQLite uses an index of some rows for a query that says which in the same words.
sa.Index("pictures_lost", PICTURES.c.lost, sqlite_where=sa.text("lost = 1"), postgresql_where=PICTURES.c.lost)

FTS = {
    "sqlite": (
        "CREATE VIRTUAL TABLE IF NOT EXISTS pictures_words USING fts5("
        "words, content='pictures', content_rowid='n', "
        "tokenize='unicode61 remove_diacritics 2', prefix='1 2 3')",
        "CREATE TRIGGER IF NOT EXISTS pictures_added AFTER INSERT ON pictures BEGIN "
        "INSERT INTO pictures_words(rowid, words) VALUES (new.n, new.words); END",
        "CREATE TRIGGER IF NOT EXISTS pictures_removed AFTER DELETE ON pictures BEGIN "
        "INSERT INTO pictures_words(pictures_words, rowid, words) VALUES ('delete', old.n, old.words); END",
        "CREATE TRIGGER IF NOT EXISTS pictures_marked AFTER UPDATE OF words ON pictures BEGIN "
        "INSERT INTO pictures_words(pictures_words, rowid, words) VALUES ('delete', old.n, old.words); "
        "INSERT INTO pictures_words(rowid, words) VALUES (new.n, new.words); END",
    ),
    "postgresql": (
        "CREATE INDEX IF NOT EXISTS pictures_words ON pictures USING gin (to_tsvector('simple', words))",
    ),
}
"""What each database needs to search ``words``."""

_FACET = "\u3400"  # a Chinese character: alone it is a word of its own, and no word begins with it

_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
_LATIN = re.compile(r"[^\W_]+")


def _parts(text: str) -> list[tuple[bool, str]]:
    """Cut ``text`` into (is Chinese, word or run of characters)."""
    text = unicodedata.normalize("NFKC", text).casefold()
    parts: list[tuple[bool, str]] = []
    place = 0
    for run in _CHINESE.finditer(text):
        parts += [(False, word) for word in _LATIN.findall(text[place : run.start()])]
        parts.append((True, run[0]))
        place = run.end()
    return parts + [(False, word) for word in _LATIN.findall(text[place:])]


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)]


def words_of(text: str) -> str:
    """The words by which ``text`` is found, with blanks between; at most 4,000 different ones."""
    found: dict[str, None] = {}
    for chinese, part in _parts(text):
        found.update(dict.fromkeys([*part, *_pairs(part)] if chinese else [part[:64]]))
    return " ".join(list(found)[:4000])


def searchable(text: str, **facets: str | None) -> str:
    """Return what the column ``words`` holds: the words of ``text``, and a word for each filter."""
    return " ".join(
        [words_of(text), *(facet(name, value) for name, value in facets.items() if value is not None)]
    )


def facet(name: str, value: str = "") -> str:
    """Return the word that stands for the filter ``name`` having ``value``."""
    return f"{_FACET}{name}{hashlib.sha256(value.encode()).hexdigest()[:12] if value else ''}"


def marked(name: Literal["favourite", "lost"], on: bool) -> dict[str, object]:
    """Return the values of an update that puts a mark on a picture without it, or takes it off again."""
    mark = f" {facet(name)}"
    words = PICTURES.c.words + mark if on else sa.func.replace(PICTURES.c.words, mark, "")
    return {name: on, "words": words}


def _wanted(query: str) -> list[tuple[str, bool]]:
    """The words that must all be there, each with whether its beginning will do."""
    wanted: dict[tuple[str, bool], None] = {}
    for chinese, part in _parts(query[:400]):
        if not chinese:
            wanted[part[:64], True] = None
        else:
            wanted.update(dict.fromkeys((word, False) for word in (_pairs(part) or [part])))
    return list(wanted)[:40]


def fts_query(query: str | None, facets: Sequence[str] = ()) -> str | None:
    """A search as SQLite's FTS5 reads it, by ``facets`` alone without a query; None if it holds no word."""
    wanted = [f'"{word}"{" *" if begins else ""}' for word, begins in _wanted(query or "")]
    return " AND ".join([*wanted, *(f'"{word}"' for word in facets)]) if wanted or query is None else None


def ts_query(query: str | None, facets: Sequence[str] = ()) -> str | None:
    """A search as PostgreSQL's to_tsquery reads it, by ``facets`` alone without a query; None if it holds no
    word.
    """
    wanted = [f"'{word}'{':*' if begins else ''}" for word, begins in _wanted(query or "")]
    return " & ".join([*wanted, *(f"'{word}'" for word in facets)]) if wanted or query is None else None
