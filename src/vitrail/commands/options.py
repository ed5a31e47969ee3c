"""From a dataclass of flags to a parsed command line, with tyro; help in two languages, errors in one line.

A command declares its flags as a frozen dataclass whose fields are annotated with :class:`Flag`. Numbers of a
request are read as text here on purpose: :mod:`vitrail.schema` alone knows their types and bounds, so that a
bad value is refused with the same words at the command line and at a server.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from vitrail.commands.language import Language, Text
from vitrail.errors import InputError
from vitrail.files import shown

__all__ = ["Device", "Flag", "Precision", "parse", "pick", "said", "whole"]

Options = TypeVar("Options")

# What tyro says by itself, for the Chinese help page; longer pieces first.
LABELS = (
    ("show this help message and exit", "显示本帮助并退出"),
    ("positional arguments", "参数"),
    ("options", "选项"),
    ("usage:", "用法："),
    ("[OPTIONS]", "[选项]"),
    ("(required)", "（必填）"),
    ("(repeatable)", "（可重复）"),
    ("(default:", "（默认："),
)


@dataclass(frozen=True, slots=True)
class Flag:
    """How one field appears on the command line.

    ``help`` is its sentence in both languages, ``metavar`` the name of its value, ``short`` an alias such as
    ``-o``; a ``positional`` field takes a bare word instead of ``--name``.
    """

    help: Text
    metavar: str | None = None
    short: str | None = None
    positional: bool = False


Device = Annotated[
    str, Flag(Text("auto, cpu, cuda, cuda:0 or mps.", "auto、cpu、cuda、cuda:0 或 mps。"), "NAME")
]
"""Where the networks run."""

Precision = Annotated[
    str,
    Flag(
        Text(
            "auto, float32 or bfloat16; auto takes bfloat16 where the machine is fast with it.",
            "auto、float32 或 bfloat16；auto 在硬件支持时用 bfloat16。",
        ),
        "NAME",
    ),
]
"""In which numbers they run."""


def parse(
    options: type[Options], arguments: Sequence[str], *, command: str, about: Text, language: Language
) -> Options:
    """Parse ``arguments`` into the dataclass ``options``.

    ``--help`` prints the page of ``command`` in ``language`` and raises :class:`SystemExit` with code 0.
    Anything that tyro refuses becomes an :class:`InputError` of one line.
    """
    import tyro

    written, refused = _Page(), _Page()
    form = _form(options, language)
    try:
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(refused):
            parsed = tyro.cli(
                form, args=list(arguments), prog=f"vitrail {command}", description=about[language]
            )
    except SystemExit as stop:
        if stop.code not in (0, None):
            raise InputError(_one_line(refused.text(), command)) from None
        print(_unboxed(written.text(), language))
        raise
    return options(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(form)})


def pick(
    arguments: Sequence[str], commands: Mapping[str, Text], *, command: str, about: Text, language: Language
) -> tuple[str, Sequence[str]]:
    """Return the sub-command that ``arguments`` begin with, and the arguments after it.

    Nothing at all or ``--help`` prints what there is and raises :class:`SystemExit` with code 0; another word
    raises :class:`InputError` with the nearest name.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        usage, heading = ("用法：", "命令：") if language == "zh" else ("usage: ", "commands:")
        rows = "\n".join(f"  {name:<13}{does[language]}" for name, does in commands.items())
        print(f"{usage}vitrail {command} {{{'|'.join(commands)}}}\n\n{about[language]}\n\n{heading}\n{rows}")
        raise SystemExit(0)
    name = arguments[0]
    if name not in commands:
        near = difflib.get_close_matches(name, commands, 1)
        ask = f"did you mean {near[0]}?" if near else f"use one of {', '.join(commands)}"
        raise InputError(f"vitrail {command} {shown(name, 40)} is unknown; {ask}")
    return name, arguments[1:]


def said(number: float) -> str:
    """A limit as people write it: whole numbers with all their digits."""
    return str(int(number)) if float(number).is_integer() else f"{number:g}"


def whole(name: str, text: str, low: int, high: int) -> int:
    """Return the whole number that flag ``--name`` gives; :class:`InputError` outside low to high."""
    try:
        number = int(text)
    except ValueError:  # not a number, or one of more than 4300 digits
        raise InputError(
            f"{name} '{shown(text, 40)}' is not a whole number; allowed {low} to {high}"
        ) from None
    if not low <= number <= high:
        raise InputError(f"{name} {shown(text, 40)} is out of range; allowed {low} to {high}")
    return number


class _Page(io.TextIOWrapper):
    """A page in memory that says it is UTF-8, so that tyro draws the same boxes wherever the terminal is."""

    def __init__(self) -> None:
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, encoding="utf-8", errors="backslashreplace", newline="\n")

    def text(self) -> str:
        self.flush()
        return self.bytes.getvalue().decode("utf-8")


def _form(options: type[Any], language: Language) -> Any:
    """Return a copy of the dataclass ``options`` whose annotations are tyro's, with help in ``language``."""
    import tyro

    hints = get_type_hints(options, include_extras=True)
    fields = []
    for field in dataclasses.fields(options):
        hint = hints[field.name]
        if get_origin(hint) is not Annotated:
            raise TypeError(f"{options.__name__}.{field.name} has no Flag")
        kind, flag = get_args(hint)[:2]
        settings: list[object] = [
            tyro.conf.arg(
                help=flag.help[language],
                metavar=flag.metavar,
                aliases=[flag.short] if flag.short else None,
                help_behavior_hint="" if field.default in (None, False, ()) else None,
            ),
            tyro.conf.DisallowNone,
        ]
        if flag.positional:
            settings.append(tyro.conf.Positional)
        if kind is bool:
            settings.append(tyro.conf.FlagCreatePairsOff)
        if get_origin(kind) is tuple:
            settings.append(tyro.conf.UseAppendAction)
        fields.append((field.name, Annotated[(kind, *settings)], dataclasses.field(default=field.default)))
    return dataclasses.make_dataclass(options.__name__, fields, frozen=True)


def _plain(page: str) -> list[str]:
    """Return the lines of a page of tyro's without colours and boxes (its borders misalign beside CJK)."""
    lines = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", page).splitlines():
        if match := re.match(r"[╭┌+][─-]+ (.+?) [─-]+[╮┐+]$", line):
            lines.append(f"{match[1]}:")
        elif re.match(r"[╰└+╭┌][─-]*[╯┘+╮┐]$", line):
            lines.append("")
        else:
            lines.append(re.sub(r"^[│|] ?(.*?)\s*[│|]$", r"  \1", line).rstrip())
    return lines


def _unboxed(page: str, language: Language) -> str:
    text = "\n".join(_plain(page)).strip()
    if language == "zh":
        for english, chinese in LABELS:
            text = text.replace(english, chinese)
    return text


def _one_line(page: str, command: str) -> str:
    """Return the sense of tyro's error page in one line."""
    body: list[str] = []
    similar = ""
    lines = [line.strip() for line in _plain(page)][1:]  # the first line is only the box's title
    for index, line in enumerate(lines):
        if line.startswith("Perhaps you meant") and index + 1 < len(lines):
            similar = next((word for word in lines[index + 1].split() if word.startswith("--")), "")
    for line in lines:
        if set(line) <= set("─- ") or line.startswith("Got errors"):
            break
        body.append(line)
    text = re.sub(r"\s+", " ", " ".join(body)).strip() or f"the options of vitrail {command} cannot be read"
    if match := re.match(r"Unrecognized options: (.*)$", text):
        unknown = match[1].split(", ")
        flags = [word for word in unknown if word.startswith("-")]
        if flags:
            text = f"option {flags[0]} is unknown"
        else:
            text = f"{unknown[0]!r} is one word too many; put words that belong together in quotes"
    ask = f"did you mean {similar}?" if similar else f"see vitrail {command} --help"
    return f"{text.rstrip('.')}; {ask}"
