"""Many clients at once while pictures are made, and a server that starts at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("dbos", reason="needs the extra server")
from http_server import Served

CLIENTS = 64


def crowd(server: Served, seconds: float) -> tuple[list[float], Counter[int]]:
    """64 clients ask for lists, jobs, pictures and figures; the times in seconds, and the statuses."""
    http = server.http
    job = http.post("/api/jobs", json={"prompt": "an apple", "model": "tiny", "n": 2}).json()
    picture = server.wait(job["id"])["pictures"][0]["id"]
    paths = [
        "/api/jobs?limit=40",
        f"/api/jobs/{job['id']}",
        "/api/pictures?limit=30",
        f"/api/pictures/{picture}/thumbnail",
        f"/api/pictures/{picture}/file",
        "/health",
        "/sdapi/v1/progress",
        "/api/models",
    ]
    times: list[float] = []
    statuses: Counter[int] = Counter()
    until = time.monotonic() + seconds
    lock = threading.Lock()

    def client(number: int) -> None:
        own: list[float] = []
        seen: Counter[int] = Counter()
        with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as mine:
            turn = number
            while time.monotonic() < until:
                began = time.monotonic()
                seen[mine.get(paths[turn % len(paths)]).status_code] += 1
                own.append(time.monotonic() - began)
                turn += 1
                time.sleep(1.0)  # a page asks about once a second
        with lock:
            times.extend(own)
            statuses.update(seen)

    # One generation runs all the time.
    work = http.post(
        "/api/jobs", json={"prompt": "an apple", "model": "default", "n": 64, "steps": 100}
    ).json()
    try:
        threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for number, thread in enumerate(threads):
            thread.start()
            time.sleep(0.01 * (number % 2))
        for thread in threads:
            thread.join()
        assert http.get(f"/api/jobs/{work['id']}").json()["state"] in ("running", "queued")
    finally:
        http.post(f"/api/jobs/{work['id']}/cancel", json={})
        server.wait(work["id"])
    return times, statuses


def check(times: list[float], statuses: Counter[int], least: int) -> None:
    assert not [status for status in statuses if status >= 500], statuses
    assert set(statuses) == {200}
    assert len(times) >= least
    p99 = statistics.quantiles(times, n=100)[98]
    print(f"{len(times)} answers, p50 {statistics.median(times) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms")
    # The bar is 250 ms on an idle machine; a test machine that does other work at the same time is slower.
    assert p99 < 0.25 * max(1.0, os.getloadavg()[0] / 2), p99


def test_64_clients_while_one_generation_runs(art_server: Served) -> None:
    times, statuses = crowd(art_server, 6.0)
    check(times, statuses, 64)


@pytest.mark.soak
def test_64_clients_for_ten_minutes(art_server: Served) -> None:
    times, statuses = crowd(art_server, 600.0)
    check(times, statuses, 10_000)


def test_a_hundred_watchers_take_no_thread_of_those_who_ask(art_server: Served) -> None:
    body = {"prompt": "an apple", "model": "tiny", "n": 64, "steps": 150}
    job = art_server.http.post("/api/jobs", json=body).json()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(
            httpx.Client(base_url=art_server.url, trust_env=False, timeout=60, limits=httpx.Limits())
        )
        for _ in range(100):
            answer = stack.enter_context(client.stream("GET", f"/api/jobs/{job['id']}/events"))
            assert answer.status_code == 200
        began = time.monotonic()
        assert art_server.http.get("/api/jobs").status_code == 200
        assert time.monotonic() - began < 5
        assert "vitrail_streams 100.0" in art_server.http.get("/metrics").text
    art_server.http.post(f"/api/jobs/{job['id']}/cancel", json={})
    assert art_server.wait(job["id"])["state"] in ("cancelled", "succeeded")
    until = time.monotonic() + 20
    while "vitrail_streams 0.0" not in art_server.http.get("/metrics").text:
        assert time.monotonic() < until, "streams that nobody reads are still open"
        time.sleep(0.2)


# -- the commands --------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def command(name: str, folder: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """``vitrail serve`` or ``studio`` with no worker; the process, its address, when it began."""
    port = free_port()
    arguments = [sys.executable, "-m", "vitrail", name, "--port", str(port), "--folder", str(folder)]
    began = time.monotonic()
    process = subprocess.Popen([*arguments, *more], stderr=subprocess.PIPE, text=True)
    try:
        yield process, f"http://127.0.0.1:{port}", began
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        assert process.stderr is not None
        process.stderr.close()


def asked(process: subprocess.Popen[Any], address: str) -> httpx.Response:
    until = time.monotonic() + 60
    while True:
        assert process.poll() is None, "it ended"
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(address, trust_env=False, timeout=30)
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["serve", "studio"])
def test_a_server_starts_without_torch_and_ends_when_it_is_told(name: str, tmp_path: Path) -> None:
    more = ["--workers", "0"] + (["--no-browser"] if name == "studio" else [])
    with command(name, tmp_path, *more) as (process, address, _):
        page = asked(process, f"{address}/" if name == "studio" else f"{address}/health")
        assert page.status_code == 200
        assert httpx.get(f"{address}/api/models", trust_env=False).json()[0]["name"] == "default"
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libtorch" not in maps
        if name == "studio":
            assert "text/html" in page.headers["content-type"]
            assert "default-src 'self'" in page.headers["content-security-policy"]
            with subprocess.Popen([sys.executable, "-c", "import torch, time; time.sleep(60)"]) as control:
                try:
                    until = time.monotonic() + 60
                    while "libtorch" not in Path(f"/proc/{control.pid}/maps").read_text():
                        assert time.monotonic() < until
                        time.sleep(0.1)
                finally:
                    control.kill()
    assert process.returncode == 0


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = [sys.executable, "-m", "vitrail", "serve", "--port", str(taken.getsockname()[1])]
        found = subprocess.run(
            [*arguments, "--folder", str(tmp_path)], capture_output=True, text=True, timeout=60
        )
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert "choose another --port" in found.stderr
