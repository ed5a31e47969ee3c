"""The queue on a disk that fills up (row Q8), and under eight writers at once (row Q7)."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import light_hands
import pytest
import sqlalchemy as sa
from sqlalchemy import event

pytest.importorskip("dbos", reason="needs the extra server")
sys.path.insert(0, str(Path(__file__).parent.parent / "surface"))
from http_server import Served

from vitrail.errors import StorageError
from vitrail.schema import TextToImageRequest
from vitrail.serving.durable import DurableEngine
from vitrail.serving.jobs import TERMINAL
from vitrail.serving.processes import Identity
from vitrail.serving.queue_claims import Claims
from vitrail.serving.queue_store import QueueStore
from vitrail.serving.queue_worker import Worker, WorkerSettings
from vitrail.store.database import Database

WAIT = 120.0


def request(prompt: str = "draw", seed: int = 1) -> TextToImageRequest:
    return TextToImageRequest(prompt=prompt, seed=seed, steps=2)


@pytest.fixture
def engine(fast_folder: Path) -> Iterator[DurableEngine]:
    with DurableEngine(str(fast_folder), workers=0) as made:
        yield made


class FullDisk:
    """A database that may grow no more: SQLite answers as on a full disk ("database or disk is full")."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.limit: int | None = None
        for engine in (database._engine, database._live):
            event.listen(engine, "checkout", self._set)

    def _set(self, connection: object, *_: object) -> None:
        pages = 0x7FFFFFFF
        if self.limit is not None:
            pages = self.limit
        connection.execute(f"PRAGMA max_page_count = {pages}")  # type: ignore[attr-defined]

    def fill(self) -> None:
        with self._database.read() as connection:
            self.limit = int(connection.execute(sa.text("PRAGMA page_count")).scalar_one())

    def empty(self) -> None:
        self.limit = None


def test_a_full_disk_refuses_new_jobs_and_everything_else_goes_on(engine: DurableEngine) -> None:
    disk = FullDisk(engine.database)
    known = engine.submit(request()).id
    disk.fill()
    with contextlib.suppress(StorageError):
        for seed in range(200):  # what free pages there are is used up first
            engine.submit(TextToImageRequest(prompt="x" * 2000, seed=seed))
    with pytest.raises(StorageError, match=r"full; free some space"):
        engine.submit(TextToImageRequest(prompt="x" * 2000, seed=1000))
    accepted = engine.jobs(limit=1000)
    assert engine.job(known).state == "queued"
    assert all(list(engine.events(job.id, timeout=0.0)) for job in accepted)
    assert engine.gallery.page().pictures == ()
    assert engine.database.check() is None

    disk.empty()
    assert engine.submit(request(seed=9)).state == "queued"
    assert len(engine.jobs(limit=1000)) == len(accepted) + 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_under_a_running_server_needs_no_restart(small_disk: Path) -> None:
    """Server, worker, DBOS and gallery on one disk that fills up in the middle of a job, and is emptied."""
    with DurableEngine(str(small_disk), hands=light_hands.COMMAND, batch=1) as engine:
        running = engine.submit(request("draw 1.0")).id
        next(event for event in engine.events(running, timeout=WAIT) if event.type == "progress")
        waiting = [engine.submit(request(seed=seed)).id for seed in range(3)]
        ballast = fill(small_disk)
        with pytest.raises(StorageError, match=r"full; free some space"):
            engine.submit(request(seed=8))
        time.sleep(3)  # the job ends, and nobody can write that down
        assert {engine.job(id).state for id in (running, *waiting)} <= {"running", "queued"}
        ballast.unlink()

        last = engine.submit(request(seed=9)).id
        ended = [list(engine.events(id, timeout=WAIT))[-1].job for id in (running, *waiting, last)]
        assert [job.state for job in ended] == ["failed", *["succeeded"] * 4]  # no room for its picture
        assert ended[0].error is not None
        assert "no room left" in ended[0].error.message
        assert all(job.attempts == 1 for job in ended)
        assert engine.gallery.count() == 4
        assert engine.gallery.check().whole
        assert engine.database.check() is None


def fill(disk: Path) -> Path:
    """Leave no room on ``disk``; removing the file that is returned makes it again."""
    ballast = disk / "ballast"
    file = os.open(ballast, os.O_CREAT | os.O_WRONLY)
    with contextlib.suppress(OSError):
        while os.write(file, bytes(4096)):
            pass
    os.close(file)
    return ballast


@pytest.mark.parametrize("defence", ["in", "out"])
def test_a_full_disk_over_http_is_507_and_needs_no_restart(
    small_disk: Path, defence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control leaves the database's errors as they are: then it is a mistake of ours, 500."""
    if defence == "out":
        monkeypatch.setattr(Database, "_errors", lambda self: contextlib.nullcontext())
    asked = {"prompt": "an apple " * 100}
    with Served(small_disk) as server:
        http = server.http
        first = http.post("/api/jobs", json=asked).json()["id"]
        ballast = fill(small_disk)
        answers = []
        while not answers or answers[-1].status_code == 202:  # what free pages there are is used up first
            answers.append(http.post("/api/jobs", json=asked))
            assert len(answers) < 1000, "the disk does not fill up"
        assert answers[-1].status_code == (507 if defence == "in" else 500)
        if defence == "in":
            said = answers[-1].json()["error"]["message"]
            assert "free some space" in said
            assert "\n" not in said
            assert str(small_disk) not in answers[-1].text
            assert http.post("/sdapi/v1/txt2img", json=asked).status_code == 507
        for path in ("/api/jobs", f"/api/jobs/{first}", "/api/pictures", "/health"):
            assert http.get(path).status_code == 200, path
        ballast.unlink()
        assert http.post("/api/jobs", json=asked).status_code == 202
        accepted = 2 + sum(answer.status_code == 202 for answer in answers)
        assert len(server.engine.jobs(limit=1000)) == accepted
        assert server.engine.database.check() is None


def test_work_that_cannot_be_recorded_yet_is_recorded_when_there_is_room(fast_folder: Path) -> None:
    """Somebody holds the database's lock for a while: nothing is lost, nothing restarted."""
    with DurableEngine(str(fast_folder), hands=light_hands.COMMAND) as engine:
        job = engine.submit(request("draw 0.3"))
        next(event for event in engine.events(job.id, timeout=WAIT) if event.type == "progress")
        tables = fast_folder / "vitrail.sqlite"
        other = sa.create_engine(f"sqlite:///{tables}")
        with other.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            time.sleep(2.0)
            connection.exec_driver_sql("ROLLBACK")
        other.dispose()
        last = list(engine.events(job.id, timeout=WAIT))[-1]
        assert (last.job.state, last.job.attempts) == ("succeeded", 1)


def test_eight_writers_never_find_the_database_locked(engine: DurableEngine) -> None:
    """Submit, claim, tell, finish, cancel and move, all at once; afterwards everything is accounted for."""
    errors: list[BaseException] = []
    done: list[str] = []

    def submitter(number: int) -> None:
        for i in range(15):
            job = engine.submit(request(seed=number * 100 + i), key=f"{number}-{i}")
            if i % 5 == 4:
                engine.cancel(job.id)
            elif i % 5 == 3:
                waiting = engine.jobs(states=frozenset({"queued"}), limit=2)
                with contextlib.suppress(ValueError):  # it runs, or was moved before itself
                    engine.move(job.id, before=waiting[0].id if waiting else None)

    def worker(number: int) -> None:
        identity = Identity(f"w{number}", "elsewhere", number, "1")
        claims = Claims(engine.database, engine._permits, identity, 60.0)
        idle = 0
        while idle < 20:
            claims.beat()
            found = claims.claim("pictures", 1)
            idle = 0 if found else idle + 1
            for claim in found:
                claims.progress(claim, 1, 2, None)
                claims.finish(claim, "succeeded")
                done.append(claim.id)
            time.sleep(0 if found else 0.1)

    def guarded(work: object, number: int) -> None:
        try:
            work(number)  # type: ignore[operator]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(submitter, n)) for n in range(4)]
    threads += [threading.Thread(target=guarded, args=(worker, n)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    jobs = engine.jobs(limit=1000)
    assert len(jobs) == 60
    assert {job.state for job in jobs} <= TERMINAL
    succeeded = [job.id for job in jobs if job.state == "succeeded"]
    assert sorted(done) == sorted(set(done))
    assert set(succeeded) <= set(done)
    assert all(job.attempts == 1 for job in jobs if job.state == "succeeded")


def test_a_plain_begin_would_find_it_locked(engine: DurableEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: read first, ask for the write lock later, and another writer was there before."""
    real = sa.Connection.exec_driver_sql

    def plain(self: sa.Connection, statement: str, *args: object, **kwargs: object) -> object:
        return real(self, "BEGIN" if statement == "BEGIN IMMEDIATE" else statement, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(sa.Connection, "exec_driver_sql", plain)
    monkeypatch.setattr(engine.database, "_turn", contextlib.nullcontext())  # threads take turns otherwise
    errors: list[BaseException] = []

    def submit(number: int) -> None:
        for i in range(40):
            try:
                engine.submit(request(seed=number * 100 + i), key=f"{number}-{i}")
            except StorageError as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any("locked" in str(error) for error in errors)


class FullLog(io.StringIO):
    """A log on a disk that is full."""

    def write(self, text: str, /) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_cannot_be_said_stops_no_work(fast_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is on the disk that is full: what goes wrong there is told to nobody, and nothing else is."""
    worker = Worker(WorkerSettings(folder=str(fast_folder), hands=light_hands.COMMAND))
    store = QueueStore(worker._database, worker._permits, 10)
    bad, good = (store.submit(request(words), None).id for words in ("fail", "draw"))
    real, calls = Claims.finish, []

    def finish(self: Claims, *arguments: Any, **settings: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise StorageError("the database refused: database or disk is full; free some space")
        real(self, *arguments, **settings)

    monkeypatch.setattr(Claims, "finish", finish)
    try:
        with monkeypatch.context() as changed:
            changed.setattr(sys, "stderr", FullLog())
            worker._take("pictures")
        assert [store.job(id).state for id in (bad, good)] == ["failed", "succeeded"]
        assert [store.job(id).attempts for id in (bad, good)] == [1, 1]
    finally:
        worker.stop()
        for keeper in worker._keepers.values():
            keeper.stop()
        worker._permits.close()
        worker._database.close()
