"""The child process that turns a torch file into safetensors; run by :mod:`vitrail.backends.checkpoints`.

Standard input is the file itself, standard output one JSON line, the given descriptor the file to write. The
process limits its memory, time and files before it looks at a byte, and refuses by an audit hook to open
files, start programs, connect, import or compile from then on: a second wall behind the inert reader, in
case that has a hole. It needs neither torch nor numpy. The numbers are copied from the mapped file, so
memory does not grow with it, and a file that is cut off meanwhile (SIGBUS) kills this process alone.
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import mmap
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from vitrail.backends.containers import Parts, container_of, read_parts
from vitrail.backends.inert_values import Named, Opaque, TensorPlan
from vitrail.errors import ArtifactError
from vitrail.files import shown

__all__ = ["CUT_OFF", "Limits", "extract", "main"]

STATE_NAMES = ("state_dict", "model_state_dict", "model", "module", "params_ema", "params", "string_to_param")
"""Under which of the root's keys the weights may lie, in this order; else the root itself is the weights."""

_CHUNK = 4 << 20
_MAX_TENSORS = 50_000
_MAX_HEADER = 8 << 20
_FORBIDDEN = (
    "open", "exec", "compile", "import", "marshal.", "pickle.", "os.", "subprocess.", "socket.", "ctypes.",
    "shutil.", "pty.", "signal.", "fcntl.", "tempfile.", "urllib.", "webbrowser.", "code.", "syslog.",
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What the child may use: bytes of memory, seconds of processor, bytes of output."""

    memory: int
    seconds: int
    output: int


CUT_OFF = 7
"""Exit status where the kernel met the end of a file that was cut off; Python meets it as SIGBUS (7)."""


def main(arguments: list[str]) -> int:
    """Read standard input, write the tensors to descriptor ``arguments[0]``, print a JSON line.

    Returns 0, or :data:`CUT_OFF` (without a line) where the file has become shorter meanwhile.
    """
    descriptor, limits = int(arguments[0]), Limits(*map(int, arguments[1:4]))
    for name in ("utf-8", "latin1", "ascii", "raw-unicode-escape"):
        "".encode(name)  # codecs are imported at first use
    _restrict(limits)
    try:
        answer = extract(sys.stdin.buffer, descriptor, limits.output)
    except ArtifactError as error:
        answer = {"error": shown(error, 500)}
    except MemoryError:
        answer = {"error": f"needs more than {limits.memory >> 20} MiB to be read; it is damaged or hostile"}
    except RecursionError:
        answer = {"error": "is nested too deeply; it is damaged or hostile"}
    except OSError as error:
        if error.errno == errno.EFAULT:  # the kernel met the missing pages as it wrote: no SIGBUS then
            return CUT_OFF
        answer = {"storage": error.strerror or "the file cannot be written"}
    os.write(1, json.dumps(answer).encode() + b"\n")
    return 0


def _restrict(limits: Limits) -> None:
    if sys.platform != "win32":
        import resource

        wanted = {
            resource.RLIMIT_AS: limits.memory,
            resource.RLIMIT_CPU: limits.seconds,
            resource.RLIMIT_FSIZE: limits.output + _MAX_HEADER + 8,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_NPROC: 0,
        }
        for kind, amount in wanted.items():
            _, most = resource.getrlimit(kind)
            amount = amount if most == resource.RLIM_INFINITY else min(amount, most)
            resource.setrlimit(kind, (amount, amount))
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit is then an OSError

    def forbid(event: str, _: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            raise ArtifactError(f"tried to reach outside of itself ({event}); do not use this file")

    sys.addaudithook(forbid)


def extract(source: BinaryIO, descriptor: int, most: int) -> dict[str, Any]:
    """Write the weights in torch file ``source`` to ``descriptor`` as safetensors; returns what they are.

    At most ``most`` bytes of numbers are written. Raises :class:`ArtifactError` or ``OSError``.
    """
    container_of(source)  # an empty file cannot be mapped
    whole = memoryview(mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ))
    parts = read_parts(source, whole)
    place, state = weights_of(parts.root)
    plans, dropped = _plans(state)
    plans = dict(sorted(plans.items(), key=lambda item: (-item[1].kind.size, item[0])))
    header: dict[str, Any] = {}
    position = 0
    for name, plan in plans.items():
        parts.block(plan.storage)
        end = position + plan.count * plan.kind.size
        header[name] = {"dtype": plan.kind.name, "shape": plan.shape, "data_offsets": [position, end]}
        position = end
        if position > most:
            raise ArtifactError(
                f"holds {most >> 20} MiB of numbers by its size, but would unfold to more; it is hostile"
            )
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER:
        raise ArtifactError(f"has names of {len(text)} bytes in all; allowed are {_MAX_HEADER}")
    _write(descriptor, len(text).to_bytes(8, "little") + text)
    checked: set[str] = set()
    for plan in plans.values():
        _check_crc(parts, plan, whole, checked)
        for piece in _pieces(parts, plan, whole):
            _write(descriptor, piece)
    foreign = sorted(shown(name, 80) for name in parts.foreign)
    return {"tensors": len(plans), "place": place, "dropped": dropped[:50], "foreign": foreign[:50]}


def weights_of(root: object) -> tuple[str, Mapping[Any, Any]]:
    """Find the dictionary of named tensors in what a file describes, and say where it was."""
    if isinstance(root, Opaque):
        raise ArtifactError(
            f"holds a whole object ({shown(root.what, 60)}) and not named weights; ask for its state_dict"
        )
    if not isinstance(root, dict):
        raise ArtifactError(f"holds {_what(root)} and not named weights")
    for name in STATE_NAMES:
        inner = root.get(name)
        if isinstance(inner, dict) and (
            name == "state_dict" or any(isinstance(value, TensorPlan) for value in inner.values())
        ):
            return name, inner
        if isinstance(inner, Opaque):
            raise ArtifactError(f"its {name} is an object ({shown(inner.what, 60)}) and not named weights")
    if any(isinstance(value, TensorPlan) for value in root.values()):
        return "", root
    names = ", ".join(shown(key, 40) for key in list(root)[:8] if isinstance(key, str)) or "nothing"
    raise ArtifactError(f"holds no named weights; it holds {names}")


def _plans(state: Mapping[Any, Any]) -> tuple[dict[str, TensorPlan], list[str]]:
    plans: dict[str, TensorPlan] = {}
    dropped: list[str] = []
    if len(state) > _MAX_TENSORS:
        raise ArtifactError(f"holds {len(state)} weights; allowed are {_MAX_TENSORS}")
    for name, value in state.items():
        if not isinstance(name, str) or not name or len(name) > 500 or not name.isprintable():
            raise ArtifactError(f"has a weight whose name is no plain text ({shown(name, 40)})")
        if isinstance(value, TensorPlan):
            if name == "__metadata__":
                raise ArtifactError("has a weight called __metadata__, which is the file format's own name")
            plans[name] = value
        elif value is None or isinstance(value, bool | int | float | str):
            dropped.append(shown(name, 80))
        else:
            raise ArtifactError(f"its {shown(name, 60)} is {shown(_what(value), 80)} and not a tensor")
    if not plans:
        raise ArtifactError("holds no weights: its state_dict is empty")
    return plans, dropped


def _what(value: object) -> str:
    if isinstance(value, Opaque):
        return f"an object ({value.what})"
    kind = type(value).__name__
    return str(value) if isinstance(value, Named) else f"a{'n' if kind[0] in 'aeiou' else ''} {kind}"


def _check_crc(parts: Parts, plan: TensorPlan, whole: memoryview, checked: set[str]) -> None:
    block = parts.block(plan.storage)
    if block.crc is None or plan.storage.key in checked:
        return
    checked.add(plan.storage.key)
    whole_block = parts.blocks[plan.storage.key]
    crc, end = 0, whole_block.start + whole_block.size
    for start in range(whole_block.start, end, _CHUNK):
        crc = zlib.crc32(whole[start : min(start + _CHUNK, end)], crc)
    if crc != block.crc:
        raise ArtifactError("is damaged: a block of numbers differs from its checksum; get the file again")


def _pieces(parts: Parts, plan: TensorPlan, whole: memoryview) -> Iterator[memoryview | bytearray]:
    """The tensor's numbers in row-major order, in pieces of bounded size."""
    block, width = parts.block(plan.storage), plan.kind.size
    first = block.start + plan.offset * width
    if plan.count == 0:
        return
    if plan.contiguous:
        end = first + plan.count * width
        for start in range(first, end, _CHUNK):
            yield whole[start : min(start + _CHUNK, end)]
        return
    yield _gathered(plan, whole[first : block.start + block.size], width)


def _gathered(plan: TensorPlan, numbers: memoryview, width: int) -> bytearray:
    """A strided tensor in row-major order: copied line by line along its longest axis, a slice with a step
    each."""
    gathered = bytearray(plan.count * width)
    codes: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
    code = codes[width]
    given = numbers[: len(numbers) // width * width].cast("B").cast(code)
    made = memoryview(gathered).cast(code)
    strides = [math.prod(plan.shape[axis + 1 :]) for axis in range(len(plan.shape))]
    axes = [axis for axis in range(len(plan.shape)) if plan.stride[axis]]
    if not axes:  # one number, repeated
        gathered[:] = given[:1].tobytes() * plan.count
        return gathered
    longest = max(axes, key=lambda axis: plan.shape[axis])
    length, step, made_step = plan.shape[longest], plan.stride[longest], strides[longest]
    others = [axis for axis in range(len(plan.shape)) if axis != longest]
    for index in itertools.product(*(range(plan.shape[axis]) for axis in others)):
        start = sum(i * plan.stride[axis] for i, axis in zip(index, others, strict=True))
        place = sum(i * strides[axis] for i, axis in zip(index, others, strict=True))
        made[place : place + (length - 1) * made_step + 1 : made_step] = given[
            start : start + (length - 1) * step + 1 : step
        ]
    return gathered


def _write(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
