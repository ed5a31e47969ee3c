"""Fixtures of the fault tests."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from kill_server import KillServer


@pytest.fixture(scope="session")
def server() -> Iterator[KillServer]:
    """The fork server, started once: torch is imported once for all sessions."""
    with KillServer() as running:
        yield running


@pytest.fixture
def fast_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a kill -9 loses nothing that a disk would keep, and fsync is
    free.
    """
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="vitrail-test-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)
