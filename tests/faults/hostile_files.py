"""Hostile checkpoints, made by hand: each would run a command, read beyond its data or fill the memory.

:func:`exploits` are pickles that, opened by Python's own reader, really create the canary (the tests prove
it). `lies` and `bombs` are files that lie about themselves.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Calls:
    """Pickles as a call of ``function(*arguments)``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.made


def text(value: str) -> bytes:
    """Instruction that pushes a text."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def named(module: str, name: str) -> bytes:
    """Instruction that pushes a global."""
    return b"c" + f"{module}\n{name}\n".encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """Instructions that push the result of a call."""
    return named(module, name) + b"(" + b"".join(arguments) + b"tR"


def whole(*instructions: bytes) -> bytes:
    """A pickle of protocol 2."""
    return b"\x80\x02" + b"".join(instructions) + b"."


def state(value: bytes) -> bytes:
    """A pickle of ``{"state_dict": {"weight": value}}``."""
    return whole(b"}", text("state_dict"), b"}", text("weight"), value, b"ss")


def zipped(data: bytes, blocks: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """A torch file with this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for key, block in (blocks or {}).items():
            archive.writestr(f"archive/data/{key}", block)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def exploits(canary: Path, other: Path) -> dict[str, bytes]:
    """Pickles by name that create ``canary`` when they are opened; ``other`` is a file to use on the way."""
    import functools
    import importlib
    import os
    import runpy
    import subprocess

    touch = f"touch {canary}"
    write = f"open({str(canary)!r}, 'w').close()"
    line = touch.encode()
    other.write_text(write)
    dumped = {
        "system at the root": Calls(os.system, touch),
        "system as a weight": {"state_dict": {"weight": Calls(os.system, touch)}},
        "system as a name": {"state_dict": {Calls(os.system, touch): torch.Size([1])}},
        "system beside the weights": {"state_dict": {}, "callbacks": [Calls(os.system, touch)]},
        "system deep inside": {"a": [{"b": ({"c": [Calls(os.system, touch)]},)}]},
        "system in an OrderedDict": OrderedDict(a=Calls(os.system, touch)),
        "popen": Calls(subprocess.Popen, ["touch", str(canary)]),
        "check_output": Calls(subprocess.check_output, ["touch", str(canary)]),
        "eval": Calls(eval, f"__import__('os').system({touch!r})"),
        "exec": Calls(exec, write),
        "compile": Calls(exec, Calls(compile, write, "x", "exec")),
        "partial": Calls(functools.reduce, functools.partial(exec), [write, {}]),
        "run_path": Calls(runpy.run_path, str(other)),
        "import_module": Calls(eval, write, Calls(vars, Calls(importlib.import_module, "builtins"))),
        "open": Calls(open, str(canary), "w"),
        "mkdir": Calls(os.mkdir, str(canary)),
        "pickle in a pickle": Calls(pickle.loads, pickle.dumps(Calls(os.system, touch))),
        "torch.load": Calls(functools.partial(torch.load, weights_only=False), str(other.with_suffix(".pt"))),
    }
    found = {name: pickle.dumps(value, 2) for name, value in dumped.items()}
    found |= {f"{name}, protocol 4": pickle.dumps(dumped[name], 4) for name in ("system as a weight", "eval")}
    found |= {
        "by lines": b"cos\nsystem\n(S'" + line + b"'\ntR.",
        "inst": b"(S'" + line + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'" + line + b"'\no.",
        "import by hand": whole(
            call("builtins", "getattr", call("builtins", "__import__", text("os")), text("system")),
            b"(" + text(touch) + b"tR",
        ),
        "attrgetter": whole(
            call("operator", "attrgetter", text("system")),
            b"(" + call("builtins", "__import__", text("os")) + b"tR",
            b"(" + text(touch) + b"tR",
        ),
        "a dotted name": b"\x80\x04"
        + text("torch.serialization")
        + text("os.system")
        + b"\x93("
        + text(touch)
        + b"tR.",
        "a dotted name of dunders": b"\x80\x04"
        + text("collections")
        + text("OrderedDict.__init__.__class__")
        + b"\x930"
        + text("torch.storage")
        + text("io.open")
        + b"\x93("
        + text(str(canary))
        + text("w")
        + b"tR.",
        "names from the memo": whole(
            text("os"), b"q\x00", text("system"), b"q\x01", b"00", b"h\x00h\x01\x93", b"(", text(touch), b"tR"
        ),
        "a set state": whole(
            named("argparse", "Namespace"),
            b")\x81",
            b"}" + text("__setstate__") + named("os", "system") + b"sb",
            text(touch) + b"b",
        ),
        "a class as a key": whole(b"}", call("os", "system", text(touch)), b"Ns"),
        "after a good state": state(b"N")[:-1] + call("posix", "system", text(touch)) + b"0.",
        "a popped result": whole(call("posix", "system", text(touch)), b"0", b"}"),
        "in a persistent id": whole(
            b"(", text("storage"), call("os", "system", text(touch)), text("0"), text("cpu"), b"K\x01", b"tQ"
        ),
        "numpy objects": whole(
            b"}",
            text("state_dict"),
            b"}",
            text("weight"),
            call("numpy", "array", b"]" + call("os", "system", text(touch)) + b"a"),
            b"ss",
        ),
        "an ordered dict of pairs": whole(
            call(
                "collections", "OrderedDict", b"]" + text("a") + call("os", "system", text(touch)) + b"\x86a"
            )
        ),
    }
    return found


def _saved(value: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


def good() -> bytes:
    """A sound checkpoint of one weight, four float32."""
    return _saved({"state_dict": {"weight": torch.arange(4.0)}})


def storage(key: str = "0", count: int = 4, kind: str = "FloatStorage") -> bytes:
    """Instructions that push a block of ``count`` numbers."""
    number = b"\x8a\x08" + struct.pack("<q", count)
    return b"(" + text("storage") + named("torch", kind) + text(key) + text("cpu") + number + b"tQ"


def integers(*values: int) -> bytes:
    """Instructions that push a tuple of whole numbers."""
    return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"


def tensor(block: bytes, offset: bytes, shape: bytes, stride: bytes) -> bytes:
    """Instructions that push a tensor."""
    return call(
        "torch._utils",
        "_rebuild_tensor_v2",
        block,
        offset,
        shape,
        stride,
        b"\x89",
        call("collections", "OrderedDict"),
    )


def lies() -> dict[str, tuple[bytes, str]]:
    """Whole files by name, each with words of the message that refuses it."""
    numbers = {"0": bytes(16)}
    zero, four, one = b"K\x00", integers(4), integers(1)
    sound = good()
    stream = _saved({"state_dict": {"weight": torch.arange(4.0)}}, _use_new_zipfile_serialization=False)

    def of(value: bytes) -> bytes:
        return zipped(state(value), numbers)

    found: dict[str, tuple[bytes, str]] = {
        "empty": (b"", "is empty"),
        "a page": (b"<!doctype html>" * 10, "is not a checkpoint"),
        "a plain pickle": (pickle.dumps({"weight": [1.0]}), "torch.save did not write"),
        "an oldest tar": (b"\0" * 257 + b"ustar" + b"\0" * 300, "oldest format"),
        "not numbers": (of(tensor(text("x"), zero, four, one)), "other than a block of numbers"),
        "too few arguments": (of(call("torch._utils", "_rebuild_tensor_v2", storage())), "wrongly"),
        "beyond the block": (of(tensor(storage(), b"K\x01", four, one)), "reaches beyond its block of 4"),
        "far beyond": (of(tensor(storage(), zero, four, integers(2**40))), "reaches beyond"),
        "a negative offset": (of(tensor(storage(), integers(-4)[1:-1], four, one)), "instead of a count"),
        "a negative stride": (of(tensor(storage(), zero, four, integers(-1))), "instead of a count"),
        "a negative size": (of(tensor(storage(), zero, integers(-4), one)), "instead of a count"),
        "a size that is text": (
            of(tensor(storage(), zero, b"(" + text("4") + b"t", one)),
            "str instead of a count",
        ),
        "a flag as a size": (of(tensor(storage(), zero, b"\x88\x85", one)), "bool instead of a count"),
        "sizes without strides": (of(tensor(storage(), zero, integers(2, 2), one)), "2 sizes and 1 strides"),
        "a hundred dimensions": (
            of(tensor(storage(), zero, integers(*[1] * 100), integers(*[1] * 100))),
            "100 sizes",
        ),
        "an unfolding": (of(tensor(storage(), zero, integers(10**6, 10**6), integers(0, 0))), "would unfold"),
        "an overflow": (
            of(tensor(storage(), zero, integers(2**61, 2**61, 2**61), integers(0, 0, 0))),
            "would unfold",
        ),
        "a block that claims more": (
            of(tensor(storage(count=2**40), zero, four, one)),
            "16 bytes instead of",
        ),
        "a block that is not there": (
            of(tensor(storage("9"), zero, four, one)),
            "lacks the block of numbers 9",
        ),
        "a block outside": (of(tensor(storage("../data.pkl"), zero, four, one)), "lacks the block"),
        "a block of another type": (of(tensor(storage(kind="Tensor"), zero, four, one)), "block of numbers"),
        "a weight of no tensor": (of(b"]"), "is a list and not a tensor"),
        "a weight of objects": (
            of(
                call(
                    "numpy.core.multiarray",
                    "_reconstruct",
                    named("numpy", "ndarray"),
                    b"K\x00\x85",
                    b"C\x01b",
                )
            ),
            "numpy.core.multiarray._reconstruct) and not a tensor",
        ),
        "a whole model": (
            zipped(whole(named("mine.models", "Net"), b")\x81}b")),
            "a whole object (mine.models.Net)",
        ),
        "no weights": (zipped(whole(b"}", text("epoch"), b"K\x01s")), "it holds epoch"),
        "an empty state": (zipped(whole(b"}", text("state_dict"), b"}s")), "its state_dict is empty"),
        "a number": (zipped(whole(b"K\x01")), "holds an int and not"),
        "an unknown instruction": (zipped(b"\x80\x02\xff."), "unknown instruction 0xff"),
        "an extension": (zipped(whole(b"\x82\x01")), "registered extensions"),
        "a buffer outside": (zipped(whole(b"\x97")), "buffers outside"),
        "a reference by line": (zipped(b"Pstorage\n."), "references by line"),
        "a stack with nothing": (zipped(whole(b"R")), "damaged"),
        "a mark with nothing": (zipped(whole(b"t")), "damaged"),
        "a memo with nothing": (zipped(whole(b"h\x07")), "damaged"),
        "no end": (zipped(b"\x80\x02}"), "ends too early"),
        "a text of 2^62 bytes": (
            zipped(b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x."),
            "ends too early",
        ),
        "an integer of 2 GB": (
            zipped(whole(b"\x8b" + struct.pack("<i", 2**31 - 1))),
            "integer of 2147483647",
        ),
        "a decimal of a megabyte": (zipped(b"I" + b"9" * 2**20 + b"\n."), "without an end"),
        "protocol 9": (zipped(b"\x80\x09}."), "protocol 9"),
        "attributes of a number": (zipped(whole(b"K\x01}b")), "sets attributes of a plain value"),
        "items of a tuple": (zipped(whole(b")", text("a"), b"K\x01s")), "sets items of a tuple"),
        "a name of control characters": (
            zipped(
                whole(
                    b"}",
                    text("state_dict"),
                    b"}",
                    text("a\x1b[31m\n"),
                    tensor(storage(), zero, four, one),
                    b"ss",
                ),
                numbers,
            ),
            "no plain text",
        ),
        "a compressed archive": (
            zipped(state(b"N"), {"0": bytes(10**6)}, zipfile.ZIP_DEFLATED),
            "compressed member",
        ),
        "two pickles": (_archive({"a/data.pkl": b"N.", "b/data.pkl": b"N."}), "2 torch pickles"),
        "no pickle": (_archive({"word/document.xml": b"<w/>"}), "0 torch pickles"),
        "a program": (_archive({"a/data.pkl": b"N.", "a/code/x": b"def f(): pass"}), "TorchScript"),
        "another byte order": (_archive({"a/data.pkl": b"N.", "a/byteorder": b"big"}), "byte order"),
        "a cut zip": (sound[:-30], "cut off"),
        "a cut stream": (stream[:-4], "cut off"),
        "a cut pickle in a stream": (stream[:90], "ends too early"),
        "text after the archive": (sound + b"x" * 40, "does not agree with its size"),
        "text before the archive": (b"PK\x03\x04" + b"x" * 40 + sound, "not where it should be"),
        "a flipped number": (sound.replace(struct.pack("<f", 3.0), struct.pack("<f", 7.0), 1), "checksum"),
        "another name inside": (
            sound.replace(b"data.pkl", b"data.pkk", 1),
            "is not where its directory says",
        ),
        "a member that is larger": (_claiming(sound, 2**31), "compressed member"),
        "a member beyond the end": (_claiming(sound, 2**31, packed=True), "reaches beyond"),
        "a thousand million members": (_counting(sound, 10**9), "claims"),
        "a header of 95 MB": (struct.pack("<Q", 95 << 20) + b"{" + b" " * 1000, "is not a checkpoint"),
        "an encrypted member": (_flagged(sound, 1), "is encrypted"),
    }
    outside = ("../../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:/evil", "a\x01b", "\u202eevil")
    for name in outside:
        found[f"a member called {name!r}"] = (_archive({"a/data.pkl": b"N.", name: b"x"}), "leads outside")
    return found


def bombs() -> dict[str, bytes]:
    """Files that are refused by their first bytes or their directory, before anything is read or started."""
    head = {"weight": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}
    header = str(head).replace("'", '"').encode()
    return {
        "deflated": zipped(state(b"N"), {"0": bytes(8 << 20)}, zipfile.ZIP_DEFLATED),
        "deflated pickle": zipped(b"]" * (8 << 20), None, zipfile.ZIP_DEFLATED),
        "bzip2": zipped(state(b"N"), {"0": bytes(8 << 20)}, zipfile.ZIP_BZIP2),
        "many members": _counting(good(), 2**32),
        "a long header": struct.pack("<Q", 95 << 20) + b"{" + bytes(2000),
        "a header of numbers that are not there": struct.pack("<Q", len(header)) + header,
    }


def _archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _directory(data: bytes) -> int:
    return data.index(b"PK\x01\x02")


def _claiming(data: bytes, size: int, *, packed: bool = False) -> bytes:
    """The archive, its first member claiming another size."""
    at = _directory(data)
    changed = struct.pack("<I", size)
    if packed:
        data = data[: at + 20] + changed + data[at + 24 :]
    return data[: at + 24] + changed + data[at + 28 :]


def _flagged(data: bytes, flags: int) -> bytes:
    at = _directory(data) + 8
    return data[:at] + struct.pack("<H", flags) + data[at + 2 :]


def _counting(data: bytes, count: int) -> bytes:
    """The archive, its 64-bit end claiming another number of members."""
    at = data.rindex(b"PK\x05\x06")
    directory = struct.unpack_from("<2I", data, at + 12)
    plain = data[: directory[1] + directory[0]]
    record = struct.pack(
        "<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, directory[0], directory[1]
    )
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(plain), 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return plain + record + locator + end
