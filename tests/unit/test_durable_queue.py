"""The queue's tables without any process: what is accepted, how it is taken, who may still speak."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from vitrail.errors import InputError, QueueFullError, UnknownJobError
from vitrail.schema import TextToImageRequest, parse
from vitrail.serving import queue_claims
from vitrail.serving.long_work import BuildDataRequest
from vitrail.serving.processes import Identity
from vitrail.serving.queue_claims import Claims, LostClaimError, take_back_lost
from vitrail.serving.queue_permits import Permits
from vitrail.serving.queue_store import QueueStore
from vitrail.serving.queue_tables import TABLES
from vitrail.store.database import Database
from vitrail.store.gallery import Picture


def request(prompt: str = "a red cat", **settings: Any) -> TextToImageRequest:
    return parse(TextToImageRequest, {"prompt": prompt, "seed": 7, **settings})


class Queue:
    """A queue in a file, and workers of it that are no processes."""

    def __init__(self, folder: Path, limit: int = 100, beside: int = 0) -> None:
        self.database = Database(None, folder / "vitrail.sqlite")
        self.database.create(TABLES)
        self.permits = Permits(self.database)
        self.store = QueueStore(self.database, self.permits, limit, beside=beside)

    def worker(self, name: str, lease: float = 60.0) -> Claims:
        # Of another machine: whether its process lives cannot be seen, only that it says so.
        claims = Claims(self.database, self.permits, Identity(name, "elsewhere", 1, "1"), lease)
        claims.beat()
        return claims

    def submit(self, prompt: str = "a red cat", key: str | None = None, **settings: Any) -> str:
        return self.store.submit(request(prompt, **settings), key).id

    def close(self) -> None:
        self.permits.close()
        self.database.close()


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    made = Queue(tmp_path)
    yield made
    made.close()


@pytest.fixture
def make_queue(tmp_path: Path) -> Iterator[Callable[..., Queue]]:
    made: list[Queue] = []

    def make(**settings: Any) -> Queue:
        made.append(Queue(tmp_path, **settings))
        return made[-1]

    yield make
    for queue in made:
        queue.close()


def picture(id: str, job: str) -> Picture:
    about: dict[str, Any] = dict.fromkeys(Picture.__dataclass_fields__)
    return Picture(**about | {"id": id, "job": job, "width": 8, "height": 9, "seed": 7})


def test_the_same_key_is_the_same_job_and_another_request_under_it_is_refused(queue: Queue) -> None:
    first = queue.store.submit(request(), "k")
    assert queue.store.submit(request(), "k").id == first.id
    with pytest.raises(InputError, match="used for another request"):
        queue.store.submit(request("a blue cat"), "k")
    assert queue.store.submit(request(), "other").id != first.id
    assert queue.store.submit(request(), None).id != queue.store.submit(request(), None).id
    # Without a seed each run draws its own, but a retry is the same request.
    open_seed = parse(TextToImageRequest, {"prompt": "a red cat"})
    one = queue.store.submit(open_seed, "open")
    again = queue.store.submit(open_seed, "open")
    assert one.id == again.id
    assert one.request["seed"] is not None
    for key in ("", "k" * 256, "a\nb"):
        with pytest.raises(InputError, match="idempotency key"):
            queue.store.submit(request(), key)


def test_a_key_that_comes_in_from_many_sides_at_once_is_one_job(queue: Queue) -> None:
    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.append(queue.submit(key="k"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == 1


def test_at_the_limit_one_more_is_refused_until_one_is_taken(make_queue: Callable[..., Queue]) -> None:
    queue = make_queue(limit=2)
    queue.submit(key="a")
    queue.submit()
    with pytest.raises(QueueFullError, match="2 jobs wait already, and 2 are allowed") as caught:
        queue.submit()
    assert caught.value.retry_after > 0
    assert queue.submit(key="a")  # a retry takes no place
    queue.worker("w").claim("pictures", 1)
    queue.submit()


def test_jobs_are_taken_as_they_came_and_moved_ones_where_they_were_moved(queue: Queue) -> None:
    a, b, c, d = (queue.submit(name) for name in "abcd")
    assert [queue.store.job(id).position for id in (a, b, c, d)] == [0, 1, 2, 3]
    queue.store.move(d, b)
    queue.store.move(a, None)
    assert [job.id for job in queue.store.jobs(None, 10, None)] == [d, b, c, a]
    assert queue.store.job(a).position == 3
    e = queue.submit("e")
    worker = queue.worker("w")
    assert [worker.claim("pictures", 1)[0].id for _ in range(5)] == [d, b, c, a, e]
    assert worker.claim("pictures", 1) == []


def test_a_place_between_two_can_be_taken_without_end(queue: Queue) -> None:
    ids = [queue.submit() for _ in range(3)]
    for _ in range(40):  # each halves the room before the last one; it is dealt out anew in between
        queue.store.move(ids[0], ids[2])
        ids[0], ids[1] = ids[1], ids[0]
        assert [job.id for job in queue.store.jobs(None, 10, None)] == ids
    last = queue.submit()
    assert [job.id for job in queue.store.jobs(None, 10, None)] == [*ids, last]


def test_only_what_waits_is_moved(queue: Queue) -> None:
    running, waiting = queue.submit(), queue.submit()
    queue.worker("w").claim("pictures", 1)
    for id, before in ((running, None), (waiting, running)):
        with pytest.raises(InputError, match="this job is running; only jobs that wait"):
            queue.store.move(id, before)
    with pytest.raises(InputError, match="before itself"):
        queue.store.move(waiting, waiting)
    with pytest.raises(UnknownJobError):
        queue.store.move(waiting, "nobody")


def test_lists_begin_with_what_waits_and_go_on_where_they_ended(queue: Queue) -> None:
    ids = [queue.submit(str(i)) for i in range(6)]
    worker = queue.worker("w")
    for _ in range(2):
        claim = worker.claim("pictures", 1)[0]
        worker.finish(claim, "succeeded")
    worker.claim("pictures", 1)
    expected = [*ids[3:], ids[2], ids[1], ids[0]]
    assert [job.id for job in queue.store.jobs(None, 10, None)] == expected
    seen: list[str] = []
    while page := queue.store.jobs(None, 2, seen[-1] if seen else None):
        seen += [job.id for job in page]
    assert seen == expected
    done = queue.store.jobs(frozenset({"succeeded"}), 10, None)
    assert [job.id for job in done] == [ids[1], ids[0]]
    assert queue.store.jobs(frozenset({"queued"}), 1, None)[0].id == ids[3]
    with pytest.raises(InputError, match="allowed 1 to"):
        queue.store.jobs(None, 0, None)


def test_events_have_every_state_and_picture_and_the_newest_progress(queue: Queue) -> None:
    id = queue.submit()
    worker = queue.worker("w")
    claim = worker.claim("pictures", 1)[0]
    for step in range(1, 4):
        assert worker.progress(claim, step, 4, 1.5)
    worker.preview(claim, b"png")
    events, ended = queue.store.fresh(id, 0)
    assert [(event.type, event.job.state) for event in events] == [
        ("state", "queued"),
        ("state", "running"),
        ("progress", "running"),
        ("preview", "running"),
    ]
    assert not ended
    assert events[0].job.position == 0
    assert (events[2].job.step, events[2].job.steps, events[2].job.eta) == (3, 4, 1.5)
    assert queue.store.preview(id) == b"png"
    with queue.database.write() as connection:
        worker.hold(connection, claim)
        worker.picture(connection, claim, 0, picture("p0", id))
    worker.finish(claim, "succeeded", hints=["a hint"])
    later, ended = queue.store.fresh(id, events[-1].seq)
    assert [(event.type, event.job.state, event.picture) for event in later] == [
        ("picture", "running", "p0"),
        ("state", "succeeded", None),
    ]
    assert ended
    assert later[-1].job == queue.store.job(id)
    assert later[-1].job.hints == ("a hint",)
    assert [picture.id for picture in later[-1].job.pictures] == ["p0"]
    assert later[0].job.error is None
    all_of_them, _ = queue.store.fresh(id, 0)
    numbers = [event.seq for event in all_of_them]
    assert numbers == sorted(set(numbers))
    assert [len(event.job.pictures) for event in all_of_them] == [0, 0, 1, 1]
    assert queue.store.preview(id) is None
    assert queue.store.fresh(id, 99) == ([], True)


def test_a_picture_that_is_noted_again_is_noted_once(queue: Queue) -> None:
    """By the same attempt: its commit was made, and the answer was lost."""
    id = queue.submit(n=2)
    worker = queue.worker("one")
    claim = worker.claim("pictures", 1)[0]
    for _ in range(2):
        with queue.database.write() as connection:
            worker.hold(connection, claim)
            worker.picture(connection, claim, 0, picture("p0", id))
    assert [(one.id, one.index) for one in queue.store.job(id).pictures] == [("p0", 0)]


@pytest.mark.parametrize(("beside", "living", "permits"), [(0, 0, 3), (1, 1, 1), (1, 2, 3)])
def test_as_many_permits_wait_as_are_needed(
    make_queue: Callable[..., Queue], beside: int, living: int, permits: int
) -> None:
    queue = make_queue(beside=beside)
    for number in range(living):
        queue.worker(f"w{number}")

    def waiting() -> int:
        asked = sa.text("SELECT count(*) FROM workflow_status WHERE status = 'ENQUEUED'")
        with queue.database.read() as connection:
            return int(connection.execute(asked).scalar_one())

    for _ in range(3):
        queue.submit()
    assert waiting() == permits
    with queue.database.write() as connection:  # a worker takes them
        connection.execute(sa.text("UPDATE workflow_status SET status = 'PENDING'"))
    queue.submit()
    assert waiting() == 1
    queue.store.submit(parse(BuildDataRequest, {"what": "emoji"}), None)
    assert waiting() == 2  # another lane's


def test_whoever_lost_a_job_changes_nothing_of_it_any_more(queue: Queue) -> None:
    id = queue.submit()
    late = queue.worker("late", lease=0.0)
    old = late.claim("pictures", 1)[0]
    assert take_back_lost(queue.database, queue.permits) == 1
    other = queue.worker("other")
    new = other.claim("pictures", 1)[0]
    assert (new.id, new.attempt) == (id, 2)
    before = queue.store.job(id)

    late.beat()
    assert not late.progress(old, 3, 4, None)
    late.preview(old, b"late")
    late.log(old, "late")
    late.finish(old, "succeeded")
    late.finish(old, "failed", code="X", message="late")
    with queue.database.write() as connection:
        with pytest.raises(LostClaimError):
            late.hold(connection, old)
        other.hold(connection, new)
    late.give_back(old, "late")
    assert late.unwanted([old]) == {id}
    assert queue.store.job(id) == before
    assert queue.store.preview(id) is None

    assert other.unwanted([new]) == set()
    # The same worker at an earlier attempt is no better than another one.
    assert not other.progress(replace(new, attempt=1), 1, 4, None)
    assert other.progress(new, 1, 4, None)


def test_a_worker_that_says_so_lives_and_keeps_its_job(queue: Queue) -> None:
    queue.submit()
    worker = queue.worker("w")
    worker.claim("pictures", 1)
    assert take_back_lost(queue.database, queue.permits) == 0
    worker.leave()
    assert take_back_lost(queue.database, queue.permits) == 1
    assert queue.store.job(queue.store.jobs(None, 1, None)[0].id).state == "queued"


@pytest.mark.parametrize("hours", [3, -3])
def test_a_clock_that_is_set_takes_no_job_from_who_lives(
    queue: Queue, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a machine that slept; and who died before it is found out a little later."""
    passed, set_by = 0.0, 0.0
    began, began_at = time.monotonic(), time.time()
    monkeypatch.setattr(time, "monotonic", lambda: began + passed)
    monkeypatch.setattr(Database, "now", lambda self, connection: began_at + passed + set_by)
    queue.submit()
    queue.submit()
    lives, died, looks = (queue.worker(name, lease=15.0) for name in ("lives", "died", "looks"))
    held = {worker: worker.claim("pictures", 1)[0] for worker in (lives, died)}
    passed = 2.0
    looks.beat()
    assert looks.take_back_lost() == 0
    set_by = 3600.0 * hours
    looks.beat()
    assert looks.take_back_lost() == 0
    for passed in (4.0, 8.0, 12.0, 18.0):
        lives.beat()
        looks.beat()
        assert looks.take_back_lost() == (passed == 18.0)
    assert queue.store.job(held[lives].id).state == "running"
    assert queue.store.job(held[died].id).state == "queued"


@pytest.mark.parametrize("hours", [3, -3])
def test_a_worker_that_trusts_the_clock_takes_what_it_should_not(queue: Queue, hours: int) -> None:
    """The control: by the clock alone, all leases have lapsed."""
    queue.submit()
    queue.worker("lives", lease=15.0).claim("pictures", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "now", lambda self, connection: time.time() + 3600.0 * hours)
        assert take_back_lost(queue.database, queue.permits) == 1


def test_three_dead_workers_end_a_job_and_lost_ones_never_do(queue: Queue) -> None:
    id = queue.submit()
    worker = queue.worker("w")
    for _ in range(5):
        claim = worker.claim("pictures", 1)[0]
        worker.give_back(claim)
    for kills in range(1, 4):
        claim = worker.claim("pictures", 1)[0]
        worker.give_back(claim, "it was ended by SIGKILL")
        assert queue.store.job(id).state == ("failed" if kills == 3 else "queued")
    job = queue.store.job(id)
    assert job.error is not None
    assert job.error.code == "WorkerLost"
    assert "3 workers died" in job.error.message
    assert "SIGKILL" in job.error.message
    assert job.attempts == 8


def test_a_cancelled_job_that_comes_back_is_cancelled(queue: Queue) -> None:
    id = queue.submit()
    worker = queue.worker("w")
    claim = worker.claim("pictures", 1)[0]
    assert queue.store.cancel(id).state == "running"
    assert worker.unwanted([claim]) == {id}
    assert not worker.progress(claim, 1, 4, None)
    worker.give_back(claim)
    assert queue.store.job(id).state == "cancelled"
    assert queue.store.cancel(id).state == "cancelled"


def test_alike_jobs_are_taken_together_but_no_more_than_a_workers_share(queue: Queue) -> None:
    alike = [queue.submit(f"cat {i}", seed=i) for i in range(4)]
    other = queue.submit("a dog", steps=9)
    more = [queue.submit(f"cow {i}", seed=i) for i in range(2)]
    one = queue.worker("one")
    queue.worker("two")
    assert [claim.id for claim in one.claim("pictures", 8)] == alike[:3]  # six of them for two workers
    assert [claim.id for claim in one.claim("pictures", 2)] == [alike[3], more[0]]
    assert [claim.id for claim in one.claim("pictures", 8)] == [other]
    assert [claim.id for claim in one.claim("pictures", 8)] == [more[1]]


def test_no_more_are_taken_together_than_make_so_many_pictures(queue: Queue) -> None:
    ids = [queue.submit(seed=i, n=n) for i, n in enumerate((3, 4, 1, 1, 64, 2))]
    worker = queue.worker("w")
    taken = [[claim.id for claim in worker.claim("pictures", 8)] for _ in range(3)]
    assert taken == [ids[:3], [ids[3]], [ids[4]]]  # 8 pictures; 1, as 64 more are too many; 64


def test_those_whose_worker_died_are_alone_from_then_on(queue: Queue) -> None:
    ids = [queue.submit(seed=i) for i in range(3)]
    worker = queue.worker("w")
    claims = worker.claim("pictures", 8)
    assert len(claims) == 3
    for claim in reversed(claims):  # each comes back to the head of the queue
        worker.give_back(claim, "it died")
    assert worker.claim("pictures", 8, together=True) == []  # nobody's batch is put at risk
    assert [[claim.id for claim in worker.claim("pictures", 8)] for _ in range(3)] == [[id] for id in ids]


@pytest.mark.parametrize("defence", ["in", "out"])
def test_a_job_in_the_hands_of_the_dead_is_found(
    queue: Queue, defence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control takes the dead for living: then the job waits for ever."""
    if defence == "out":
        monkeypatch.setattr(queue_claims, "alive", lambda *_: True)
    id = queue.submit()
    dead = replace(Identity.mine("dead"), birth="another process of this number")
    claims = Claims(queue.database, queue.permits, dead, 60.0)
    claims.beat()
    claims.claim("pictures", 1)
    take_back_lost(queue.database, queue.permits)
    assert queue.store.job(id).state == ("queued" if defence == "in" else "running")


def test_times_are_told_and_never_run_backwards(queue: Queue) -> None:
    start = datetime.now(UTC)
    id = queue.submit()
    worker = queue.worker("w")
    worker.finish(worker.claim("pictures", 1)[0], "succeeded")
    job = queue.store.job(id)
    assert job.started is not None
    assert job.ended is not None
    assert start <= job.created <= job.started <= job.ended <= datetime.now(UTC)
