"""Weights from files that others made: ``.ckpt``, ``.pt``, ``.pth``, ``.bin`` and ``.safetensors``.

A torch file is a pickle, and a pickle is a program. It is read without being run
(:mod:`vitrail.backends.inert`), in a child process with limits (:mod:`vitrail.backends.unpacking`), which
writes safetensors into a temporary folder; only that is loaded here. What the file wanted to build beside
tensors (trainer state, configuration objects) becomes placeholders, and is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from vitrail.backends.containers import Container, check_container
from vitrail.backends.unpacking import CUT_OFF, Limits
from vitrail.errors import ArtifactError, StorageError
from vitrail.files import check_space, shown
from vitrail.store.weights import read_weights

__all__ = ["SUFFIXES", "Checkpoint", "about", "read_checkpoint"]

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")

MAX_BYTES = 64 << 30
_BASE_MEMORY = 768 << 20
_MAX_ANSWER = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """The named tensors of a foreign file, as stored (float16 stays float16), and what was left behind.

    ``place``: the key of the file under which the weights lay; "" for the top. ``dropped``: names beside the
    weights that hold no tensor. ``foreign``: the names of objects that became placeholders.
    """

    path: Path
    container: Container
    tensors: dict[str, Tensor] = field(repr=False)
    place: str = ""
    dropped: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint's weights, whatever wrote it, without running any of it.

    Raises :class:`ArtifactError` with one line for a file that is damaged, hostile or no checkpoint, and
    :class:`StorageError` where the temporary copy finds no room.
    """
    path = Path(path)
    with _opened(path) as file:
        try:
            container = check_container(file)
            if container == "safetensors":
                return Checkpoint(path, container, read_weights(path))
            return _converted(path, file, container)
        except ArtifactError as error:
            raise about(path, error) from None


_VERBS = (
    "is ",
    "has ",
    "holds ",
    "was ",
    "claims ",
    "needs ",
    "tried ",
    "could ",
    "took ",
    "begins ",
    "reads ",
)


def about(path: Path, error: ArtifactError) -> ArtifactError:
    """The same error, as a sentence that begins with the file's name."""
    message = str(error)
    if message.startswith(shown(path)):
        return error
    return ArtifactError(f"{shown(path)}{' ' if message.startswith(_VERBS) else ': '}{message}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        # Not blocking: a named pipe would wait for a writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "this is not a path"
        raise ArtifactError(f"cannot open {shown(path)}: {reason}") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise ArtifactError(f"{shown(path)} is not a file; give a checkpoint")
    with open(handle, "rb") as file:
        if status.st_size > MAX_BYTES:
            raise ArtifactError(f"{shown(path)} has {status.st_size} bytes; allowed are {MAX_BYTES}")
        yield file


def _converted(path: Path, file: BinaryIO, container: Container) -> Checkpoint:
    size = os.fstat(file.fileno()).st_size
    limits = Limits(
        memory=_BASE_MEMORY + 2 * size,
        seconds=30 + size // (20 << 20),
        output=max(4 * size, size + (16 << 20)),
    )
    with tempfile.TemporaryDirectory(prefix="vitrail-") as folder:
        check_space(folder, size)
        target = Path(folder) / "weights.safetensors"
        with open(target, "xb") as output:
            answer = _run_child(file, output, limits)
        if "storage" in answer:
            raise StorageError(f"cannot write the copy of {shown(path)} in {folder}: {answer['storage']}")
        if "error" in answer:
            raise ArtifactError(str(answer["error"]))
        return Checkpoint(
            path,
            container,
            read_weights(target),
            place=str(answer["place"]),
            dropped=tuple(map(str, answer["dropped"])),
            foreign=tuple(map(str, answer["foreign"])),
        )


def _run_child(file: BinaryIO, output: BinaryIO, limits: Limits) -> dict[str, Any]:
    """Run :mod:`vitrail.backends.unpacking` on an open file; its JSON answer."""
    package_home = str(Path(__file__).resolve().parents[2])
    # -I: neither the environment nor the working folder decides what is imported.
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); "
        "from vitrail.backends.unpacking import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = [str(output.fileno()), str(limits.memory), str(limits.seconds), str(limits.output)]
    file.seek(0)
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-c", program, package_home, *arguments],
        stdin=file,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=(output.fileno(),),
        env={"PYTHONUTF8": "1", "LC_ALL": "C.UTF-8"},
        cwd="/",
    )
    try:
        answer, _ = child.communicate(timeout=2 * limits.seconds + 30)
    except subprocess.TimeoutExpired:
        raise ArtifactError(
            f"took more than {limits.seconds} s to be read; it is damaged or hostile"
        ) from None
    finally:
        child.kill()
        child.wait()
    if child.returncode or len(answer) > _MAX_ANSWER:
        raise ArtifactError(_end_of(child.returncode, limits))
    parsed = json.loads(answer)
    return parsed if isinstance(parsed, dict) else {}


def _end_of(code: int, limits: Limits) -> str:
    if code == -getattr(signal, "SIGXCPU", 24) or code == -signal.SIGKILL.value:
        return f"took more than {limits.seconds} s to be read; it is damaged or hostile"
    if code in (CUT_OFF, -getattr(signal, "SIGBUS", 7)):
        return "was cut off while it was read; get it again"
    return f"could not be read: the reading process ended with code {code}"
