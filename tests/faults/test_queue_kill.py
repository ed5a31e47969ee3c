"""Row Q1: the server dies at any moment; no accepted job is lost or done twice (Q3: none is given up)."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import light_hands
import pytest

from vitrail.serving.durable import DurableEngine
from vitrail.serving.jobs import TERMINAL, Job

SERVER = Path(__file__).with_name("queue_server.py")
START = 120.0


class Server:
    """A server in ``folder``, and the client's side of the line to it."""

    def __init__(self, folder: Path, defence: str = "") -> None:
        self.accepted: dict[str, str] = {}
        self.ready = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), str(folder), defence],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self.ready.wait(START), "the server did not start"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told = json.loads(line)
            if "ready" in told:
                self.ready.set()
            else:
                self.accepted[told["key"]] = told["id"]
        self.ready.set()

    def ask(self, key: str, **request: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"key": key, "request": request}) + "\n")
            self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self._end()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)
        self._end()

    def _end(self) -> None:
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def ended(engine: DurableEngine, found: Callable[[list[Job]], bool], seconds: float = 120.0) -> list[Job]:
    """All jobs, once ``found`` holds of them."""
    give_up = time.monotonic() + seconds
    while True:
        jobs = engine.jobs(limit=1000)
        if found(jobs):
            return jobs
        assert time.monotonic() < give_up, [job.state for job in jobs if job.state not in TERMINAL]
        time.sleep(0.2)


def all_ended(jobs: list[Job]) -> bool:
    return all(job.state in TERMINAL for job in jobs)


def killed_round(folder: Path, jobs: int, kills: int, seed: int) -> None:
    """Ask for ``jobs`` jobs while the server is killed ``kills`` times, retry, and count."""
    chance = random.Random(seed)
    keys = [f"k{number}" for number in range(jobs)]
    accepted: dict[str, str] = {}
    for _ in range(kills):
        server = Server(folder)
        until = time.monotonic() + chance.random() * 1.5
        for key in [key for key in keys if key not in accepted][: 1 + 2 * jobs // kills]:
            server.ask(key, prompt="draw 0.02", seed=int(key[1:]), steps=3, n=2)
            time.sleep(chance.random() * 0.02)
        time.sleep(max(0.0, until - time.monotonic()))
        server.kill()
        for key, id in server.accepted.items():
            assert accepted.setdefault(key, id) == id  # Q2: a retry is the same job
    server = Server(folder)
    for key in keys:  # a client retries what it did not see accepted, and some that it did
        server.ask(key, prompt="draw 0.02", seed=int(key[1:]), steps=3, n=2)
    with DurableEngine(str(folder), workers=0) as looker:
        done = ended(looker, lambda all: len(all) == jobs and all_ended(all))
        server.close()
        for key, id in server.accepted.items():
            assert accepted.setdefault(key, id) == id
        assert {job.id for job in done} == set(accepted.values())
        assert {job.state for job in done} == {"succeeded"}
        assert [len(job.pictures) for job in done] == [2] * jobs
        assert looker.gallery.count() == 2 * jobs
        assert looker.gallery.check().whole
        assert looker.database.check() is None
        for job in done:
            assert len(looker.gallery.page(job=job.id).pictures) == 2
            events = list(looker.events(job.id))
            assert events[-1].job.state == "succeeded"
            assert [event.seq for event in events] == sorted({event.seq for event in events})


@pytest.mark.parametrize(
    "seed", [*range(5), *(pytest.param(n, marks=pytest.mark.soak) for n in range(5, 50))]
)
def test_no_accepted_job_is_lost_or_done_twice_in_twenty_kills_of_the_server(
    fast_folder: Path, seed: int
) -> None:
    killed_round(fast_folder, jobs=50, kills=20, seed=seed)


@pytest.mark.parametrize("defence", ["", "ids"])
def test_a_picture_that_is_made_again_after_a_kill_is_the_same_entry(fast_folder: Path, defence: str) -> None:
    """The server dies after the picture was published and before the job was done."""
    server = Server(fast_folder, defence)
    server.ask("k", prompt="late", seed=1, steps=1)
    with DurableEngine(str(fast_folder), workers=0) as looker:
        ended(looker, lambda jobs: bool(jobs) and len(jobs[0].pictures) == 1)
        server.kill()
        again = Server(fast_folder, defence)
        ended(looker, lambda jobs: jobs[0].attempts == 2 and looker.gallery.count() > (defence != ""))
        time.sleep(0.5)
        looker.cancel(looker.jobs()[0].id)
        job = ended(looker, all_ended)[0]
        again.close()
        assert job.attempts == 2
        assert looker.gallery.count() == (1 if not defence else 2)


def test_what_is_accepted_too_early_is_lost(fast_folder: Path) -> None:
    """The negative control of the whole round: a server that says yes before the job is on disk."""
    server = Server(fast_folder, "commit")
    for number in range(8):
        server.ask(f"k{number}", prompt="draw", seed=number, steps=1)
    give_up = time.monotonic() + START
    while len(server.accepted) < 8 and time.monotonic() < give_up:
        time.sleep(0.05)
    server.kill()
    with DurableEngine(str(fast_folder), workers=0) as looker:
        assert len(server.accepted) == 8
        assert len(looker.jobs()) < 8


def test_server_kills_never_give_a_job_up_and_end_the_working_process_too(fast_folder: Path) -> None:
    folder = fast_folder
    with DurableEngine(str(folder), workers=0) as looker:
        for attempt in range(1, 5):
            server = Server(folder)
            if attempt == 1:
                server.ask("k", prompt="idle", steps=1)
            ended(looker, lambda jobs, attempt=attempt: bool(jobs) and jobs[0].attempts == attempt)
            give_up = time.monotonic() + 20
            while len(light_hands.begun(folder)) < attempt and time.monotonic() < give_up:
                time.sleep(0.05)
            pid = light_hands.begun(folder)[-1]["pid"]
            server.kill()
            while Path(f"/proc/{pid}").exists() and time.monotonic() < give_up:
                time.sleep(0.05)
            assert not Path(f"/proc/{pid}").exists(), "the working process outlived its server"
        job = looker.jobs()[0]
        assert job.state in ("queued", "running")
        assert job.error is None
        looker.cancel(job.id)
