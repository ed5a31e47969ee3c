"""A real PostgreSQL server for tests: Debian's, in a folder of its own, on a free port of 127.0.0.1.

``postgres_url`` gives every test a new, empty database. Without the server's programs such a test is left
out; where VITRAIL_REQUIRE names ``postgres`` that is an error instead.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDERS = (*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/bin"))
START_SECONDS = 30.0


class PostgresServer:
    """A running server. ``url(database)`` is its address, ``new_database()`` makes one with nothing in it."""

    def __init__(self, programs: Path, folder: Path) -> None:
        # initdb and postgres refuse to be root.
        self._as: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        self._as |= {"cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC"}}
        self._programs, self._folder = programs, folder
        self.password = secrets.token_hex(16)
        self.port = _free_port()
        if os.getuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        secret = folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        options = f"-U vitrail -E UTF8 -A scram-sha-256 --no-sync --pwfile={secret} -D {folder / 'data'}"
        subprocess.run(
            [programs / "initdb", *options.split()],
            check=True,
            capture_output=True,
            **self._as,
        )
        secret.unlink()
        self._server: subprocess.Popen[bytes] | None = None
        self.start()

    def url(self, database: str = "postgres") -> str:
        """The address of a database of this server."""
        return f"postgresql://vitrail:{self.password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Make an empty database and return its address."""
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str) -> None:
        """Run one statement outside of every transaction."""
        import psycopg

        with contextlib.closing(psycopg.connect(self.url(), autocommit=True)) as connection:
            connection.execute(statement.encode())

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "64MB",
            "fsync": "off",  # the machine is not switched off in a test
        }
        command: list[str | Path] = [self._programs / "postgres", "-D", self._folder / "data"]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with open(self._folder / "log", "ab") as log:
            self._server = subprocess.Popen(command, stdout=log, stderr=log, **self._as)
        give_up = time.monotonic() + START_SECONDS
        while True:
            try:
                self.execute("SELECT 1")
                return
            except Exception:
                if self._server.poll() is not None or time.monotonic() > give_up:
                    raise
                time.sleep(0.05)

    def stop(self, *, kill: bool = False) -> None:
        """Stop the server; with ``kill`` it gets no chance to tidy up, as when a machine goes down."""
        if self._server is not None:
            # SIGQUIT ends every process of the server at once; SIGKILL on the first alone would leave them.
            self._server.send_signal(signal.SIGQUIT if kill else signal.SIGINT)
            try:
                self._server.wait(20)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            self._server = None


def programs() -> Path | None:
    """The folder of PostgreSQL's programs, None without them."""
    return next((folder for folder in FOLDERS if (folder / "initdb").exists()), None)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for the whole run."""
    found = programs()
    if found is None:
        if "postgres" in os.environ.get("VITRAIL_REQUIRE", ""):
            pytest.fail("VITRAIL_REQUIRE names postgres, and its programs are not installed")
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    # Not pytest's folder: that one is closed to the user whom the server must run as.
    folder = Path(tempfile.mkdtemp(prefix="vitrail-postgres-", dir="/tmp"))
    server = None
    try:
        server = PostgresServer(found, folder)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """The address of a new, empty database."""
    return postgres_server.new_database()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
