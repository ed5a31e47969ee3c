"""A fleet on a real PostgreSQL: workers that know each other by the database alone, one of them cut off."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import light_hands
import pytest
import sqlalchemy as sa

from vitrail.errors import QueueFullError, StorageError, UnreachableError
from vitrail.schema import TextToImageRequest
from vitrail.serving import queue_store
from vitrail.serving.durable import DurableEngine
from vitrail.serving.jobs import TERMINAL, Job
from vitrail.serving.processes import Identity
from vitrail.serving.queue_claims import Claim, Claims, take_back_lost
from vitrail.serving.queue_tables import JOBS, WORKERS
from vitrail.serving.queue_worker import Worker, WorkerSettings
from vitrail.store.gallery import Gallery, Picture

sys.path.insert(0, str(Path(__file__).parents[1]))

from postgres import postgres_server, postgres_url

if TYPE_CHECKING:
    from postgres import PostgresServer

__all__ = ["postgres_server", "postgres_url"]

WAIT = 120.0


class Fleet:
    """A front end without workers, and workers in processes of their own: only the database joins them."""

    def __init__(self, url: str, folder: Path, pictures: str | None = None) -> None:
        self.url, self.folder = url, folder
        self.shared = pictures or str(folder / "shared")
        self.front = DurableEngine(str(folder / "front"), database=url, pictures=self.shared, workers=0)
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self, number: int, program: str | None = None, **settings: Any) -> None:
        for _ in range(number):
            folder = self.folder / f"worker{len(self.workers)}"
            folder.mkdir()
            chosen = WorkerSettings(
                folder=str(folder),
                database=self.url,
                pictures=self.shared,
                hands=light_hands.COMMAND,
                lease=5.0,
                **settings,
            )
            how = ["-m", "vitrail.serving.queue_worker"] if program is None else ["-c", program]
            process = subprocess.Popen([sys.executable, *how], stdin=subprocess.PIPE)
            assert process.stdin is not None
            process.stdin.write(chosen.model_dump_json().encode() + b"\n")
            process.stdin.flush()
            self.workers.append(process)
        self.until(lambda: self.front.workers() >= number)

    def begun(self) -> list[tuple[int, dict[str, Any]]]:
        return [
            (number, fact)
            for number in range(len(self.workers))
            for fact in light_hands.begun(self.folder / f"worker{number}")
        ]

    def until(self, found: Callable[[], bool]) -> None:
        give_up = time.monotonic() + WAIT
        while not found():
            assert time.monotonic() < give_up, Counter(job.state for job in self.front.jobs(limit=1000))
            time.sleep(0.1)

    def ended(self, number: int) -> list[Job]:
        self.until(lambda: sum(job.state in TERMINAL for job in self.front.jobs(limit=1000)) == number)
        return self.front.jobs(limit=1000)

    def close(self) -> None:
        for worker in self.workers:
            assert worker.stdin is not None
            worker.stdin.close()
        for worker in self.workers:
            worker.wait(30)
        self.front.close()


@pytest.fixture
def fleet(postgres_url: str, fast_folder: Path) -> Iterator[Fleet]:
    made = Fleet(postgres_url, fast_folder)
    yield made
    made.close()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address in an object store that this process serves."""
    pytest.importorskip("s3fs", reason="needs the extra s3")
    fsspec = pytest.importorskip("fsspec")
    moto = pytest.importorskip("moto.server", reason="needs moto[server]")
    botocore = pytest.importorskip("botocore.session")
    store = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    address = "http://{}:{}".format(*store.get_host_and_port())
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", address)  # for the workers; this process has read it
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": address})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    client = botocore.get_session().create_client("s3", endpoint_url=address, region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    client.close()
    yield "s3://bucket/art"
    store.stop()


def request(prompt: str = "draw 0.02", **settings: Any) -> TextToImageRequest:
    return TextToImageRequest(**{"prompt": prompt, "steps": 3, "seed": 7, **settings})


def test_three_workers_one_killed_in_the_middle_of_a_job(fleet: Fleet) -> None:
    """Nothing lost, nothing doubled; a job of another machine is cancelled within seconds; then one stops in
    good order.
    """
    fleet.start(3, batch=2)
    ids = [fleet.front.submit(request(seed=i, n=2)).id for i in range(10)]
    slow = fleet.front.submit(request("draw 0.4", steps=50)).id
    ids += [fleet.front.submit(request(seed=i, n=2)).id for i in range(10, 40)]
    fleet.until(lambda: any(fact["job"] == slow for _, fact in fleet.begun()))
    victim, fact = next((number, fact) for number, fact in fleet.begun() if fact["job"] == slow)

    fleet.workers[victim].kill()
    give_up = time.monotonic() + 20
    while Path(f"/proc/{fact['pid']}").exists() and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not Path(f"/proc/{fact['pid']}").exists(), "the working process outlived its worker"
    fleet.until(lambda: fleet.front.job(slow).attempts == 2)
    assert fleet.front.job(slow).error is None
    where = [number for number, fact in fleet.begun() if fact["job"] == slow]
    fleet.until(lambda: len([fact for _, fact in fleet.begun() if fact["job"] == slow]) == 2)
    where = [number for number, fact in fleet.begun() if fact["job"] == slow]
    assert len(set(where)) == 2

    start = time.monotonic()
    fleet.front.cancel(slow)
    fleet.until(lambda: fleet.front.job(slow).state == "cancelled")
    assert time.monotonic() - start < 5

    done = {job.id: job for job in fleet.ended(41)}
    assert {done[id].state for id in ids} == {"succeeded"}
    assert fleet.front.gallery.count() == 80
    assert fleet.front.gallery.check().whole
    for id in ids:
        assert [one.index for one in done[id].pictures] == [0, 1]
        assert len(fleet.front.gallery.page(job=id).pictures) == 2
    times = Counter(fact["job"] for _, fact in fleet.begun())
    assert all(1 <= times[id] <= done[id].attempts for id in ids)  # begun again only if it was lost
    assert len({number for number, _ in fleet.begun()}) == 3
    assert fleet.front.workers() == 2


def test_two_workers_put_their_pictures_into_an_object_store(
    bucket: str, postgres_url: str, fast_folder: Path
) -> None:
    fleet = Fleet(postgres_url, fast_folder, bucket)
    try:
        fleet.start(2)
        ids = [fleet.front.submit(request(seed=seed, n=2)).id for seed in range(8)]
        assert {job.state for job in fleet.ended(8)} == {"succeeded"}
        gallery = fleet.front.gallery
        assert gallery.count() == 16
        assert gallery.check().whole
        first = fleet.front.job(ids[0]).pictures[0].id
        assert gallery.open(first).startswith(b"\x89PNG")
        gallery.delete(first)
        assert gallery.count() == 15
        assert gallery.check().whole
        assert {number for number, _ in fleet.begun()} == {0, 1}
    finally:
        fleet.close()


def test_a_worker_that_stops_gives_back_what_it_was_doing(fleet: Fleet) -> None:
    fleet.start(1)
    id = fleet.front.submit(request("draw 0.3", steps=100)).id
    fleet.until(lambda: fleet.front.job(id).step > 0)
    first = fleet.workers[0]
    assert first.stdin is not None
    first.stdin.close()
    assert first.wait(30) == 0
    assert fleet.front.job(id).state == "queued"
    assert fleet.front.workers() == 0
    fleet.start(1)
    fleet.until(lambda: fleet.front.job(id).step > 0)
    job = fleet.front.job(id)
    assert (job.state, job.attempts) == ("running", 2)
    fleet.front.cancel(id)
    fleet.ended(1)


def test_a_worker_that_was_cut_off_and_comes_back_doubles_nothing(fleet: Fleet) -> None:
    """SIGSTOP in the middle of a job is a machine that lost its network: another takes the job over."""
    fleet.start(2)
    id = fleet.front.submit(request("draw 0.1", steps=10)).id
    fleet.until(lambda: len(fleet.begun()) == 1)
    number, fact = fleet.begun()[0]
    stopped = (fleet.workers[number].pid, fact["pid"])
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        fleet.until(lambda: fleet.front.job(id).attempts == 2)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    job = fleet.ended(1)[0]
    time.sleep(1.5)  # the first one ends too, and says so to nobody
    assert fleet.front.job(id) == job
    assert (job.state, job.attempts, len(job.pictures)) == ("succeeded", 2, 1)
    assert fleet.front.gallery.count() == 1
    states = [event.job.state for event in fleet.front.events(id) if event.type == "state"]
    assert states == ["queued", "running", "queued", "running", "succeeded"]


def test_the_database_is_killed_in_the_middle_of_jobs_and_comes_back(
    fleet: Fleet, postgres_server: PostgresServer
) -> None:
    """Twice, once for longer than a lease: nothing accepted is lost, nothing doubled, no worker restarted."""
    fleet.start(3, batch=2)
    asked = [request("draw 0.1", seed=seed, n=2) for seed in range(30)]
    ids: list[str] = []
    for away in (0.0, 7.0):
        began = len(fleet.begun())
        ids += [fleet.front.submit(one).id for one in asked[len(ids) :][:12]]
        fleet.until(lambda began=began: len(fleet.begun()) >= began + 3)  # type: ignore[misc]
        postgres_server.stop(kill=True)
        with pytest.raises(StorageError):
            fleet.front.submit(asked[-1])  # refused, and not done all the same
        time.sleep(away)
        postgres_server.start()
    ids += [fleet.front.submit(one).id for one in asked[24:]]
    done = {job.id: job for job in fleet.ended(30)}
    assert set(done) == set(ids)
    assert {job.state for job in done.values()} == {"succeeded"}
    for id, job in done.items():
        assert [one.index for one in job.pictures] == [0, 1]
        assert len(fleet.front.gallery.page(job=id).pictures) == 2
        states = [event.job.state for event in fleet.front.events(id) if event.type == "state"]
        assert states.count("succeeded") == 1
    assert fleet.front.gallery.count() == 60
    assert fleet.front.gallery.check().whole
    assert [worker.poll() for worker in fleet.workers] == [None] * 3
    times = Counter(fact["job"] for _, fact in fleet.begun())
    assert all(times[id] >= 1 for id in ids)
    new: set[str] = set()

    def all_take_jobs() -> bool:
        new.add(fleet.front.submit(request("draw 0.2", seed=len(new))).id)
        return {number for number, fact in fleet.begun() if fact["job"] in new} == {0, 1, 2}

    fleet.until(all_take_jobs)
    fleet.ended(30 + len(new))


@pytest.fixture
def worker(fleet: Fleet) -> Iterator[Worker]:
    """A worker of this process, which does only what it is told to."""
    settings = WorkerSettings(
        folder=str(fleet.folder / "here"),
        database=fleet.url,
        pictures=fleet.shared,
        hands=light_hands.COMMAND,
    )
    made = Worker(settings)
    yield made
    made.stop()
    for keeper in made._keepers.values():
        keeper.stop()
    made._permits.close()
    made._database.close()


def test_a_picture_that_was_put_away_outlives_a_crash_of_the_database_alone(
    fleet: Fleet, worker: Worker, postgres_server: PostgresServer
) -> None:
    """Its worker lives on and makes no second one: what it was told is done must be on the disk."""
    front = fleet.front
    id = front.submit(request(n=2)).id
    claim = worker._claims.claim("pictures", 1)[0]
    for head, data in light_hands.drawn(id, request(n=2)):
        assert worker._publish({id: claim}, claim, {**head, "last": False}, data)
    postgres_server.stop(kill=True)
    postgres_server.start()
    assert [one.index for one in front.job(id).pictures] == [0, 1]
    assert front.gallery.count() == 2
    assert front.gallery.check().whole


@pytest.mark.parametrize("number", [0, 1])
def test_a_picture_whose_commit_got_no_answer_is_put_away_once(
    fleet: Fleet, worker: Worker, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The first of two, or the last with the job's end: to be told again is no mistake of the job's."""
    id = fleet.front.submit(request("draw", n=2)).id
    real, calls = Gallery.add, []

    def add(self: Gallery, *args: Any, **settings: Any) -> Picture:
        calls.append(real(self, *args, **settings))
        if len(calls) == number + 1:
            raise UnreachableError("the server closed the connection unexpectedly")
        return calls[-1]

    monkeypatch.setattr(Gallery, "add", add)
    worker._take("pictures")
    job = fleet.front.job(id)
    assert (job.state, job.attempts) == ("succeeded", 1)
    assert [one.index for one in job.pictures] == [0, 1]
    assert fleet.front.gallery.check().whole
    assert fleet.front.gallery.count() == 2


def test_a_claim_that_was_cut_off_after_its_commit_is_given_back(
    fleet: Fleet, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database took it and its answer was lost: a worker that lives must not hold it for ever."""
    ids = [fleet.front.submit(request("draw", seed=seed)).id for seed in range(2)]
    real, calls = Claims.claim, []

    def claim(self: Claims, *args: Any, **settings: Any) -> list[Claim]:
        calls.append(real(self, *args, **settings))
        if len(calls) == 1:
            raise StorageError("the server closed the connection unexpectedly")
        return calls[-1]

    monkeypatch.setattr(Claims, "claim", claim)
    worker._take("pictures")
    jobs = [fleet.front.job(id) for id in ids]
    assert [job.state for job in jobs] == ["succeeded"] * 2
    assert [job.attempts for job in jobs] == [2, 2]
    assert fleet.front.gallery.count() == 2


def test_whoever_is_cut_off_inside_a_transaction_loses_its_locks(fleet: Fleet) -> None:
    """A machine stops between two statements, with a job and its own sign of life locked: others go on."""
    front = fleet.front
    gone = Claims(front.database, front._permits, Identity("gone", "elsewhere", 1, "1"), 1.0)
    gone.beat()
    id = front.submit(request()).id
    gone.claim("pictures", 1)
    with contextlib.suppress(StorageError), front.database.write() as connection:
        connection.execute(sa.update(JOBS).where(JOBS.c.id == id).values(step=1))
        connection.execute(sa.update(WORKERS).values(until=WORKERS.c.until))
        start = time.monotonic()
        while take_back_lost(front.database, front._permits) == 0:
            assert time.monotonic() - start < 30
            time.sleep(0.2)
        connection.execute(sa.select(JOBS))  # it notices now that it was cut off
        raise AssertionError("the session lives still")
    job = front.job(id)
    assert (job.state, job.step) == ("queued", 0)


def test_keys_limits_and_order_hold_between_two_front_ends(fleet: Fleet) -> None:
    with DurableEngine(
        str(fleet.folder / "second"),
        database=fleet.url,
        pictures=fleet.shared,
        workers=0,
        queue_limit=3,
    ) as second:
        one = fleet.front.submit(request(), key="k")
        assert second.submit(request(), key="k").id == one.id
        two, three = second.submit(request(seed=2)).id, fleet.front.submit(request(seed=3)).id
        with pytest.raises(QueueFullError):
            second.submit(request(seed=4))
        second.move(three, before=one.id)
        assert [job.id for job in fleet.front.jobs()] == [three, one.id, two]
        assert fleet.front.cancel(two).state == second.job(two).state == "cancelled"
        assert json.loads(second.job(one.id).model_dump_json())["state"] == "queued"


def test_two_moves_at_the_same_moment_do_not_wait_for_each_other(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has locked the job that it moves, and wants the one before which it goes, which is the other's."""
    front, real = fleet.front, queue_store._waiting_row
    first, second = (front.submit(request(seed=seed)).id for seed in range(2))
    both = threading.Barrier(2, timeout=1.0)

    def waiting_row(connection: sa.Connection, id: str) -> Any:
        row = real(connection, id)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait()
        return row

    monkeypatch.setattr(queue_store, "_waiting_row", waiting_row)
    with ThreadPoolExecutor(2) as pool:
        moves = [
            pool.submit(front.move, id, before=before) for id, before in ((first, second), (second, first))
        ]
    assert {move.result().id for move in moves} == {first, second}
    assert {job.position for job in front.jobs()} == {0, 1}
