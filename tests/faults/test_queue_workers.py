"""The durable engine with worker processes that die, hang and are told to stop (rows Q3, Q5, M3, E5)."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import light_hands
import pytest

from vitrail.errors import InputError, UnknownJobError
from vitrail.provenance import metadata
from vitrail.schema import TextToImageRequest, parse
from vitrail.serving import durable
from vitrail.serving.durable import DurableEngine
from vitrail.serving.jobs import TERMINAL, Job, JobEngine, JobEvent
from vitrail.serving.queue_claims import Claim, Claims
from vitrail.serving.queue_keeper import Keeper, Patience
from vitrail.serving.queue_requests import store_request
from vitrail.serving.queue_watch import Watch
from vitrail.serving.queue_worker import Worker, WorkerSettings
from vitrail.store.gallery import picture_id

WAIT = 60.0


def request(prompt: str = "draw", **settings: Any) -> TextToImageRequest:
    return parse(TextToImageRequest, {"prompt": prompt, "seed": 7, "steps": 2, **settings})


def wait(engine: DurableEngine, id: str) -> Job:
    """The job once it has ended."""
    for event in engine.events(id, timeout=WAIT):
        last = event
    assert last.job.state in TERMINAL, f"nothing happened for {WAIT} s"
    return last.job


def until(engine: DurableEngine, id: str, found: Callable[[JobEvent], bool]) -> JobEvent:
    return next(event for event in engine.events(id, timeout=WAIT) if found(event))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    made = Path(tempfile.mkdtemp(prefix="vitrail-test-", dir=base))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[DurableEngine]:
    with DurableEngine(
        str(folder), hands=light_hands.COMMAND, silence=2.5, stall=2.5, batch=1, device="cpu"
    ) as made:
        yield made


def test_a_worker_tells_its_server_what_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who follows a job waits for no look at the database: here the first one comes after a minute."""
    monkeypatch.setattr(durable, "Watch", lambda store, seconds: Watch(store, 60.0))
    with DurableEngine(str(tmp_path), hands=light_hands.COMMAND, device="cpu") as engine:
        wait_for_workers(engine)
        began = time.monotonic()
        events = list(engine.events(engine.submit(request("draw 0.2", steps=3)).id, timeout=50.0))
        assert events[-1].job.state == "succeeded"
        assert {event.type for event in events} == {"state", "progress", "preview", "picture"}
        assert time.monotonic() - began < 30.0


def wait_for_workers(engine: DurableEngine) -> None:
    until = time.monotonic() + WAIT
    while not engine.workers():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_job_is_done_and_its_pictures_are_in_the_gallery(engine: DurableEngine) -> None:
    contract: JobEngine = engine
    job = contract.submit(request("draw 0.05", n=2, steps=3))
    assert (job.state, job.title, job.kind) == ("queued", "draw 0.05", "text_to_image")
    events = list(contract.events(job.id, timeout=WAIT))
    assert [event.job.state for event in events if event.type == "state"] == [
        "queued",
        "running",
        "succeeded",
    ]
    assert [event.picture for event in events if event.type == "picture"] == [
        picture_id(job.id, 0),
        picture_id(job.id, 1),
    ]
    steps = [event.job.step for event in events if event.type == "progress"]
    assert steps == sorted(steps)
    done = events[-1].job
    assert (done.step, done.steps, done.hints, done.attempts) == (6, 6, ("a hint",), 1)
    assert [(one.index, one.seed, one.width) for one in done.pictures] == [(0, 7, 16), (1, 8, 16)]
    for one in done.pictures:
        record = metadata.read(engine.gallery.open(one.id)).record
        assert record is not None
        assert (record.seed, record.index, record.request.prompt) == (one.seed, one.index, "draw 0.05")
        assert engine.gallery.get(one.id).job == job.id


def test_events_go_on_where_a_reader_left_them(engine: DurableEngine) -> None:
    job = engine.submit(request("draw 0.1", n=2, steps=4))
    stream = engine.events(job.id, timeout=WAIT)
    seen = [next(stream) for _ in range(4)]
    stream.close()  # type: ignore[attr-defined]
    assert engine.preview(job.id) is None or engine.preview(job.id).startswith(b"\x89PNG")  # type: ignore[union-attr]
    rest = list(engine.events(job.id, after=seen[-1].seq, timeout=WAIT))
    numbers = [event.seq for event in (*seen, *rest)]
    assert numbers == sorted(set(numbers))
    assert rest[-1].job.state == "succeeded"
    assert {event.picture for event in (*seen, *rest) if event.type == "picture"} == {
        picture_id(job.id, index) for index in (0, 1)
    }
    assert list(engine.events(job.id, after=rest[-1].seq)) == []


def test_a_stream_ends_when_nothing_happens_for_its_timeout(engine: DurableEngine) -> None:
    job = engine.submit(request("draw 30"))
    until(engine, job.id, lambda event: event.job.state == "running")
    start = time.monotonic()
    assert list(engine.events(job.id, after=100, timeout=0.3)) == []
    assert 0.2 < time.monotonic() - start < 5
    engine.cancel(job.id)
    with pytest.raises(UnknownJobError):
        engine.events("nobody")


@pytest.mark.alone
def test_a_cancelled_job_stops_and_the_next_begins_at_once(engine: DurableEngine) -> None:
    long, following = engine.submit(request("draw 0.2", steps=200)), engine.submit(request(seed=8))
    until(engine, long.id, lambda event: event.type == "progress")
    start = time.monotonic()
    engine.cancel(long.id)
    assert wait(engine, long.id).state == "cancelled"
    stopped = time.monotonic()
    until(engine, following.id, lambda event: event.job.state == "running")
    assert stopped - start < 2.0  # one step of 0.2 s, on a busy machine
    assert time.monotonic() - stopped < 1.0
    assert wait(engine, following.id).state == "succeeded"
    assert engine.job(long.id).pictures == ()
    assert engine.gallery.page(job=long.id).pictures == ()


def test_a_cancel_is_told_to_who_works(engine: DurableEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    say = durable._Beside.say
    monkeypatch.setattr(durable._Beside, "say", lambda self, word: (said.append(word), say(self, word))[1])
    job, behind = engine.submit(request("quiet")), engine.submit(request())
    until(engine, job.id, lambda event: event.job.state == "running")
    engine.cancel(behind.id)
    assert said == ["pictures", "pictures"]  # nobody works on that one
    engine.cancel(job.id)
    assert said[2:] == ["look"]
    assert wait(engine, job.id).state == "cancelled"


def test_a_job_is_done_whose_word_was_lost(engine: DurableEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    wait(engine, engine.submit(request()).id)  # the worker has begun, and does not look for what waited
    monkeypatch.setattr(durable._Beside, "say", lambda self, word: None)
    jobs = [engine.submit(request(seed=seed)) for seed in (1, 2)]
    began = time.monotonic()
    assert [wait(engine, job.id).state for job in jobs] == ["succeeded", "succeeded"]
    assert time.monotonic() - began < 10


def test_a_keeper_that_is_told_to_look_does_not_wait_until_it_is_time(tmp_path: Path) -> None:
    def command(descriptor: int) -> tuple[str, ...]:
        return (*light_hands.COMMAND, str(descriptor), str(os.getpid()), str(tmp_path), "{}")

    patience = Patience()
    patience.ask = 600.0
    keeper = Keeper(command, patience)
    text = store_request(request("quiet")).text
    claim = Claim("a" * 24, 1, "pictures", text, {})
    asked: list[float] = []
    told: list[str] = []
    began = time.monotonic()

    def unwanted() -> set[str]:
        asked.append(time.monotonic())
        return {claim.id}

    try:
        threading.Timer(0.2, keeper.look).start()
        handle = lambda head, body: told.append(head["tell"]) is None  # noqa: E731
        assert keeper.run([claim], handle, unwanted, lambda: ()) == set()
    finally:
        keeper.stop()
    assert told == ["cancelled"]
    assert len(asked) == 1
    assert asked[0] - began < 60


def test_work_that_does_not_stop_is_stopped(engine: DurableEngine) -> None:
    stubborn, following = engine.submit(request("stubborn")), engine.submit(request())
    until(engine, stubborn.id, lambda event: event.job.state == "running")
    start = time.monotonic()
    engine.cancel(stubborn.id)
    assert wait(engine, stubborn.id).state == "cancelled"
    assert time.monotonic() - start < 7
    assert wait(engine, following.id).state == "succeeded"


def test_a_job_that_kills_its_workers_is_given_up_after_three_and_the_others_finish(
    engine: DurableEngine, folder: Path
) -> None:
    bad, good = engine.submit(request("kill")), [engine.submit(request(seed=i)) for i in range(3)]
    job = wait(engine, bad.id)
    assert (job.state, job.attempts) == ("failed", 3)
    assert job.error is not None
    assert job.error.code == "WorkerLost"
    assert "SIGKILL, most likely for want of memory" in job.error.message
    assert [wait(engine, one.id).state for one in good] == ["succeeded"] * 3
    pids = [fact["pid"] for fact in light_hands.begun(folder) if fact["job"] == bad.id]
    assert len(set(pids)) == 3


def test_a_file_cut_short_while_it_is_mapped_kills_the_worker_alone(engine: DurableEngine) -> None:
    before = os.getpid()
    job = wait(engine, engine.submit(request("bus")).id)
    assert job.error is not None
    assert "SIGBUS, a file it read was cut short" in job.error.message
    assert wait(engine, engine.submit(request()).id).state == "succeeded"
    assert os.getpid() == before


@pytest.mark.parametrize(("prompt", "said"), [("stop", "gave no sign of life"), ("idle", "did nothing")])
def test_a_worker_that_hangs_is_noticed(engine: DurableEngine, prompt: str, said: str) -> None:
    job = wait(engine, engine.submit(request(prompt)).id)
    assert (job.state, job.attempts) == ("failed", 3)
    assert job.error is not None
    assert said in job.error.message
    assert wait(engine, engine.submit(request()).id).state == "succeeded"


def test_out_of_memory_fails_that_job_with_a_reason_and_the_next_succeeds(
    engine: DurableEngine, folder: Path
) -> None:
    jobs = [wait(engine, engine.submit(request(prompt)).id) for prompt in ("memory", "fail", "bug", "draw")]
    errors = [job.error for job in jobs]
    assert errors[0] is not None
    assert errors[1] is not None
    assert errors[2] is not None
    assert errors[0].code == "OutOfMemory"
    assert "not enough memory" in errors[0].message
    assert (errors[1].code, errors[1].message) == (
        "InputError",
        "this request cannot be served; ask for another",
    )
    assert errors[2].code == "InternalError"
    assert "RuntimeError" in errors[2].message
    assert jobs[3].state == "succeeded"
    notes = {fact["job"]: fact["pid"] for fact in light_hands.begun(folder)}
    assert len({notes[job.id] for job in jobs}) == 1  # nobody had to die for it


def made(job: Job) -> int:
    """How many pictures were asked for."""
    return int(job.request["n"])


def cancel_at_random_points(engine: DurableEngine, folder: Path, points: int) -> dict[str, int]:
    """Cancel ``points`` jobs, each at a random moment, with a bystander after each; what became of them."""
    chance = random.Random(5)
    found = {"cancelled": 0, "succeeded": 0}
    wait(engine, engine.submit(request()).id)  # its worker has started
    for point in range(points):
        job = engine.submit(request("draw 0.02", seed=point, steps=2, n=chance.randint(1, 4)))
        bystander = engine.submit(request(seed=1000 + point, steps=1))
        time.sleep(chance.random() * 0.2)
        engine.cancel(job.id)
        start = time.monotonic()
        ended = wait(engine, job.id)
        assert time.monotonic() - start < 5
        found[ended.state] += 1
        pictures = engine.gallery.page(job=job.id).pictures
        # Pictures that were finished stay, each of them told; a picture is there whole or not at all.
        assert {picture.id for picture in pictures} == {picture.id for picture in ended.pictures}
        assert len(pictures) == made(job) if ended.state == "succeeded" else len(pictures) < made(job)
        other = wait(engine, bystander.id)
        assert (other.state, len(other.pictures)) == ("succeeded", 1)
        assert other.started is not None
        assert ended.ended is not None
        assert (other.started - ended.ended).total_seconds() < 1
    files = [path for path in (folder / "pictures").rglob("*") if path.is_file()]
    assert len(files) == engine.gallery.count()
    return found


def test_a_cancel_at_any_moment_leaves_all_or_nothing_and_touches_nobody_else(
    engine: DurableEngine, folder: Path
) -> None:
    found = cancel_at_random_points(engine, folder, 100)
    assert found["cancelled"] > 20


def test_a_worker_that_was_cut_off_puts_nothing_away(
    engine: DurableEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its job was taken back and cancelled meanwhile; what it drew is in no gallery."""
    done = wait(engine, engine.submit(request()).id)
    picture = engine.gallery.get(done.pictures[0].id)
    data, told = engine.gallery.open(picture.id), {"index": 0, "suffix": ".png", "kind": None, "last": True}
    told["record"] = picture.record.to_json()
    worker = Worker(WorkerSettings(folder=str(tmp_path)))
    claim = Claim("a" * 24, 1, "pictures", "{}", {})
    assert not worker._publish({claim.id: claim}, claim, told, data)
    assert worker._gallery.count() == 0
    monkeypatch.setattr(Claims, "hold", lambda self, connection, claim: None)  # the control
    assert worker._publish({claim.id: claim}, claim, told, data)
    assert worker._gallery.count() == 1


def test_the_next_batch_is_taken_while_one_is_put_away_and_each_of_its_jobs_can_be_stopped(
    tmp_path: Path,
) -> None:
    with DurableEngine(str(tmp_path), hands=light_hands.COMMAND, device="cpu", batch=4) as engine:
        wait_for_workers(engine)
        first = engine.submit(request("draw 0.2", steps=3))
        until(engine, first.id, lambda event: event.job.state == "running")
        jobs = [engine.submit(request("draw 0.2", seed=seed)).id for seed in range(8)]
        until(engine, jobs[4], lambda event: event.job.state == "running")
        assert engine.job(jobs[3]).state == "running"  # of the batch before
        engine.cancel(jobs[6])
        start = time.monotonic()
        assert wait(engine, jobs[6]).state == "cancelled"
        assert engine.job(jobs[3]).state == "running"
        assert time.monotonic() - start < 5
        states = [wait(engine, id).state for id in (first.id, *jobs)]
        assert states == ["succeeded"] * 7 + ["cancelled"] + ["succeeded"]
        assert engine.gallery.count() == 8
        begun = light_hands.begun(tmp_path)
        assert [fact["job"] for fact in begun] == [first.id, *jobs[:6], jobs[7]]
        assert [fact["together"] for fact in begun] == [1, 4, 4, 4, 4, 3, 3, 3]


def test_what_waits_is_moved_and_cancelled_while_another_runs(engine: DurableEngine, folder: Path) -> None:
    first = engine.submit(request("draw 0.2", steps=100))
    until(engine, first.id, lambda event: event.job.state == "running")
    a, b, c = (engine.submit(request(seed=i)).id for i in range(3))
    engine.move(c, before=a)
    assert engine.cancel(b).state == "cancelled"
    assert [job.id for job in engine.jobs(states=frozenset({"queued"}))] == [c, a]
    assert engine.job(a).position == 1
    engine.cancel(first.id)
    assert wait(engine, a).state == wait(engine, c).state == "succeeded"
    begun = [fact["job"] for fact in light_hands.begun(folder)]
    assert b not in begun
    assert begun.index(c) < begun.index(a)


def test_a_worker_comes_when_there_is_a_thread_to_hear_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As where a container's processes and threads are counted."""
    real, refused = threading.Thread.start, []

    def start(self: threading.Thread) -> None:
        if "_listen" in self.name and not refused:
            refused.append(self)
            raise RuntimeError("can't start new thread")
        real(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    with DurableEngine(str(tmp_path), hands=light_hands.COMMAND) as engine:
        assert wait(engine, engine.submit(request()).id).state == "succeeded"
    assert len(refused) == 1
    assert "no worker could be started: can't start new thread; tried again" in capfd.readouterr().err


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for wrong in ({"workers": 65}, {"workers": -1}, {"queue_limit": 0}, {"database": "mysql://host/name"}):
        with pytest.raises(InputError):
            DurableEngine(str(tmp_path), **wrong)  # type: ignore[arg-type]


def test_nothing_heavy_is_loaded_by_those_who_only_ask() -> None:
    code = "import sys, vitrail.serving.durable, vitrail.serving.queue_worker; print('torch' in sys.modules)"
    import subprocess

    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
