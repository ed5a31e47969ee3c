"""A fleet whose line to the database is cut, dumb or slow: that of one worker, and that of the server."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import light_hands
import pytest
from cut_line import Line, State
from test_queue_fleet import Fleet, postgres_server, postgres_url, request, worker

sys.path.insert(0, str(Path(__file__).parent.parent / "surface"))
from http_server import Served

from vitrail.errors import UnreachableError
from vitrail.serving.durable import DurableEngine
from vitrail.serving.queue_worker import Worker
from vitrail.store import postgres
from vitrail.store.database import Database
from vitrail.store.gallery import Gallery, picture_id

__all__ = ["postgres_server", "postgres_url", "worker"]

ANSWER = 2.0
IMPATIENT = (
    "from vitrail.store import postgres; from vitrail.serving import queue_worker; "
    f"postgres.ANSWER_SECONDS = {ANSWER}; postgres._LIMITS['connect_timeout'] = 2; queue_worker.main()"
)


@pytest.fixture
def line(postgres_server: Any) -> Iterator[Line]:
    with Line(postgres_server.port) as made:
        yield made


@pytest.fixture
def fleet(postgres_url: str, fast_folder: Path, line: Line) -> Iterator[Fleet]:
    made = Fleet(postgres_url, fast_folder)
    yield made
    made.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connections of this process wait for an answer for seconds only."""
    monkeypatch.setattr(postgres, "ANSWER_SECONDS", ANSWER)
    monkeypatch.setitem(postgres._LIMITS, "connect_timeout", 2)
    postgres._bounded.cache_clear()
    yield
    postgres._bounded.cache_clear()


def everything_once(fleet: Fleet, ids: list[str], pictures: int) -> None:
    """Nothing lost, nothing doubled: rows, files and events."""
    done = {job.id: job for job in fleet.ended(len(ids))}
    assert {done[id].state for id in ids} == {"succeeded"}
    assert fleet.front.gallery.count() == pictures * len(ids)
    assert fleet.front.gallery.check().whole
    files = [path for path in (Path(fleet.shared) / "pictures").rglob("*") if path.is_file()]
    assert len(files) == pictures * len(ids)
    for id in ids:
        assert [one.index for one in done[id].pictures] == list(range(pictures))
        states = [event.job.state for event in fleet.front.events(id) if event.type == "state"]
        assert states.count("succeeded") == 1


def works_again(fleet: Fleet, number: int, line: Line) -> None:
    """That worker, not started anew, takes jobs again."""
    new: set[str] = set()

    def takes() -> bool:
        new.add(fleet.front.submit(request("draw 0.2", seed=len(new))).id)
        return any(at == number and fact["job"] in new for at, fact in fleet.begun())

    fleet.until(takes)
    assert [worker.poll() for worker in fleet.workers] == [None] * len(fleet.workers)
    for id in new:
        fleet.front.cancel(id)


def cut_and_heal(fleet: Fleet, line: Line, state: State, seconds: float, jobs: int) -> None:
    fleet.start(1)
    url, fleet.url = fleet.url, line.url(fleet.url)
    fleet.start(1, program=IMPATIENT)
    fleet.url = url
    fleet.until(lambda: fleet.front.workers() == 2)
    ids = [fleet.front.submit(request("draw 0.1", seed=seed, n=2)).id for seed in range(jobs)]
    fleet.until(lambda: any(number == 1 for number, _ in fleet.begun()))
    line.set(state)
    time.sleep(seconds)
    line.set("open")
    everything_once(fleet, ids, 2)
    assert all(job.error is None for job in fleet.front.jobs())
    works_again(fleet, 1, line)


def test_a_worker_whose_line_goes_dumb_gives_up_and_comes_back(fleet: Fleet, line: Line) -> None:
    """No word from anybody: what waits for an answer would wait for hours."""
    cut_and_heal(fleet, line, "hole", 7.0, 8)


@pytest.mark.soak
@pytest.mark.parametrize("seconds", [5.0, 20.0, 60.0])
@pytest.mark.parametrize("state", ["closed", "hole", "stalled"])
def test_every_kind_of_cut(fleet: Fleet, line: Line, state: State, seconds: float) -> None:
    cut_and_heal(fleet, line, state, seconds, 24)


@pytest.mark.soak
def test_a_line_that_is_slow_all_the_time(fleet: Fleet, line: Line) -> None:
    line.delay = 0.1  # 200 ms there and back
    cut_and_heal(fleet, line, "closed", 1.0, 16)


def test_a_statement_without_an_answer_ends(line: Line, postgres_url: str, impatient: None) -> None:
    """And while the server is silent, whoever comes next does not wait for it as well."""
    database = Database(line.url(postgres_url), Path("/nowhere"))
    try:
        with database.read() as connection:
            database.now(connection)
        line.set("hole")
        began = time.monotonic()
        with pytest.raises(UnreachableError, match=r"is away"), database.read() as connection:
            database.now(connection)
        assert time.monotonic() - began < ANSWER + postgres.CONNECT_SECONDS + 5

        times: list[float] = []

        def ask() -> None:
            start = time.monotonic()
            with contextlib.suppress(UnreachableError), database.read():
                pass
            times.append(time.monotonic() - start)

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(times)[-2] < 1.0 < max(times)  # one of them asks
        line.set("open")
        with database.read() as connection:
            assert database.now(connection) > 0
    finally:
        database.close()


def test_a_server_that_is_cut_off_says_so_and_its_streams_go_on(
    line: Line, postgres_url: str, tmp_path: Path, impatient: None
) -> None:
    settings = {"database": line.url(postgres_url), "pictures": str(tmp_path / "shared")}
    other = DurableEngine(str(tmp_path / "other"), workers=0, **settings | {"database": postgres_url})  # type: ignore[arg-type]
    with contextlib.closing(other), Served(tmp_path / "front", engine=settings) as served:
        http = served.http
        id = http.post("/api/jobs", json={"prompt": "an apple"}).json()["id"]
        told: list[str] = []
        begun = threading.Event()

        def follow() -> None:
            with http.stream("GET", f"/api/jobs/{id}/events") as stream:
                begun.set()
                told.extend(line for line in stream.iter_lines() if line.startswith("event:"))

        reader = threading.Thread(target=follow)
        reader.start()
        assert begun.wait(30)
        line.set("hole")
        began = time.monotonic()
        answers = [http.get("/api/jobs") for _ in range(3)]
        assert time.monotonic() - began < 3 * (ANSWER + postgres.CONNECT_SECONDS) + 5
        for answer in [*answers, http.post("/sdapi/v1/txt2img", json={"prompt": "an apple"})]:
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            assert "database does not answer" in answer.text
            assert "127.0.0.1" not in answer.text
        assert http.get("/health").status_code == 200
        assert http.get("/ready").status_code == 503
        line.set("open")
        give_up = time.monotonic() + 60
        while http.get(f"/api/jobs/{id}").status_code != 200:
            assert time.monotonic() < give_up
            time.sleep(0.2)
        other.cancel(id)
        reader.join(30)
        assert not reader.is_alive(), "the stream did not hear of the job's end"
        assert told == ["event: state", "event: state"]


@pytest.mark.parametrize("recorded", [False, True])
def test_a_file_whose_record_was_cut_off_does_not_lie_about(
    fleet: Fleet, worker: Worker, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    """The line goes in the middle of a commit, and the job is lost and cancelled before it is back.

    A picture that another worker has recorded meanwhile (``recorded``) is left alone.
    """
    front = fleet.front
    id = front.submit(request("draw")).id
    claim = worker._claims.claim("pictures", 1)[0]
    head, data = light_hands.drawn(id, request("draw"))[0]
    real, calls = Gallery.add, []

    def cut_off(self: Gallery, *arguments: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            return real(self, *arguments, **settings)
        with contextlib.suppress(ZeroDivisionError), self.database.write():
            self.folder.write(f"pictures/{settings['id'][:2]}/{settings['id']}.png", data)
            raise ZeroDivisionError
        worker._claims.give_back(claim)
        front.cancel(id)
        if recorded:
            real(self, *arguments, **{**settings, "wanted": None, "tell": None})
        raise UnreachableError("the server closed the connection unexpectedly")

    monkeypatch.setattr(Gallery, "add", cut_off)
    assert not worker._publish({id: claim}, claim, head, data)
    assert len(calls) == 2
    report = front.gallery.check()
    assert (report.whole, report.pictures) == (True, int(recorded))
    assert front.job(id).state == "cancelled"
    if recorded:
        assert front.gallery.open(picture_id(id, 0)) == data


def test_a_claim_that_is_lost_while_its_picture_is_put_away_keeps_none(
    fleet: Fleet, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's machine sleeps at the worst moment: after it has looked, before it has written."""
    front = fleet.front
    id = front.submit(request("draw")).id
    claim = worker._claims.claim("pictures", 1)[0]
    head, data = light_hands.drawn(id, request("draw"))[0]
    real = Gallery.add

    def asleep(self: Gallery, *arguments: Any, **settings: Any) -> Any:
        worker._claims.give_back(claim)
        front.cancel(id)
        return real(self, *arguments, **settings)

    monkeypatch.setattr(Gallery, "add", asleep)
    assert not worker._publish({id: claim}, claim, head, data)
    assert front.gallery.check().pictures == 0


def test_a_laptop_that_slept_takes_nobody_for_dead(fast_folder: Path) -> None:
    """Worker and working process are stopped for longer than either may be silent, and go on."""
    with DurableEngine(
        str(fast_folder), hands=light_hands.COMMAND, silence=1.5, stall=1.5, device="cpu"
    ) as engine:
        id = engine.submit(request("draw 0.2", steps=6)).id
        next(event for event in engine.events(id, timeout=60) if event.type == "progress")
        worker = engine._workers[0]._process
        assert worker is not None
        pids = [worker.pid, light_hands.begun(fast_folder)[0]["pid"]]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(3.0)
        os.kill(pids[0], signal.SIGCONT)
        time.sleep(0.5)
        os.kill(pids[1], signal.SIGCONT)
        job = list(engine.events(id, timeout=60))[-1].job
        assert (job.state, job.attempts) == ("succeeded", 1)
        assert [fact["pid"] for fact in light_hands.begun(fast_folder)] == pids[1:]
