"""Threads that compute beside another program leave it their cores, and take them again."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest

from vitrail.cores import Mind, can_share

needs_linux = pytest.mark.skipif(not can_share(), reason="this system does not say what threads waited for")


def ask(mind: Mind, waiting: float, begin: float, seconds: float) -> list[float]:
    """The moments at which it is to give way, of looks 50 ms apart that all show ``waiting``."""
    moments = [begin + 0.05 * number for number in range(round(20 * seconds))]
    return [moment for moment in moments if mind(waiting, moment)]


def test_a_moment_of_other_work_changes_nothing() -> None:
    mind = Mind()
    assert not ask(mind, 0.2, 0, 60)
    for second in range(20):
        assert not ask(mind, 1.5, 100 + second, 0.05)  # a word about progress, a preview
        assert not ask(mind, 0.01, 100 + second + 0.05, 0.95)


def test_a_busy_program_is_given_way_and_tried_again_more_and_more_seldom() -> None:
    mind = Mind()
    given = ask(mind, 0.6, 0, 60)
    assert given[0] < 0.3
    assert len(given) * 0.05 > 0.93 * 60  # the rest are tries
    gaps = [after - before for before, after in itertools.pairwise(given) if after - before > 0.06]
    assert all(gap < 0.3 for gap in gaps)
    assert 7 < len(gaps) < 12
    alone = ask(mind, 0.02, 60, 30)
    assert len(alone) * 0.05 <= 8.0  # until the next try, and never again
    assert ask(mind, 0.6, 90, 2)  # from the shortest pause on again
    assert len(ask(mind, 0.02, 92, 10)) * 0.05 <= 2.0


WAITS = """
import os, resource, sys, time
import torch
from vitrail.cores import _watch

torch.set_num_threads(2)
left, right = torch.ones(64, 64), torch.ones(64, 64)
many = torch.ones(1 << 16)

def slept():
    "Times a second that threads left their cores of themselves, while layers are computed."
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw, time.monotonic()
    while time.monotonic() - began < 0.5:
        many.mul(1.0)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before) / (time.monotonic() - began)

many.mul(1.0)
watch = _watch(os.getpid())
found = [slept()]
for wanted in (True, False):
    watch._give_way(wanted)
    time.sleep(0.2)
    found.append(slept())
print(*found)
"""


@needs_linux
def test_while_it_gives_way_threads_sleep_where_they_would_spin() -> None:
    """Threads that would spin for minutes sleep as soon as a team is there, and spin again without it."""
    # As many threads as cores, or OpenMP would spin briefly by itself; and a spin that no wait outlasts.
    run = subprocess.run(
        [sys.executable, "-c", WAITS],
        env={**os.environ, "OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": str(10**12)},
        capture_output=True,
        text=True,
        check=True,
    )
    spinning, giving_way, again = map(float, run.stdout.split())
    assert giving_way > 10 * max(spinning, again, 10.0), run.stdout


DRAWN = """
import os, sys, time
import torch
from vitrail.cores import _watch, sharing

torch.set_num_threads(2)
many = torch.ones(1 << 16)
many.mul(1.0)
watch = _watch(os.getpid())
until = time.monotonic() + 20
with sharing():
    while watch._team is None and time.monotonic() < until:
        many.mul(1.0)
print(watch._team is not None)
"""


@needs_linux
def test_a_busy_machine_is_noticed_while_something_is_computed() -> None:
    """One busy program for each core: the threads that compute wait for theirs."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        run = subprocess.run(
            [sys.executable, "-c", DRAWN],
            env={**os.environ, "OMP_NUM_THREADS": "2"},
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        for program in busy:
            program.kill()
            program.wait()
    assert run.stdout.strip() == "True"
