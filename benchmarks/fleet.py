"""How far a fleet scales: what the queue costs on PostgreSQL, and from it the throughput of 1,000 workers.

The queue's own code runs against a real server of Debian's in a temporary folder, and the processor time that
the *server* spends on each operation is read from /proc: that is what all workers share (their own time is
not shared), and it does not depend on what else this machine does. A simulation then lets N workers take jobs
through a database of so many cores, one event an operation: look for a permit, take it, claim, tell progress,
look for cancels, keep a picture and end its job, beat. The network takes its time too: how often an operation
asks and waits for an answer is counted on the line, and each takes ``--latency`` milliseconds. What it leaves
out: rows that several workers want at the same moment (SKIP LOCKED leaves none in the claim).

Run it as ``python benchmarks/fleet.py [--jobs 200] [--cores 4] [--seconds 2 20] [--latency 0 0.5 5]``. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import heapq
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vitrail.schema import TextToImageRequest
from vitrail.serving.processes import Identity
from vitrail.serving.queue_claims import Claims
from vitrail.serving.queue_permits import pace
from vitrail.serving.queue_store import QueueStore
from vitrail.serving.queue_worker import BEAT, WorkerSettings
from vitrail.store.gallery import picture_id

TESTS = Path(__file__).resolve().parents[1] / "tests"

STEPS = 20
"""Steps of a job that are told, before the pace of the fleet leaves some out."""

ASK = 0.5
"""Seconds between two looks for cancels (queue_keeper.Patience.ask of a fleet)."""

FLEETS = (1, 3, 10, 30, 100, 300, 1000)


class Cost(NamedTuple):
    """Of one operation: processor ``seconds`` of the server, and ``trips`` to it and back."""

    seconds: float
    trips: float

    def __add__(self, other: object) -> Cost:
        """Of both."""
        assert isinstance(other, Cost)
        return Cost(self.seconds + other.seconds, self.trips + other.trips)


def server_seconds(pid: int) -> float:
    """Processor time of a process and all its children, those that ended included."""
    total, ticks = 0.0, os.sysconf("SC_CLK_TCK")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if entry.name == str(pid):
            total += sum(int(value) for value in fields[11:15]) / ticks
        elif int(fields[1]) == pid:
            total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def measure(jobs: int) -> dict[str, Cost]:
    """What an operation costs, each the mean of ``jobs``."""
    sys.path[:0] = [str(TESTS), str(TESTS / "faults")]
    from cut_line import Line
    from postgres import PostgresServer, programs

    found = programs()
    if found is None:
        raise SystemExit("PostgreSQL is not installed (apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="vitrail-fleet-", dir="/tmp"))
    server = PostgresServer(found, folder)
    data = Path(tempfile.mkdtemp(prefix="vitrail-fleet-"))
    try:
        with Line(server.port) as line:
            return _measured(server, line, data, jobs)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(data, ignore_errors=True)


def _measured(server: Any, line: Any, data: Path, jobs: int) -> dict[str, Cost]:
    url = line.url(server.new_database())
    settings = WorkerSettings(folder=str(data), database=url, pictures=str(data / "shared"))
    database, gallery, permits = settings.open()
    store = QueueStore(database, permits, 10 * jobs)
    claims = Claims(database, permits, Identity("w", "elsewhere", 1, "1"), 1e6)
    assert server._server is not None
    pid = server._server.pid

    def timed(action: Callable[[int], Any]) -> Cost:
        before, asked = server_seconds(pid), line.asked
        for number in range(jobs):
            action(number)
        return Cost((server_seconds(pid) - before) / jobs, (line.asked - asked) / jobs)

    held: list[Any] = []
    costs: dict[str, Cost] = {}
    # Two queues full, so that the plans are those of a queue that is used.
    for number in range(jobs):
        store.submit(TextToImageRequest(prompt="warm", seed=number), None)
    costs["submit"] = timed(lambda n: store.submit(TextToImageRequest(prompt="a red cat", seed=n), f"k{n}"))
    costs["beat"] = timed(lambda _: claims.beat())
    costs["claim"] = timed(lambda _: held.extend(claims.claim("pictures", 1)))
    costs["progress"] = timed(lambda n: claims.progress(held[n], 1, STEPS, 1.0))
    costs["unwanted"] = timed(lambda n: claims.unwanted(held[n : n + 1]))
    record, body = _picture()

    def publish(number: int) -> None:
        claim = held[number]

        def tell(connection: Any, picture: Any) -> None:
            claims.picture(connection, claim, 0, picture)
            claims.end(connection, claim, "succeeded")

        gallery.add(
            body,
            ".png",
            record,
            id=picture_id(claim.id, 0),
            job=claim.id,
            wanted=lambda connection: claims.hold(connection, claim),
            tell=tell,
        )

    costs["publish"] = timed(publish)
    costs |= _permit_costs(settings, timed, jobs)
    permits.close()
    database.close()
    return costs


def _permit_costs(
    settings: WorkerSettings, timed: Callable[[Callable[[int], Any]], Cost], jobs: int
) -> dict[str, Cost]:
    """What DBOS costs: a look that finds nothing, and a permit from its dequeue to its end."""
    from dbos import DBOS

    from vitrail.serving.queue_permits import serve_permits, stop_permits

    logging.getLogger("dbos").setLevel(logging.CRITICAL)
    taken: list[float] = []
    database, _, permits = settings.open()
    idle_before = time.monotonic()
    serve_permits(database, "bench", lambda lane: taken.append(time.monotonic()))
    while len(taken) < 2 * jobs and time.monotonic() - idle_before < 600:
        time.sleep(0.2)  # the permits of all jobs above
    queue = DBOS.retrieve_queue("vitrail-pictures")
    assert queue is not None
    from dbos._dbos import _get_dbos_instance

    inner = _get_dbos_instance()._sys_db
    look = timed(lambda _: inner.start_queued_workflows(queue, "bench", "vitrail", None, 1))

    def permit(number: int) -> None:
        with database.write() as connection:
            permits.add(connection, f"again-{number}", "pictures")

    before = len(taken)
    adding = timed(permit)
    started = time.monotonic()
    used = timed(lambda _: _wait(lambda: len(taken) >= before + jobs, started))  # the first waits for all
    stop_permits()
    permits.close()
    database.close()
    return {"look": look, "permit": used + adding}


def _wait(ready: Callable[[], bool], started: float) -> None:
    while not ready() and time.monotonic() - started < 600:
        time.sleep(0.05)


def _picture() -> tuple[Any, bytes]:
    from datetime import UTC, datetime

    from PIL import Image

    from vitrail.schema import ImageRecord, SamplingDefaults
    from vitrail.serving.save import picture_bytes

    request = TextToImageRequest(prompt="a red cat", seed=1)
    record = ImageRecord(
        request=request.resolve(SamplingDefaults(width=64, height=64)),
        seed=1,
        model_name="fleet",
        model_sha256="0" * 64,
        created=datetime.now(UTC),
    )
    return record, picture_bytes(Image.new("RGB", (64, 64)), "png", record)


def simulate(workers: int, seconds: float, cores: int, costs: dict[str, Cost], latency: float = 0.0) -> float:
    """Jobs a second that ``workers`` finish, each job ``seconds`` of work, the queue never empty.

    Counted from the third job's time to the thirteenth's, when the beginning is forgotten. The database is
    ``cores`` servers with one line before them, first come first served; a trip takes ``latency`` seconds.
    """
    chance = random.Random(workers)
    counted_from, span = 3 * seconds, 13 * seconds
    free = [0.0] * cores
    heapq.heapify(free)
    events: list[tuple[float, int, str, int]] = []
    order = done = counted = 0
    looks = pace(workers)
    told = max(seconds / STEPS, workers / 2000)

    def at(when: float, what: str, worker: int) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (when, order, what, worker))

    def served(when: float, *operations: str) -> float:
        """When the database has done these for one who asked at ``when``."""
        start = max(when, heapq.heappop(free))
        end = start + sum(costs[name].seconds for name in operations)
        heapq.heappush(free, end)
        return end + latency * sum(costs[name].trips for name in operations)

    ends = [0.0] * workers
    for worker in range(workers):
        at(chance.random() * seconds, "take", worker)
        at(chance.random() * BEAT, "beat", worker)
        at(chance.random() * looks, "look", worker)  # the other lane's
    while events:
        now, _, what, worker = heapq.heappop(events)
        if now > span:
            break
        if what == "take":  # a permit, then job after job while any waits
            started = served(now, "permit", "claim") if done == 0 else served(now, "claim")
            ends[worker] = started + seconds * chance.uniform(0.8, 1.2)
            at(started + told, "tell", worker)
            at(started + ASK, "ask", worker)
            at(ends[worker], "finish", worker)
        elif what == "tell" and now < ends[worker]:
            at(served(now, "progress") + told, "tell", worker)
        elif what == "ask" and now < ends[worker]:
            at(served(now, "unwanted") + ASK, "ask", worker)
        elif what == "finish":
            done += 1
            counted += now > counted_from
            at(served(now, "publish"), "take", worker)
        elif what == "beat":
            at(served(now, "beat") + BEAT, "beat", worker)
        elif what == "look":
            at(served(now, "look") + looks, "look", worker)
    return counted / (span - counted_from)


def main() -> None:
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200, help="operations of each kind that are measured")
    parser.add_argument("--cores", type=int, default=4, help="cores of the simulated database")
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 20.0], help="work a job")
    parser.add_argument(
        "--latency", type=float, nargs="+", default=[0.0, 0.5, 5.0], help="of the network, milliseconds"
    )
    options = parser.parse_args()
    costs = measure(options.jobs)
    for name, cost in costs.items():
        print(f"{name:<10}{1000 * cost.seconds:8.3f} ms of the server, {cost.trips:5.1f} trips")
    rates: dict[str, dict[str, float]] = {}
    efficiency: dict[str, float] = {}
    for latency in options.latency:
        for seconds in options.seconds:
            name = f"{seconds:g} s, {latency:g} ms"
            fleet = {n: simulate(n, seconds, options.cores, costs, latency / 1000) for n in FLEETS}
            for n, rate in fleet.items():
                share = rate * seconds / n
                print(f"{name} of latency: {n:5d} workers {rate:9.2f} jobs/s, {share:6.1%} of the ideal")
            rates[name] = {str(n): round(rate, 3) for n, rate in fleet.items()}
            efficiency[name] = round(fleet[FLEETS[-1]] * seconds / FLEETS[-1], 4)
    print(
        json.dumps(
            {
                "cost_ms": {name: round(1000 * cost.seconds, 4) for name, cost in costs.items()},
                "trips": {name: round(cost.trips, 1) for name, cost in costs.items()},
                "cores": options.cores,
                "jobs_per_second": rates,
                "efficiency_1000": efficiency,
            }
        )
    )


if __name__ == "__main__":
    main()
