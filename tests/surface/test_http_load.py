"""Many clients at once while pictures are made, and a server that starts at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("dbos", reason="needs the extra server")
from http_server import Served

CLIENTS = 64


def crowd(server: Served, seconds: float) -> dict[str, Any]:
    """64 clients of another process ask for lists, jobs, pictures and figures, and now and then for a tiny
    picture, while one generation runs.
    """
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
    long = {"prompt": "an apple", "model": "default", "n": 64, "steps": 200}
    # So many that one is drawn all the time, at three pictures a second.
    works = [http.post("/api/jobs", json=long).json()["id"] for _ in range(1 + int(seconds) // 60)]
    try:
        script = str(Path(__file__).with_name("crowd.py"))
        arguments = [sys.executable, script, str(server.port), str(seconds), str(CLIENTS), picture, *paths]
        answer = subprocess.run(arguments, capture_output=True, text=True, timeout=seconds + 120, check=True)
        assert "running" in {http.get(f"/api/jobs/{id}").json()["state"] for id in works}
    finally:
        for id in works:
            http.post(f"/api/jobs/{id}/cancel", json={})
        while waiting := http.get("/api/jobs", params={"state": "queued", "limit": 500}).json()["jobs"]:
            for job in waiting:
                http.post(f"/api/jobs/{job['id']}/cancel", json={})
        for id in works:
            server.wait(id)
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def check(found: dict[str, Any], least: int, load: float) -> None:
    """Judge a crowd's answers; ``load``: the machine's load average before it came."""
    times = found["seconds"]
    assert found["wrong"] == [], (found["statuses"], found["wrong"][:5])
    assert set(found["statuses"]) <= {"200", "202", "429"}, found["statuses"]
    assert set(found["kinds"]) == {"look", "submit", "cancel", "favourite"}
    assert len(times) >= least
    p99 = statistics.quantiles(times, n=100)[98]
    print(f"{len(times)} answers, p50 {statistics.median(times) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms")
    print(found["kinds"])
    # The bar is 250 ms. A machine that has other work takes longer for everything, by as many as share it.
    assert p99 < 0.25 * (1.0 if load < 1.0 else 1.0 + load), (p99, load)


@pytest.mark.alone
def test_64_clients_while_one_generation_runs(art_server: Served) -> None:
    load = os.getloadavg()[0]
    check(crowd(art_server, 60.0), 1000, load)


@pytest.mark.alone
@pytest.mark.soak
def test_64_clients_for_ten_minutes(art_server: Served) -> None:
    load = os.getloadavg()[0]
    check(crowd(art_server, 600.0), 10_000, load)


def test_a_hundred_watchers_take_no_thread_of_those_who_ask(art_server: Served) -> None:
    body = {"prompt": "an apple", "model": "default", "n": 64, "steps": 100}
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
        process.send_signal(signal.SIGINT if name == "serve" else signal.SIGTERM)
        process.wait(60)
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
