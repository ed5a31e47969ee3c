"""What went wrong, as a name that programs know and one line for people."""

from __future__ import annotations

import contextlib
import re
import sys
import traceback

from vitrail.errors import VitrailError

__all__ = ["OUT_OF_MEMORY", "code_of", "complain", "explained"]

OUT_OF_MEMORY = "OutOfMemory"


_NO_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory|out of memory|ALLOC_FAILED|bad_alloc"
    r"|can't start new thread|could not (?:create|execute) a (?:primitive|memory object)$",  # oneDNN's
    re.IGNORECASE,
)


class _OutOfMemoryError(VitrailError):
    """More memory was needed than there is."""


def explained(error: BaseException) -> BaseException:
    """Return ``error``, or a line of ours in place of what Python or torch says when memory runs out."""
    # A GPU's allocator has its own exception; the CPU's says so in a RuntimeError, the system in an OSError.
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if out_of_memory or (isinstance(error, RuntimeError | OSError) and _NO_MEMORY.search(str(error))):
        needed = re.search(r"ried to allocate ([\d.]+) ?([KMGT]i?B|bytes)", str(error))
        more = f" ({_bytes(needed[1], needed[2])} more were needed)" if needed else ""
        return _OutOfMemoryError(
            f"not enough memory for this picture{more}; ask for a smaller size, use --tile, or --device cpu"
        )
    return error


def code_of(error: BaseException) -> tuple[str, str]:
    """Return (code, message) as :class:`vitrail.serving.jobs.JobError` has them."""
    found = explained(error)
    if isinstance(found, _OutOfMemoryError):
        return OUT_OF_MEMORY, str(found)
    if isinstance(found, VitrailError):
        return type(found).__name__, str(found)
    return (
        "InternalError",
        f"this is a mistake of vitrail's own ({type(found).__name__}); the worker's output has details",
    )


def complain(about: str | BaseException) -> None:
    """Print a line, or a mistake of ours with its traceback, for who runs the server.

    Nothing fails of it: the log may lie on the very disk that is full, or its reader be gone.
    """
    with contextlib.suppress(OSError, ValueError):
        if isinstance(about, str):
            print(about, file=sys.stderr, flush=True)
        else:
            traceback.print_exception(about)


def _bytes(number: str, unit: str) -> str:
    """A number of bytes as torch says it, in the unit that suits it."""
    size = float(number) * 1024 ** ("BKMGT".index(unit[0]) if unit != "bytes" else 0)
    for name in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {name}"
        size /= 1024
    return f"{size:.3g} TiB"
