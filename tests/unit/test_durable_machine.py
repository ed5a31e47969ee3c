"""Q6: any sequence of what can be done to the queue, against a queue that is a few lists (hypothesis)."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from vitrail.errors import InputError, QueueFullError
from vitrail.schema import TextToImageRequest
from vitrail.serving import queue_store
from vitrail.serving.processes import Identity
from vitrail.serving.queue_claims import Claim, Claims, take_back_lost
from vitrail.serving.queue_permits import Permits
from vitrail.serving.queue_store import QueueStore
from vitrail.serving.queue_tables import TABLES
from vitrail.store.database import Database

LIMIT = 5
WORKERS = ("a", "b", "c")


MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@functools.cache
def queue() -> tuple[Database, Permits]:
    """A database with all tables, made once: what SQLAlchemy has compiled for one serves every sequence."""
    folder = tempfile.mkdtemp(prefix="vitrail-machine-", dir=MEMORY)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    database = Database(None, Path(folder) / "vitrail.sqlite")
    database.create(TABLES)
    return database, Permits(database)


def empty(database: Database) -> None:
    """Take away what one sequence left in the tables of the queue and of DBOS."""
    with database.write() as connection:
        found = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        tables = [row.name for row in connection.exec_driver_sql(found)]
        assert {"jobs", "workflow_status"} <= set(tables)
        for table in tables:
            if "migration" not in table:
                connection.exec_driver_sql(f'DELETE FROM "{table}"')


@dataclass
class Known:
    """What the model knows of a job."""

    prompt: str
    state: str = "queued"
    kills: int = 0
    attempts: int = 0
    worker: str | None = None
    cancel: bool = False
    states: list[str] = field(default_factory=lambda: ["queued"])

    def become(self, state: str) -> None:
        self.state = state
        self.states.append(state)


class Machine(RuleBasedStateMachine):
    """The queue beside its model: ``jobs`` by id, and ``order``, what waits as it will be taken.

    A job that comes back stands before all others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.database, self.permits = queue()
        empty(self.database)
        self.store = QueueStore(self.database, self.permits, LIMIT)
        self.claims: dict[str, Claims] = {}
        self.held: dict[str, Claim] = {}
        self.jobs: dict[str, Known] = {}
        self.keys: dict[str, str] = {}
        self.order: list[str] = []

    @rule(prompt=st.sampled_from("xy"), key=st.none() | st.sampled_from("kl"))
    def submit(self, prompt: str, key: str | None) -> None:
        request = TextToImageRequest(prompt=prompt, seed=1)
        known = self.keys.get(key or "")
        if known is not None and self.jobs[known].prompt != prompt:
            with contextlib.suppress(InputError):
                self.store.submit(request, key)
                raise AssertionError("a key was taken for another request")
            return
        if known is None and len(self.order) >= LIMIT:
            with contextlib.suppress(QueueFullError):
                self.store.submit(request, key)
                raise AssertionError("more were accepted than may wait")
            return
        id = self.store.submit(request, key).id
        if known is not None:
            assert id == known
            return
        assert id not in self.jobs
        self.jobs[id] = Known(prompt)
        self.order.append(id)
        if key is not None:
            self.keys[key] = id

    @rule(worker=st.sampled_from(WORKERS))
    def claim(self, worker: str) -> None:
        if worker in self.held:
            return
        if worker not in self.claims:
            identity = Identity(worker, "elsewhere", 1, "1")
            self.claims[worker] = Claims(self.database, self.permits, identity, 100.0)
        self.claims[worker].beat()
        found = self.claims[worker].claim("pictures", 1)
        assert [claim.id for claim in found] == self.order[:1]
        for claim in found:
            job = self.jobs[claim.id]
            job.attempts += 1
            assert claim.attempt == job.attempts
            job.worker = worker
            job.become("running")
            self.order.remove(claim.id)
            self.held[worker] = claim

    @precondition(lambda self: self.held)
    @rule(data=st.data(), how=st.sampled_from(["succeeded", "failed", "cancelled", "back", "killed", "step"]))
    def work(self, data: st.DataObject, how: str) -> None:
        worker = data.draw(st.sampled_from(sorted(self.held)))
        claim, claims = self.held[worker], self.claims[worker]
        job = self.jobs[claim.id]
        mine = job.state == "running" and job.worker == worker and job.attempts == claim.attempt
        if how == "step":
            assert claims.progress(claim, 1, 2, None) == (mine and not job.cancel)
            return
        del self.held[worker]
        if how in ("back", "killed"):
            claims.give_back(claim, "it died" if how == "killed" else None)
            if mine:
                self.comes_back(claim.id, killed=how == "killed")
            return
        claims.finish(claim, how)  # type: ignore[arg-type]
        if mine:
            job.become(how)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def worker_dies(self, data: st.DataObject) -> None:
        """It does not say so; its claim stays in the hands of something that may still speak."""
        worker = data.draw(st.sampled_from(sorted(self.claims)))
        dead = Claims(self.database, self.permits, Identity(worker, "elsewhere", 1, "1"), -1.0)
        dead.beat()
        take_back_lost(self.database, self.permits)
        for id, job in self.jobs.items():
            if job.state == "running" and job.worker == worker:
                self.comes_back(id, killed=False)

    def comes_back(self, id: str, *, killed: bool) -> None:
        job = self.jobs[id]
        job.kills += killed
        job.worker = None
        if job.cancel:
            job.become("cancelled")
        elif job.kills >= 3:
            job.become("failed")
        else:
            job.become("queued")
            self.order.insert(0, id)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(list(self.jobs)))
        told = self.store.cancel(id)
        job = self.jobs[id]
        if job.state == "queued":
            job.become("cancelled")
            self.order.remove(id)
        elif job.state == "running":
            job.cancel = True
        assert told.state == job.state

    @precondition(lambda self: len(self.order) > 1)
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(self.order))
        before = data.draw(st.none() | st.sampled_from([other for other in self.order if other != id]))
        self.store.move(id, before)
        self.jobs[id].states.append("queued")
        self.order.remove(id)
        self.order.insert(len(self.order) if before is None else self.order.index(before), id)

    @invariant()
    def agrees(self) -> None:
        jobs = {job.id: job for job in self.store.jobs(None, 1000, None)}
        assert jobs.keys() == self.jobs.keys()
        for id, known in self.jobs.items():
            assert (jobs[id].state, jobs[id].attempts) == (known.state, known.attempts)
        waiting = [job.id for job in jobs.values() if job.state == "queued"]
        assert waiting == self.order
        assert [jobs[id].position for id in waiting] == list(range(len(waiting)))
        for id in list(self.jobs)[-1:]:
            events, ended = self.store.fresh(id, 0)
            states = [event.job.state for event in events if event.type == "state"]
            assert states == self.jobs[id].states
            assert ended == (states[-1] in ("succeeded", "failed", "cancelled"))
            assert [event.seq for event in events] == sorted({event.seq for event in events})


def check(examples: int, steps: int, *phases: Phase, start: int = 0) -> None:
    run_state_machine_as_test(
        seed(start)(type("Machine", (Machine,), {})),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            report_multiple_bugs=False,
            phases=phases or tuple(Phase),
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("start", range(0, 2000, 200))
def test_the_queue_does_what_its_model_does(start: int) -> None:
    """In parts, for a test that wants the machine for itself waits until the one beside it is over."""
    check(200, 20, start=secrets.randbits(32) if os.environ.get("VITRAIL_RANDOM") else start)


@pytest.mark.parametrize("broken", ["fence", "limit", "order"])
def test_the_machine_notices_a_broken_queue(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken == "fence":
        monkeypatch.setattr(Claims, "_mine", lambda self, claim: {"id": claim.id})
    elif broken == "limit":
        plain = queue_store._waiting
        monkeypatch.setattr(queue_store, "_waiting", lambda *about: (0, *plain(*about)[1:]))
    else:
        monkeypatch.setattr(queue_store, "_behind", lambda *_: 0.0)
    with pytest.raises(BaseException, match=r".*"):
        check(60, 25, Phase.generate)
