"""Which process is which, over restarts and machines; and processes that do not outlive their parent."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = [
    "Identity",
    "alive",
    "collect_seldom",
    "cpu_seconds",
    "die_with_parent",
    "ignore_signals",
    "serve_parent",
    "unsignalled",
]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Identity:
    """A worker: its name, and the process behind it. ``birth`` differs from process to process."""

    name: str
    machine: str
    pid: int
    birth: str

    @classmethod
    def mine(cls, name: str | None = None) -> Identity:
        """Of this process; without ``name`` a fresh one."""
        host = socket.gethostname()[:60]
        fresh = f"{host}-{os.getpid()}-{secrets.token_hex(4)}" if name is None else name
        return cls(fresh, _machine(), os.getpid(), _birth(os.getpid()))


def alive(machine: str, pid: int, birth: str) -> bool:
    """Whether that process may still live; True for every process that cannot be seen from here."""
    if machine != _machine():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _birth(pid) == birth


def cpu_seconds(pid: int) -> float | None:
    """Processor time that a process has used, None where that cannot be told."""
    try:
        values = _stat(pid)
        return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def die_with_parent(parent: int) -> None:
    """Let the system end this process when the thread that started it ends (Linux), even while it hangs.

    ``parent``: the process that must be the parent; this one ends at once if it is not any more.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def ignore_signals() -> None:
    """Leave SIGINT and SIGTERM to the parent: a Ctrl-C reaches all of a terminal's processes."""
    for name in _SIGNALS:
        signal.signal(name, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # what came meanwhile is gone, too


@contextlib.contextmanager
def unsignalled() -> Iterator[None]:
    """In the block SIGINT and SIGTERM wait, and reach no thread and no process that is started there.

    So one that still imports, and cannot say yet that they are its parent's, does not die of them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve_parent(parent: int) -> None:
    """Be a process that works for ``parent`` alone: it may be lost, and ends when the parent says so."""
    die_with_parent(parent)
    ignore_signals()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("600")  # when memory runs out, rather this than a server


def collect_seldom() -> None:
    """Let Python look for rubbish seldom, and never among what this process has loaded by now.

    A request leaves thousands of objects, nearly all gone with it. Looking through them every 700, in caches
    that a drawing has emptied, took 2 ms a picture.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@cache
def _machine() -> str:
    """This machine since it was started, and the space of process numbers in it."""
    boot, space = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(os.stat("/proc/self/ns/pid").st_ino)
    return f"{socket.gethostname()[:60]}/{boot}/{space}"


def _birth(pid: int) -> str:
    try:
        values = _stat(pid)
        return "" if values[0] == "Z" else values[19]  # a zombie has ended, whatever kill() says
    except (OSError, IndexError):
        return ""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on (proc(5)); the second may hold blanks."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
