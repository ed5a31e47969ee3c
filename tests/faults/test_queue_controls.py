"""Negative controls of rows L2, Q5, Q9 and W9: with the defence a check holds, without it the check fails."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import light_hands
import pytest

pytest.importorskip("dbos", reason="needs the extra server")
sys.path.insert(0, str(Path(__file__).parent.parent / "surface"))
from http_server import Served

from vitrail.schema import TextToImageRequest
from vitrail.serving import queue_store
from vitrail.serving.durable import DurableEngine

WAIT = 60.0
DEFENCE = pytest.mark.parametrize("defence", ["in", "out"])


@DEFENCE
def test_a_queue_that_does_not_count_takes_more_than_its_limit(
    tmp_path: Path, defence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L2."""
    if defence == "out":
        monkeypatch.setattr(queue_store, "_waiting", lambda connection, lane: (0, 0, None))
    with Served(tmp_path, engine={"queue_limit": 2}) as server:
        answers = [server.http.post("/api/jobs", json={"prompt": "an apple"}) for _ in range(4)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(refused) == (2 if defence == "in" else 0)
        assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)


DEAF = f"""
import dataclasses, sys, threading
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import light_hands

class Deaf(threading.Event):
    def is_set(self):
        return False

def work(assignments, tell, folder):
    light_hands.work([dataclasses.replace(one, cancelled=Deaf()) for one in assignments], tell, folder)

light_hands.serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), work)
"""


@DEFENCE
def test_work_that_hears_no_cancel_costs_its_process(fast_folder: Path, defence: str) -> None:
    """Q5: whoever hears it stops by itself, and the next job finds the process (and its models) there."""
    hands = light_hands.COMMAND if defence == "in" else (sys.executable, "-c", DEAF)
    with DurableEngine(str(fast_folder), hands=hands, batch=1, device="cpu") as engine:
        long = engine.submit(TextToImageRequest(prompt="draw 0.1", seed=1, steps=200, n=16)).id
        next(event for event in engine.events(long, timeout=WAIT) if event.type == "progress")
        engine.cancel(long)
        assert list(engine.events(long, timeout=WAIT))[-1].job.state == "cancelled"
        following = engine.submit(TextToImageRequest(prompt="draw", seed=2, steps=1)).id
        assert list(engine.events(following, timeout=WAIT))[-1].job.state == "succeeded"
        pids = {fact["job"]: fact["pid"] for fact in light_hands.begun(fast_folder)}
        assert (pids[long] == pids[following]) == (defence == "in")


def forgetful(app: Any) -> Any:
    """The application, which never sees what a client has seen already."""

    async def without(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            kept = [(name, value) for name, value in scope["headers"] if name != b"last-event-id"]
            scope = {**scope, "headers": kept}
        await app(scope, receive, send)

    return without


@DEFENCE
def test_a_stream_that_ignores_what_was_seen_tells_it_twice(tmp_path: Path, defence: str) -> None:
    """Q9."""
    more = {} if defence == "in" else {"wrap": forgetful}
    with Served(tmp_path, **more) as server:
        id = server.http.post("/api/jobs", json={"prompt": "an apple"}).json()["id"]
        server.http.post(f"/api/jobs/{id}/cancel", json={})

        def told(seen: int) -> list[tuple[int, str]]:
            headers = {"Last-Event-ID": str(seen)}
            answer = server.http.get(f"/api/jobs/{id}/events", headers=headers)
            lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
            return [(event["seq"], event["job"]["state"]) for event in map(json.loads, lines)]

        whole = told(0)
        assert [state for _, state in whole] == ["queued", "cancelled"]
        first = whole[0][0]
        again = [seq for seq, _ in told(first) if seq <= first]
        assert again == ([] if defence == "in" else [first])


@DEFENCE
def test_a_server_that_checks_no_address_lets_everybody_in(tmp_path: Path, defence: str) -> None:
    """W9, at an address that is not the loopback's name and that no other machine reaches all the same."""
    code = "import sys; from vitrail import cli; from vitrail.commands import serve; "
    if defence == "out":
        code += "serve.check_bind = lambda host, token: None; "
    host = "127.0.0.2"
    with socket.create_server((host, 0)) as found:
        port = str(found.getsockname()[1])
    words = ["serve", "--host", host, "--port", port, "--folder", str(tmp_path), "--workers", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}sys.exit(cli.main({words!r}))"],
        env={"PATH": "/usr/bin"},  # no token in there
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + WAIT
        answered = False
        while process.poll() is None and not answered and time.monotonic() < until:
            with contextlib.suppress(httpx.TransportError):
                headers = {"Host": "127.0.0.1"}
                answer = httpx.get(f"http://{host}:{port}/api/jobs", trust_env=False, headers=headers)
                answered = answer.status_code == 200
            time.sleep(0.05)
        assert answered == (defence == "out")
        assert process.poll() == (2 if defence == "in" else None)
    finally:
        process.kill()
        _, said = process.communicate()
    if defence == "in":
        assert said.count("\n") == 1
        assert "--token" in said
