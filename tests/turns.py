"""Hooks for ``pytest -n``: a test marked ``alone`` runs while the other workers wait.

Workers share two locks. Every test holds the first one for reading; a test that is ``alone`` holds it for
writing, but not while its fixtures are made and ended. The second is a gate in front of it, so that a steady
stream of readers cannot keep a writer waiting.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = "VITRAIL_TEST_TURNS"


def pytest_configure(config: pytest.Config) -> None:
    """The process that the workers come from makes the folder of the locks; they inherit its name."""
    if config.getoption("numprocesses", None) and "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="vitrail-turns-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """And takes it away again."""
    if "PYTEST_XDIST_WORKER" not in os.environ and (folder := os.environ.pop(FOLDER, None)):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(name: str, how: int) -> Iterator[None]:
    """Hold a lock of the run, for reading (``LOCK_SH``) or writing (``LOCK_EX``)."""
    with open(Path(os.environ[FOLDER], name), "a") as file:
        fcntl.flock(file, how)
        try:
            yield
        finally:  # not by closing alone: a process that the test forked may have the file open still
            fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def turn(how: int) -> Iterator[None]:
    """One step of a test, in its turn."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    with contextlib.ExitStack() as held:
        with locked("gate", how):
            held.enter_context(locked("room", how))
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup() -> Generator[None, Any, Any]:
    """The fixtures, beside other tests."""
    with turn(fcntl.LOCK_SH):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """The test itself."""
    with turn(fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Generator[None, Any, Any]:
    """The fixtures' ends, beside other tests."""
    with turn(fcntl.LOCK_SH):
        return (yield)
