"""T1: kill -9 at random points, during saves too; the run always goes on and ends bit-identical."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from kill_server import KillServer, digest_of


def reference(server: KillServer, folder: Path, **request: Any) -> tuple[str, float]:
    """Digest of an uninterrupted run, and how long it took."""
    answer = server.ask(folder=folder / "straight", **request)
    assert answer["code"] == 0
    return digest_of(folder / "straight"), answer["seconds"]


def storm(server: KillServer, folder: Path, kills: int, seed: int, **request: Any) -> list[str]:
    """Kill sessions until ``kills`` died; returns what went wrong: refused resumes and results that differ.

    Half of the kills come after a random time, half at a random file system call (the call itself half
    done), which are the points that matter: most of the calls of a session belong to saves.
    """
    kind = {"kind": request["kind"]} if "kind" in request else {}
    wanted, seconds = reference(server, folder, **kind)
    chance = random.Random(seed)
    faults: list[str] = []
    killed = runs = 0
    while killed < kills:
        run = folder / f"run-{runs}"
        runs += 1
        while True:
            if chance.random() < 0.5:
                answer = server.ask(
                    folder=run,
                    signal=int(signal.SIGKILL),
                    signal_after=chance.uniform(0.0, seconds),
                    **request,
                )
            else:
                answer = server.ask(folder=run, at_call=chance.randint(1, 150), act="kill", **request)
            if answer["code"] == -signal.SIGKILL:
                killed += 1
                if killed < kills:
                    continue
                answer = server.ask(folder=run, **request)
            if answer["code"] != 0:
                faults.append(f"run {runs}: session ended with {answer['code']}")
            elif digest_of(run) != wanted:
                faults.append(f"run {runs}: the result differs")
            elif list((run / "checkpoints").glob(".*")):
                faults.append(f"run {runs}: rubbish was left")
            break
        shutil.rmtree(run)
    return faults


def test_200_kills_change_nothing(server: KillServer, fast_folder: Path) -> None:
    assert storm(server, fast_folder, 200, seed=1) == []


def test_30_kills_change_nothing_with_an_adversary(server: KillServer, fast_folder: Path) -> None:
    """Codebook, discriminator, balance, guard: all that an adversarial training adds to the state."""
    assert storm(server, fast_folder, 30, seed=4, kind="autoencoder") == []


@pytest.mark.soak
def test_2000_kills_change_nothing(server: KillServer, fast_folder: Path) -> None:
    assert storm(server, fast_folder, 2000, seed=2) == []


@pytest.mark.soak
def test_500_kills_change_nothing_with_an_adversary(server: KillServer, fast_folder: Path) -> None:
    assert storm(server, fast_folder, 500, seed=5, kind="autoencoder") == []


@pytest.mark.parametrize("defence", ["staging", "random state", "averages"])
def test_the_storm_finds_a_missing_defence(server: KillServer, fast_folder: Path, defence: str) -> None:
    assert storm(server, fast_folder, 20, seed=3, without=defence) != []
