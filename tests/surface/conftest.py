"""One server with a worker for all tests of the interfaces: its process loads torch once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def art_server(tmp_path_factory: pytest.TempPathFactory, make_model: Any) -> Iterator[Any]:
    """A server whose worker draws with the tiny model, called ``tiny``, and with the shipped ones."""
    pytest.importorskip("dbos", reason="needs the extra server")
    from http_server import Served, one_thread

    home = tmp_path_factory.mktemp("home")
    make_model(home / "models" / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITRAIL_HOME", str(home))
        one_thread()
        with Served(tmp_path_factory.mktemp("served"), engine={"workers": 1, "warm": ("tiny",)}) as server:
            yield server
