"""What the commands that work on pictures by a token model have in common: flags, files, and the running."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel

from vitrail import codes_schema, schema
from vitrail.commands.language import Text
from vitrail.commands.options import Device, Flag, said, whole
from vitrail.commands.screen import Screen
from vitrail.errors import InputError
from vitrail.request_fields import FileRef

if TYPE_CHECKING:
    from vitrail.schema import Request

__all__ = [
    "CodesOptions",
    "DrawOptions",
    "PictureOptions",
    "read_file",
    "run_requests",
    "setting",
    "settings_of",
]

PRECISIONS = ("auto", "float32", "bfloat16")

_WHOLE = frozenset({"n", "seed", "steps", "frames", "feather"})
_REAL = frozenset({"cfg_scale", "temperature", "amount", "fps"})


def setting(request: type[BaseModel], name: str, metavar: str | None = None, **more: Any) -> Flag:
    """Return the flag of a request's field ``name``; its words, limits and choices are the schema's."""
    row = next(row for row in schema.describe(request) if row.name == name)
    en, zh = row.en, row.zh
    if row.choices:
        en, zh = f"{en} One of: {', '.join(row.choices)}.", f"{zh}可选：{', '.join(row.choices)}。"
    elif row.low is not None and row.high is not None and name != "seed":
        en, zh = (
            f"{en} {said(row.low)} to {said(row.high)}.",
            f"{zh}范围 {said(row.low)} 到 {said(row.high)}。",
        )
    if isinstance(row.default, int | float) and not isinstance(row.default, bool):
        en, zh = f"{en} Default: {row.default:g}.", f"{zh}默认 {row.default:g}。"
    return Flag(Text(en, zh), metavar, **more)


@dataclass(frozen=True)
class CodesOptions:
    """Flags of every command that reads a token model."""

    model: Annotated[
        str,
        Flag(
            Text(
                "Name or folder of a tokenizer, or of a prior with one inside.",
                "tokenizer 的名称或文件夹，或内含 tokenizer 的先验模型。",
            ),
            "NAME",
        ),
    ] = codes_schema.TOKEN_MODEL
    device: Device = "auto"
    quiet: Annotated[bool, Flag(Text("Print nothing but the paths.", "只输出文件路径。"), short="-q")] = False


@dataclass(frozen=True)
class PictureOptions(CodesOptions):
    """Flags of those that write pictures."""

    output: Annotated[
        str | None,
        Flag(
            Text(
                "Folder for the pictures, or the name of a picture file. Default: out.",
                "图片文件夹，或图片文件名。默认 out。",
            ),
            "PATH",
            short="-o",
        ),
    ] = None
    format: Annotated[
        str | None,
        Flag(Text("png, jpeg or webp. Default: png.", "png、jpeg 或 webp。默认 png。"), "NAME"),
    ] = None


def _drawn(name: str, metavar: str) -> Flag:
    return setting(codes_schema.VaryRequest, name, metavar)


@dataclass(frozen=True)
class DrawOptions(PictureOptions):
    """Flags of those that draw codes from a prior."""

    prompt: Annotated[str | None, _drawn("prompt", "TEXT")] = None
    n: Annotated[str | None, _drawn("n", "INT")] = None
    seed: Annotated[str | None, _drawn("seed", "INT")] = None
    style: Annotated[str | None, _drawn("style", "NAME")] = None
    steps: Annotated[str | None, _drawn("steps", "INT")] = None
    cfg_scale: Annotated[str | None, _drawn("cfg_scale", "FLOAT")] = None
    temperature: Annotated[str | None, _drawn("temperature", "FLOAT")] = None


def settings_of(options: object, request: type[BaseModel]) -> dict[str, Any]:
    """Return those fields of ``request`` that the flags give, numbers as numbers where they are some."""
    settings: dict[str, Any] = {}
    for name in request.model_fields:
        value = getattr(options, name, None)
        if value is None or value == ():
            continue
        if isinstance(value, str) and name in _WHOLE | _REAL:
            with contextlib.suppress(ValueError):  # left as text: the schema refuses it with its limits
                value = int(value) if name in _WHOLE else float(value)
        settings[name] = value
    return settings


def read_file(path: str | None, what: str, example: str) -> FileRef:
    """Read the file that a request works on. ``what`` it is and an ``example`` go into messages.

    Raises :class:`InputError` where there is none and :class:`~vitrail.errors.DataError` for one too large.
    """
    if not path:
        raise InputError(f"the {what} is missing; write for instance: {example}")
    from vitrail.store import vtl

    return FileRef.of(path, vtl.read_file(path, what))


def run_requests(requests: Sequence[Request], options: PictureOptions) -> int:
    """Run requests one after the other in one engine; prints the path of every picture and returns 0.

    Several requests to one named file become ``name-1.png``, ``name-2.png`` and so on.
    """
    from vitrail.serving.engine import Engine
    from vitrail.serving.save import Destination

    destination = Destination.of(options.output, options.format)
    precision: Any = getattr(options, "precision", "auto")
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision[:40]!r} is unknown; allowed are {', '.join(PRECISIONS)}")
    every = getattr(options, "preview_every", None)
    preview_every = 0 if every is None else whole("preview-every", every, 1, 200)
    with Engine(options.device, precision) as engine:
        for number, request in enumerate(requests, start=1):
            place = destination
            if len(requests) > 1 and destination.name is not None:
                name = Path(destination.name)
                place = Destination(
                    destination.folder, f"{name.stem}-{number}{name.suffix}", destination.format
                )
            job = engine.submit(request, place, preview_every=preview_every)
            with Screen(options.quiet) as screen:
                for event in engine.events(job):
                    if isinstance(event, schema.Progress):
                        screen.advance(event)
                    elif isinstance(event, schema.PictureDone):
                        for hint in event.record.hints if event.index == 0 else ():
                            screen.say(hint)
                        screen.result(str(event.path))
                    elif isinstance(event, schema.Done) and len(event.paths) > 1:
                        screen.result(event.paths[-1])
    return 0
