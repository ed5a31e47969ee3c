"""``vitrail grid``: a sheet of one picture at several values of one or two settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from vitrail import schema
from vitrail.commands.diffusion_options import numbers, settings_of
from vitrail.commands.generate import Options as GenerateOptions
from vitrail.commands.language import Language, Text
from vitrail.commands.options import Flag, parse
from vitrail.commands.screen import Screen
from vitrail.commands.token_options import read_file, setting
from vitrail.edit_schema import EditRequest
from vitrail.errors import InputError
from vitrail.request_fields import new_seed
from vitrail.tasks.grid_axes import MAX_CELLS, Axis, read_axis

__all__ = ["Options", "run"]

ABOUT = Text(
    "Make one picture at several values of one or two settings and lay them out with labels, for instance: "
    'vitrail grid "a cat" --x cfg_scale=1,3,5 --y steps=10,20, or with words changed: '
    'vitrail grid "a red cat" --x replace=red,blue,green, or over a picture: '
    'vitrail grid "a dog" --picture cat.png --x strength=0.3,0.5,0.7',
    "用一两个设置的多个取值生成同一画面，并排成带标签的表格，例如：vitrail grid 一只猫 --x cfg_scale=1,3,5 "
    "--y steps=10,20，或替换词语：vitrail grid 红色的猫 --x replace=红色,蓝色,绿色，"
    "或重画图片：vitrail grid 一只狗 --picture cat.png --x strength=0.3,0.5,0.7",
)
Kind = schema.TextToImageRequest | EditRequest
EXAMPLE = 'vitrail grid "a cat" --x cfg_scale=1,3,5 --y steps=10,20'


@dataclass(frozen=True)
class Options(GenerateOptions):
    """The flags of ``vitrail grid``: those of ``vitrail generate``, and the axes."""

    picture: Annotated[
        str | None,
        Flag(
            Text(
                "Draw over this picture in every cell, as vitrail edit does.",
                "每格都像 vitrail edit 那样重画此图。",
            ),
            "PICTURE",
        ),
    ] = None
    strength: Annotated[str | None, setting(EditRequest, "strength", "FLOAT")] = None
    mask: Annotated[str | None, setting(EditRequest, "mask", "PICTURE")] = None
    x: Annotated[
        str | None,
        Flag(
            Text(
                "Setting of the columns and its values, such as cfg_scale=1,3,5 or sampler=euler,heun.",
                "各列的设置与取值，例如 cfg_scale=1,3,5 或 sampler=euler,heun。",
            ),
            "NAME=VALUES",
        ),
    ] = None
    y: Annotated[
        str | None,
        Flag(Text("Setting of the rows and its values.", "各行的设置与取值。"), "NAME=VALUES"),
    ] = None


def run(arguments: Sequence[str], language: Language) -> int:
    """Make the grid and return 0; raises a VitrailError for what cannot be."""
    options = parse(Options, arguments, command="grid", about=ABOUT, language=language)
    if options.x is None and options.y is None:
        raise InputError(f"the axes are missing; write for instance: {EXAMPLE}")
    if options.from_record is not None or options.prompts_file is not None:
        raise InputError("a grid is made of one prompt; leave out --from-record and --prompts-file")
    kind: type[Kind] = schema.TextToImageRequest if options.picture is None else EditRequest
    across, down = (None if text is None else read_axis(text, kind) for text in (options.x, options.y))
    if across is not None and down is not None and across.name == down.name:
        raise InputError(f"x and y are both {across.name}; give each axis a setting of its own")
    cells = _cells(kind, _settings(options, kind), across, down)

    from vitrail.images import grid
    from vitrail.serving.engine import Engine
    from vitrail.serving.save import Destination, save_picture, save_sheet

    destination = Destination.of(options.output, options.format)
    precision: Any = options.precision
    pictures, labels, understood = [], [], []
    with Engine(options.device, precision) as engine, Screen(options.quiet) as screen:
        destination.prepare()
        for done, (label, request) in enumerate(cells):
            for event in engine.events(engine.submit(request)):
                if isinstance(event, schema.Progress):
                    steps = len(cells) * event.steps
                    screen.advance(schema.Progress(step=done * event.steps + event.step, steps=steps))
                elif isinstance(event, schema.PictureDone):
                    if done == 0:
                        for hint in event.record.hints:
                            screen.say(hint)
                    if destination.name is None:
                        screen.result(str(save_picture(event.picture, event.record, destination)))
                    pictures.append(event.picture)
                    labels.append(label)
                    understood.append(event.record.understood_as or "")
        columns = len(across.values) if across is not None else 1
        sheet = grid(pictures, columns=columns, labels=labels, substitutes=understood)
        screen.result(str(save_sheet(sheet, "grid", destination)))
    return 0


def _settings(options: Options, kind: type[Kind]) -> dict[str, Any]:
    """Return what all cells share; :class:`InputError` for a flag of the other kind of request."""
    settings = settings_of(options, kind)
    other: type[Kind] = schema.TextToImageRequest if kind is EditRequest else EditRequest
    foreign = sorted(set(settings_of(options, other)) - set(settings))
    if foreign:
        where = "without" if kind is EditRequest else "with"
        raise InputError(f"{foreign[0]} is for grids {where} --picture; leave it out")
    for name in ("picture", "mask"):
        if kind is EditRequest and getattr(options, name) is not None:
            settings[name] = read_file(getattr(options, name), name, EXAMPLE)
    return settings


def _cells(
    kind: type[Kind], settings: dict[str, Any], across: Axis | None, down: Axis | None
) -> list[tuple[str, Kind]]:
    """Return the label and request of every cell, row by row; of one seed, unless that is an axis."""
    needed = kind is not EditRequest and "prompt" not in settings
    if needed and "prompt" not in {axis.name for axis in (across, down) if axis}:
        raise InputError(f"the prompt is missing; write for instance: {EXAMPLE}")
    if settings.pop("n", 1) not in (1, "1"):
        raise InputError(
            "n is not for a grid, which has one picture a cell; make seed an axis: --y seed=1,2,3"
        )
    settings = {"seed": new_seed()} | settings
    count = (len(across.values) if across else 1) * (len(down.values) if down else 1)
    if count > MAX_CELLS:
        raise InputError(f"a grid of {count} pictures is too large; allowed are {MAX_CELLS}")
    cells = []
    for row in range(len(down.values) if down else 1):
        for column in range(len(across.values) if across else 1):
            given, label = settings, []
            for axis, place in ((across, column), (down, row)):
                if axis is not None:
                    given = axis.changed(given, place)
                    label.append(axis.label(place))
            cells.append((", ".join(label), schema.parse(kind, numbers(given))))
    return cells
