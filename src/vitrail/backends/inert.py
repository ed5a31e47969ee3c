"""Reads a pickle without running it.

A pickle is a program for a small stack machine; Python's own reader lets that program call any function of
any module. The machine here knows the same instructions but has nothing to call: a global is only its
*name*, a call is a placeholder (:class:`Opaque`), except for the handful of names in
:data:`vitrail.backends.inert_calls.CALLS`, each a function of ours that builds a plain value. No module is
imported, no attribute looked up, no method of the file's choosing run, whatever the bytes say.
Instructions: https://github.com/python/cpython/blob/main/Lib/pickletools.py

A name that has no place in a checkpoint (``os.system``) stops the reading: nothing would have happened, but
such a file is an attack and its owner should hear so.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from vitrail.backends.hostile_names import hostile
from vitrail.backends.inert_calls import call, plain_key, storage_of
from vitrail.backends.inert_values import Named, Opaque
from vitrail.errors import ArtifactError
from vitrail.files import shown

__all__ = ["Reading", "read_inert"]

MAX_STEPS = 20_000_000
"""Instructions after which a file is given up (a model of 3,000 tensors with its optimizer takes 300,000)."""

_MAX_INTEGER_BYTES = 1024
_MAX_LINE = 4096


class Reading(NamedTuple):
    """What a pickle describes: ``value`` is made of None, bool, int, float, str, bytes, list, tuple, dict and
    the classes above; ``end`` is the place after it, ``foreign`` the names it would have called (at most
    1,000), ``widths`` the bytes of one number in each block that it refers to, by key."""

    value: object
    end: int
    foreign: set[str]
    widths: dict[str, int]


def read_inert(data: bytes | memoryview, start: int = 0) -> Reading:
    """Read the pickle that begins at ``start``.

    Raises :class:`ArtifactError` for a damaged program, one that goes on for too long, or one that names a
    function no checkpoint needs.
    """
    machine = _Machine(data, start)
    try:
        value = machine.run()
    except (IndexError, KeyError, struct.error, UnicodeError) as error:
        raise ArtifactError(
            f"its pickle is damaged at byte {machine.place}: {type(error).__name__}"
        ) from None
    return Reading(value, machine.place, machine.foreign, machine.widths)


class _Machine:
    def __init__(self, data: bytes | memoryview, start: int) -> None:
        self.data, self.place = memoryview(data), start
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under the marks
        self.memo: dict[int, Any] = {}
        self.foreign: set[str] = set()
        self.widths: dict[str, int] = {}

    def run(self) -> object:
        for _ in range(MAX_STEPS):
            code = self.take(1)[0]
            if code == 0x2E:  # '.', the end
                return self.stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise ArtifactError(
                    f"its pickle holds an unknown instruction {code:#x} at byte {self.place - 1}"
                )
            step(self)
        raise ArtifactError(f"its pickle runs for more than {MAX_STEPS} instructions")

    def take(self, count: int) -> memoryview:
        end = self.place + count
        if end > len(self.data):
            raise ArtifactError("its pickle ends too early; the file is cut off or damaged")
        piece = self.data[self.place : end]
        self.place = end
        return piece

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self, encoding: str = "utf-8") -> str:
        window = bytes(self.data[self.place : self.place + _MAX_LINE])
        end = window.find(b"\n")
        if end < 0:
            raise ArtifactError("its pickle holds a line without an end")
        self.place += end + 1
        return window[:end].decode(encoding)

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def push(self, value: object) -> None:
        self.stack.append(value)

    def find(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ArtifactError("it names a global by something other than text")
        if hostile(module, name):
            raise ArtifactError(
                f"it would run {shown(f'{module}.{name}', 60)} where it is opened by pickle; no checkpoint "
                f"needs that: do not use this file"
            )
        self.push(Named(module, name))

    def made(self, function: object, args: object) -> None:
        """Call: a plain value for the names in CALLS, a placeholder for all others."""
        if not isinstance(args, tuple):
            raise ArtifactError("a call has something other than a list of arguments")
        if not isinstance(function, Named):
            what = function.what if isinstance(function, Opaque) else type(function).__name__
            self.push(Opaque(f"a call of {shown(what, 60)}"))
            return
        value = call(function, args)
        if isinstance(value, Opaque) and len(self.foreign) < 1000:
            self.foreign.add(str(function))
        self.push(value)


def _drop_state(machine: _Machine) -> None:
    """BUILD: a placeholder or a dictionary takes no attributes; the state of a numpy type is not needed."""
    machine.stack.pop()
    if isinstance(machine.stack[-1], list | str | bytes | int | float):
        raise ArtifactError("it sets attributes of a plain value")


def _set_items(machine: _Machine, pairs: list[Any]) -> None:
    target = machine.stack[-1]
    if len(pairs) % 2:
        raise ArtifactError("a dictionary has a key without a value")
    if isinstance(target, dict):
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[plain_key(key)] = value
    elif not isinstance(target, Opaque):
        raise ArtifactError(f"it sets items of a {type(target).__name__}")


def _append(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Opaque):
        raise ArtifactError(f"it appends to a {type(target).__name__}")


def _reduce(machine: _Machine) -> None:
    args = machine.stack.pop()
    machine.made(machine.stack.pop(), args)


def _new(machine: _Machine, keywords: bool) -> None:
    if keywords:
        machine.stack.pop()
    _reduce(machine)


def _inst(machine: _Machine) -> None:
    args = tuple(machine.since_mark())
    machine.find(machine.line(), machine.line())
    machine.made(machine.stack.pop(), args)


def _obj(machine: _Machine) -> None:
    items = machine.since_mark()
    machine.made(items[0], tuple(items[1:]))


def _stack_global(machine: _Machine) -> None:
    name = machine.stack.pop()
    machine.find(machine.stack.pop(), name)


def _integer(machine: _Machine, count: int) -> None:
    if not 0 <= count <= _MAX_INTEGER_BYTES:
        raise ArtifactError(f"its pickle holds an integer of {count} bytes")
    machine.push(int.from_bytes(machine.take(count), "little", signed=True))


def _text_integer(machine: _Machine) -> None:
    text = machine.line().removesuffix("L")
    if text in ("00", "01"):  # how protocol 0 writes False and True
        machine.push(text == "01")
        return
    machine.push(_decimal(text))


def _decimal(text: str) -> int:
    if len(text) > 400 or not text.removeprefix("-").isascii() or not text.removeprefix("-").isdigit():
        raise ArtifactError("its pickle holds a number that is none")
    return int(text)


def _real(machine: _Machine) -> None:
    try:
        machine.push(float(machine.line()))
    except ValueError:
        raise ArtifactError("its pickle holds a number that is none") from None


def _string(machine: _Machine, count: int, encoding: str) -> None:
    if count < 0:
        raise ArtifactError("its pickle holds a text of negative length")
    piece = bytes(machine.take(count))
    # surrogatepass, as Python's own reader has it
    machine.push(piece.decode("utf-8", "surrogatepass") if encoding == "utf-8" else piece.decode(encoding))


def _put(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _frame(machine: _Machine) -> None:
    if machine.number("<Q") > len(machine.data) - machine.place:
        raise ArtifactError("its pickle ends too early; the file is cut off or damaged")


def _protocol(machine: _Machine) -> None:
    version = machine.take(1)[0]
    if version > 5:
        raise ArtifactError(f"its pickle is of protocol {version}; known are 0 to 5")


def _mark(machine: _Machine) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _pop(machine: _Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.since_mark()


def _pop_mark(machine: _Machine) -> None:
    machine.since_mark()


def _frozen_set(machine: _Machine) -> None:
    machine.since_mark()
    machine.push(Opaque("a set"))


def _tuple(machine: _Machine, count: int) -> None:
    if len(machine.stack) < count:
        raise ArtifactError("its pickle takes more than there is")
    items = tuple(machine.stack[len(machine.stack) - count :])
    del machine.stack[len(machine.stack) - count :]
    machine.push(items)


def _dictionary(machine: _Machine) -> None:
    pairs = machine.since_mark()
    machine.push({})
    _set_items(machine, pairs)


def _two(machine: _Machine) -> list[Any]:
    value = machine.stack.pop()
    return [machine.stack.pop(), value]


def _refuse(what: str) -> Callable[[_Machine], None]:
    def refuse(machine: _Machine) -> None:
        raise ArtifactError(f"its pickle uses {what}; no checkpoint needs that")

    return refuse


def _bytes(machine: _Machine, count: int) -> None:
    machine.push(bytes(machine.take(count)))


_STEPS: dict[int, Callable[[_Machine], None]] = {
    0x80: _protocol,
    0x95: _frame,
    # marks and the stack
    ord("("): _mark,
    ord("0"): _pop,
    ord("1"): _pop_mark,
    ord("2"): lambda m: m.push(m.stack[-1]),
    # constants
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("I"): _text_integer,
    ord("L"): _text_integer,
    ord("J"): lambda m: m.push(m.number("<i")),
    ord("K"): lambda m: m.push(m.number("<B")),
    ord("M"): lambda m: m.push(m.number("<H")),
    0x8A: lambda m: _integer(m, m.number("<B")),
    0x8B: lambda m: _integer(m, m.number("<i")),
    ord("F"): _real,
    ord("G"): lambda m: m.push(m.number(">d")),
    ord("S"): lambda m: m.push(m.line().strip("'\"")),
    ord("T"): lambda m: _string(m, m.number("<i"), "latin1"),
    ord("U"): lambda m: _string(m, m.number("<B"), "latin1"),
    ord("V"): lambda m: m.push(m.line("raw-unicode-escape")),
    ord("X"): lambda m: _string(m, m.number("<I"), "utf-8"),
    0x8C: lambda m: _string(m, m.number("<B"), "utf-8"),
    0x8D: lambda m: _string(m, m.number("<Q"), "utf-8"),
    ord("B"): lambda m: _bytes(m, m.number("<I")),
    ord("C"): lambda m: _bytes(m, m.number("<B")),
    0x8E: lambda m: _bytes(m, m.number("<Q")),
    0x96: lambda m: _bytes(m, m.number("<Q")),
    # containers
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m.since_mark())),
    0x85: lambda m: _tuple(m, 1),
    0x86: lambda m: _tuple(m, 2),
    0x87: lambda m: _tuple(m, 3),
    ord("]"): lambda m: m.push([]),
    ord("l"): lambda m: m.push(m.since_mark()),
    ord("a"): lambda m: _append(m, [m.stack.pop()]),
    ord("e"): lambda m: _append(m, m.since_mark()),
    ord("}"): lambda m: m.push({}),
    ord("d"): _dictionary,
    ord("s"): lambda m: _set_items(m, _two(m)),
    ord("u"): lambda m: _set_items(m, m.since_mark()),
    0x8F: lambda m: m.push(Opaque("a set")),
    0x90: lambda m: _append(m, m.since_mark()),
    0x91: _frozen_set,
    # the memo
    ord("p"): lambda m: _put(m, _decimal(m.line())),
    ord("q"): lambda m: _put(m, m.number("<B")),
    ord("r"): lambda m: _put(m, m.number("<I")),
    0x94: lambda m: _put(m, len(m.memo)),
    ord("g"): lambda m: m.push(m.memo[_decimal(m.line())]),
    ord("h"): lambda m: m.push(m.memo[m.number("<B")]),
    ord("j"): lambda m: m.push(m.memo[m.number("<I")]),
    # globals and calls: names and placeholders
    ord("c"): lambda m: m.find(m.line(), m.line()),
    0x93: _stack_global,
    ord("R"): _reduce,
    ord("i"): _inst,
    ord("o"): _obj,
    0x81: lambda m: _new(m, keywords=False),
    0x92: lambda m: _new(m, keywords=True),
    ord("b"): _drop_state,
    # references
    ord("P"): _refuse("references by line"),
    ord("Q"): lambda m: m.push(storage_of(m.stack.pop(), m.widths)),
    0x82: _refuse("registered extensions"),
    0x83: _refuse("registered extensions"),
    0x84: _refuse("registered extensions"),
    0x97: _refuse("buffers outside of it"),
    0x98: _refuse("buffers outside of it"),
}
