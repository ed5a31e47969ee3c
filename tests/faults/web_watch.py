"""Sees every file that this process opens and every connection that it makes, for the tests of the server."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_FILES: list[str] | None = None
_CONNECTIONS: list[str] | None = None
_ALLOWED: tuple[str, ...] = ()
_WRITES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir")


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" or event in _WRITES:
        if _FILES is not None and isinstance(arguments[0], str | bytes | os.PathLike):
            _FILES.append(os.path.abspath(os.fsdecode(arguments[0])))
    elif _CONNECTIONS is not None and event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        place = str(arguments[1] if event != "socket.getaddrinfo" else arguments[:2])
        if not any(part in place for part in _ALLOWED):
            _CONNECTIONS.append(place)


sys.addaudithook(_hook)  # for good: Python has no way to take one out again


@contextlib.contextmanager
def opened() -> Iterator[list[str]]:
    """Paths that are opened, listed, renamed or removed in the block, by whatever thread."""
    global _FILES
    _FILES = []
    try:
        yield _FILES
    finally:
        _FILES = None


@contextlib.contextmanager
def connected(*allowed: str) -> Iterator[list[str]]:
    """Places that are connected to or looked up in the block, without those that hold one of ``allowed``."""
    global _CONNECTIONS, _ALLOWED
    _CONNECTIONS, _ALLOWED = [], allowed
    try:
        yield _CONNECTIONS
    finally:
        _CONNECTIONS = None


def outside(paths: list[str], *roots: Path | str) -> list[str]:
    """Those of ``paths`` that lie in none of ``roots``, nor among Python's and the system's libraries."""
    own = [sys.prefix, sys.base_prefix, "/usr/lib", "/usr/share", "/proc/self", "/dev", "/sys", "/etc/mime"]
    allowed = [os.path.realpath(root) for root in (*own, *roots)]
    return [path for path in paths if not any(os.path.realpath(path).startswith(root) for root in allowed)]
