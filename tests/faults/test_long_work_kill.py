"""A training that is a job: the server, the worker and the working process die under it (rows T1 and Q1)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from vitrail.serving.long_work import TrainRequest
from vitrail.serving.long_work_run import run_long_work

IMAGES = 12_000
RECIPE = """
kind = "upsampler"
name = "tiny"
data = {{source = "{source}", size = 16, batch_size = 4}}
model = {{width = 8, blocks = 1}}
optim = {{until_images = {images}, warmup_images = 8, precision = "float32"}}
run = {{checkpoint_every_seconds = 0.5, log_every_seconds = 0.5, tensorboard = "off"}}
"""
WAIT = 300.0


class Server:
    """``vitrail serve`` in a session of its own."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "vitrail", "serve", "--port", "0", "--folder", str(folder)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        assert self.process.stderr is not None
        address = self.process.stderr.readline().split()[-1]
        self.http = httpx.Client(base_url=address, trust_env=False, timeout=60)

    def pids(self, module: str) -> list[int]:
        """Its processes that run ``module``."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                session = int((place / "stat").read_text().rpartition(")")[2].split()[3])
                if session == self.process.pid and module in (place / "cmdline").read_text():
                    found.append(int(place.name))
            except OSError:
                continue
        return found

    def end(self, how: signal.Signals) -> None:
        self.http.close()
        self.process.send_signal(how)
        self.process.wait(60)
        assert self.process.stderr is not None
        self.process.stderr.close()
        until = time.monotonic() + 20
        while self.pids("vitrail"):
            assert time.monotonic() < until, "an orphan lives"
            time.sleep(0.05)


@pytest.mark.soak
def test_a_training_goes_on_after_every_kill_and_ends_as_if_there_had_been_none(
    fast_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    source, draw = fast_folder / "source", np.random.default_rng(0)
    source.mkdir()
    for index in range(40):
        pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(source / f"{index:02d}.png")
    recipe = RECIPE.format(source=source, images=IMAGES)
    run_long_work(
        TrainRequest(recipe=recipe), lambda event: None, threading.Event(), fast_folder / "straight"
    )

    chance = random.Random(5)
    server = Server(fast_folder / "killed")
    id = server.http.post("/api/jobs", json={"kind": "train", "recipe": recipe}).json()["id"]

    def job() -> dict[str, Any]:
        found: dict[str, Any] = server.http.get(f"/api/jobs/{id}").json()
        return found

    until, step = time.monotonic() + WAIT, 0
    for victim in ("server", "queue_hands", "queue_worker", "server"):
        while job()["step"] <= step:
            assert job()["state"] in ("queued", "running")
            assert time.monotonic() < until
            time.sleep(0.1)
        time.sleep(chance.uniform(0.3, 1.0))
        step = job()["step"]
        if victim == "server":
            server.end(signal.SIGKILL)
            server = Server(fast_folder / "killed")
        else:
            for pid in server.pids(victim):
                os.kill(pid, signal.SIGKILL)
    while job()["state"] != "succeeded":
        assert job()["state"] in ("queued", "running")
        assert time.monotonic() < until
        time.sleep(0.2)
    assert job()["attempts"] == 5
    assert len(server.http.get("/api/jobs").json()["jobs"]) == 1
    server.end(signal.SIGTERM)
    models = [
        fast_folder / name / "runs" / "tiny" / "model" / "model.safetensors"
        for name in ("straight", "killed/work")
    ]
    assert models[0].read_bytes() == models[1].read_bytes()
