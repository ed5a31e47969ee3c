"""The database under several writers, and its one-line errors; on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import multiprocessing
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from vitrail.errors import InputError, StorageError
from vitrail.store.database import Database

TABLES = sa.MetaData()
COUNTERS = sa.Table(
    "counters", TABLES, sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.Integer)
)
WRITERS, ROUNDS = 8, 25


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/test.sqlite"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def database(address: str, tmp_path: Path) -> Iterator[Database]:
    opened = Database(address, tmp_path / "unused")
    opened.create(TABLES)
    yield opened
    opened.close()


def put(database: Database, name: str, value: int = 0) -> None:
    with database.write() as connection:
        connection.execute(sa.insert(COUNTERS).values(name=name, value=value))


def value(database: Database, name: str) -> int | None:
    with database.read() as connection:
        found = connection.execute(sa.select(COUNTERS.c.value).where(COUNTERS.c.name == name))
        return found.scalar_one_or_none()


def count_up(address: str, immediate: bool, barrier: object, failures: multiprocessing.Queue[str]) -> None:
    """Read a counter, think, write it one higher; ROUNDS times."""
    database = Database(address, Path("unused"))
    if not immediate:  # the defence taken out: SQLite's own, late way to take the lock
        sa.event.listen(
            database._engine,
            "before_cursor_execute",
            lambda connection, cursor, statement, *rest: (statement.replace(" IMMEDIATE", ""), rest[0]),
            retval=True,
        )
    barrier.wait()  # type: ignore[attr-defined]
    for _ in range(ROUNDS):
        try:
            with database.write() as connection:
                read = sa.select(COUNTERS.c.value).where(COUNTERS.c.name == "shared")
                if not database.sqlite:
                    read = read.with_for_update()
                now = connection.execute(read).scalar_one()
                time.sleep(0.001)
                connection.execute(sa.update(COUNTERS).values(value=now + 1))
        except StorageError as error:
            failures.put(str(error))
    database.close()


def run_writers(address: str, *, immediate: bool = True) -> list[str]:
    """Eight processes at once; returns the errors they met."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "vitrail.store.database"])
    failures, barrier = context.Queue(), context.Barrier(WRITERS)
    processes = [
        context.Process(target=count_up, args=(address, immediate, barrier, failures)) for _ in range(WRITERS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    found = []
    while not failures.empty():
        found.append(failures.get())
    return found


def test_eight_writers_lose_nothing(address: str, database: Database) -> None:
    """Q7: every one of the read-then-write transactions goes through, none is overwritten by another."""
    put(database, "shared")
    assert run_writers(address) == []
    assert value(database, "shared") == WRITERS * ROUNDS


def test_without_begin_immediate_writers_are_refused(tmp_path: Path) -> None:
    """The negative control of Q7: a plain BEGIN, and SQLite answers "database is locked"."""
    address = f"sqlite:///{tmp_path}/test.sqlite"
    database = Database(address, tmp_path / "unused")
    database.create(TABLES)
    put(database, "shared")
    failures = run_writers(address, immediate=False)
    assert failures
    assert all("database is locked" in line for line in failures)
    database.close()


def test_writes_are_undone_by_an_error(database: Database) -> None:
    put(database, "kept", 1)

    def fail() -> None:
        with database.write() as connection:
            connection.execute(sa.update(COUNTERS).values(value=2))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert value(database, "kept") == 1


def test_a_reader_sees_one_moment(tmp_path: Path) -> None:
    """On SQLite a reading transaction sees the database as it stood at its first look."""
    database = Database(None, tmp_path / "test.sqlite")
    database.create(TABLES)
    put(database, "a", 1)
    query = sa.select(COUNTERS.c.value)
    with database.read() as connection:
        assert connection.execute(query).scalar_one() == 1
        with database.write(durable=False) as other:
            other.execute(sa.update(COUNTERS).values(value=2))
        assert connection.execute(query).scalar_one() == 1
    assert value(database, "a") == 2
    database.close()


def test_a_broken_constraint_is_the_callers(database: Database) -> None:
    put(database, "once")
    with pytest.raises(sa.exc.IntegrityError):
        put(database, "once")


def test_the_clock_is_the_servers(database: Database) -> None:
    with database.read() as connection:
        assert abs(database.now(connection) - time.time()) < 5


def test_creating_twice_and_at_once(address: str, database: Database, tmp_path: Path) -> None:
    database.create(TABLES)
    other = Database(address, tmp_path / "unused")
    other.create(TABLES)
    put(other, "there")
    assert value(database, "there") == 0
    other.close()


def test_the_default_is_a_file(tmp_path: Path) -> None:
    database = Database(None, tmp_path / "deep" / "one.sqlite")
    database.create(TABLES)
    assert database.sqlite
    assert (tmp_path / "deep" / "one.sqlite").stat().st_size > 0
    assert database.check() is None
    database.close()


def test_a_damaged_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "test.sqlite"
    database = Database(None, path)
    database.create(TABLES)
    with database.write() as connection:
        connection.execute(sa.insert(COUNTERS), [{"name": f"counter {i}", "value": i} for i in range(2000)])
    database.close()
    with sqlite3.connect(path) as plain:  # all of it into the one file
        plain.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    plain.close()
    content = bytearray(path.read_bytes())
    for place in range(3 * 4096, len(content), 4096):
        content[place : place + 64] = bytes(64)
    path.write_bytes(content)
    damaged = Database(None, path)
    try:
        found = damaged.check()
    except StorageError as error:
        found = str(error)
    assert found
    damaged.close()


def test_what_is_no_database_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "test.sqlite"
    path.write_text("this is a poem " * 400)
    with pytest.raises(StorageError, match="not a database") as caught:
        Database(None, path).create(TABLES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://root@localhost/x", "mysql"),
        ("nonsense", "cannot be read"),
        ("sqlite://", "sqlite"),
        ("sqlite:///:memory:", "sqlite"),
    ],
)
def test_other_addresses_are_refused(url: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        Database(url, tmp_path / "unused")


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    database = Database("postgresql://me:secret@127.0.0.1:1/x", tmp_path / "unused")
    with pytest.raises(StorageError, match="server is there") as caught:
        database.create(TABLES)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    database.close()


def test_a_full_disk_is_one_line_and_reading_goes_on(tmp_path: Path) -> None:
    """SQLite's own limit of pages stands for the disk: the same error, from the same place."""
    database = Database(None, tmp_path / "test.sqlite")
    database.create(TABLES)
    put(database, "first", 7)

    def limit(pages: int) -> None:
        with database._engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    limit(4)
    with pytest.raises(StorageError, match="full; free some space"):
        put(database, "x" * 100_000)
    assert value(database, "first") == 7
    limit(10_000)
    put(database, "x" * 100_000)
    database.close()
