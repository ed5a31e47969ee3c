"""The C kernels: compiled once with the system's own compiler, kept in a private folder, loaded by ctypes.

The file name of a build carries a hash of the sources, the compiler, its flags and the processor's features,
so that a newer vitrail, another compiler or another machine that shares the home folder builds its own. A
build appears by one rename. Where there is no compiler (or ``VITRAIL_KERNELS=off``) :func:`library` returns
None and every caller takes its plain PyTorch path: the same pictures, slower.

ctypes releases Python's lock for the length of a call. Threads are those of the OpenMP that torch itself runs
on, so that the two never compete for a core.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vitrail.files import cache_folder

__all__ = ["Library", "build", "find_compiler", "give_back", "library", "pointer", "scratch"]

_LOG = logging.getLogger(__name__)
_SOURCES = Path(__file__).parent / "native"
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
_MACHINE = ("-march=native", "-mcpu=native", "")
_SECONDS = 180.0
_local = threading.local()


class Library:
    """The loaded kernels. ``lanes``: float32 numbers of one vector; ``panel``: columns packed together."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw = ctypes.CDLL(str(path))
        self.lanes: int = self.raw.vitrail_lanes()
        self.panel = 2 * self.lanes
        for name in ("winograd", "direct", "group_norm", "attention"):
            getattr(self.raw, f"vitrail_{name}_scratch").restype = ctypes.c_long
        self.raw.vitrail_pack_winograd_bytes.restype = ctypes.c_long
        call = _openmp()
        if call is not None:
            self.raw.vitrail_set_parallel(call)

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return _reloaded, ()  # a copied or unpickled layer uses the one that its process has loaded

    def __deepcopy__(self, memory: dict[int, object]) -> Library:
        return self

    def large_pages(self, fresh: Tensor) -> Tensor:
        """Ask for large pages under a tensor that nobody has written to yet, and return it."""
        if fresh.numel() >= 1 << 20:
            size = fresh.untyped_storage().nbytes()
            self.raw.vitrail_large_pages(ctypes.c_void_p(fresh.data_ptr()), ctypes.c_size_t(size))
        return fresh

    def forget(self, unused: Tensor) -> None:
        """Give the memory of ``unused`` (contiguous) back to the system: what it held is lost."""
        self.raw.vitrail_forget(pointer(unused), ctypes.c_size_t(unused.nbytes))

    @property
    def threads(self) -> int:
        """Threads that a kernel may use: as many as torch's own operations do."""
        return torch.get_num_threads()


def library() -> Library | None:
    """Return the kernels, built on first use; None where they are switched off or cannot be built.

    The reason is logged once, as a warning. ``VITRAIL_KERNELS``: ``off``, or ``on`` (the default).
    """
    if os.environ.get("VITRAIL_KERNELS", "on").strip().lower() in ("off", "0", "no", "false"):
        return None
    return _loaded()


def _reloaded() -> Library:
    found = library()
    if found is None:
        raise RuntimeError("the network was packed for kernels that this machine does not have")
    return found


@functools.cache
def _loaded() -> Library | None:
    try:
        return Library(build())
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        _LOG.warning("no fast kernels (%s); PyTorch's own are used: the same pictures, slower", error)
        return None


def build(folder: Path | None = None, *, machine: Sequence[str] | None = None) -> Path:
    """Return the shared object of the kernels in ``folder``, compiling it where it is not there yet.

    folder: default ``kernels`` of :func:`vitrail.files.cache_folder`. machine: the compiler's options for the
    processor, the first that works is taken. Raises OSError or subprocess.SubprocessError: no compiler, a
    compiler that fails, a folder that others may write to.
    """
    compiler = find_compiler()
    sources = sorted(_SOURCES.glob("*.[ch]"))
    units = [str(path) for path in sources if path.suffix == ".c"]
    place = folder if folder is not None else cache_folder() / "kernels"
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    choices = tuple(machine) if machine is not None else _MACHINE
    key = hashlib.sha256()
    parts = [path.read_bytes() for path in sources]
    parts += [text.encode() for text in (_version(compiler), _processor(), repr((_FLAGS, choices)))]
    for part in parts:
        key.update(part)
        key.update(b"\0")
    target = place / f"kernels-{key.hexdigest()[:24]}.so"
    _check_private(place)
    if target.is_file():
        _check_private(target)
        return target
    failure = ""
    for choice in choices:
        with tempfile.TemporaryDirectory(dir=place, prefix=".build-") as inside:
            made = Path(inside) / "kernels.so"
            command = [compiler, *_FLAGS, *choice.split(), *units, "-o", str(made), "-lm"]
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
            )
            if done.returncode == 0:
                made.chmod(0o700)
                os.replace(made, target)
                return target
            failure = (done.stderr.strip().splitlines() or ["no message"])[0]
    raise OSError(f"{compiler} cannot build the kernels: {failure[:200]}")


def find_compiler() -> str:
    """Return the path of the C compiler (``$CC`` first); OSError where there is none."""
    for name in (os.environ.get("CC", ""), *_COMPILERS):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise OSError("no C compiler was found (cc, gcc or clang)")


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Return the address of a tensor's first element, or null."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def scratch(lib: Library, floats: int) -> Tensor:
    """Return at least ``floats`` float32 of working memory, kept for the calling thread.

    What was there is not wiped; the next call may return the same memory.
    """
    held: Tensor | None = getattr(_local, "memory", None)
    if held is None or held.numel() < floats:
        _local.memory = None  # the old block goes before the new one comes
        held = torch.empty(floats, dtype=torch.float32)
        lib.large_pages(held)
        _local.memory = held
    return held


def give_back() -> None:
    """Give memory that was freed, working memory too, back to the system: before what needs much of it.

    Does nothing where the C library is not glibc.
    """
    _local.memory = None
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _openmp() -> ctypes.c_void_p | None:
    """Return the address of ``GOMP_parallel`` in the OpenMP that torch loaded."""
    candidates: list[str | None] = [None]
    candidates += [str(path) for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))]
    for name in candidates:
        try:
            return ctypes.cast(ctypes.CDLL(name).GOMP_parallel, ctypes.c_void_p)
        except (OSError, AttributeError):
            continue
    return None


def _version(compiler: str) -> str:
    done = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, errors="replace", timeout=30, check=False
    )
    return f"{compiler} {done.stdout}"


def _processor() -> str:
    """Return what tells one processor's instructions from another's."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    lines = text.split("\n\n", 1)[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(("model", "flags", "Features", "CPU part")))


def _check_private(path: Path) -> None:
    """Refuse what another user of the machine could have written: it would be run as code."""
    if not hasattr(os, "getuid"):
        return
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(
            f"{path} can be written by other users; remove it or set VITRAIL_DATA to a private folder"
        )
