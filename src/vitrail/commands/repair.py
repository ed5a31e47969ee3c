"""``vitrail repair``: draw anew what a mask covers in a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from vitrail import schema
from vitrail.commands.language import Language, Text
from vitrail.commands.options import Flag, parse
from vitrail.commands.photo_options import photo_settings
from vitrail.commands.token_options import PictureOptions, read_file, run_requests, setting
from vitrail.photo_schema import REPAIR_MODEL, RepairRequest

__all__ = ["Options", "run"]

ABOUT = Text(
    "Draw anew what a mask covers in a photograph; every other pixel stays as it is. For instance: "
    "vitrail repair photo.png --mask mask.png -o repaired.png. The model is fetched once, by: "
    "vitrail models pull migan",
    "重画照片中蒙版遮住的部分，其余像素保持不变。例如：vitrail repair photo.png --mask mask.png "
    "-o repaired.png。模型只需获取一次：vitrail models pull migan",
)
EXAMPLE = "vitrail repair photo.png --mask mask.png"


@dataclass(frozen=True)
class Options(PictureOptions):
    """The flags of ``vitrail repair``; those of the request are text until the schema has read them."""

    picture: Annotated[
        str | None, Flag(Text("The photograph to repair.", "要修复的照片。"), "PICTURE", positional=True)
    ] = None
    mask: Annotated[str | None, setting(RepairRequest, "mask", "PICTURE")] = None
    grow: Annotated[str | None, setting(RepairRequest, "grow", "INT")] = None
    model: Annotated[str, setting(RepairRequest, "model", "NAME")] = REPAIR_MODEL


def run(arguments: Sequence[str], language: Language) -> int:
    """Repair the photograph and return 0; raises a VitrailError for what cannot be."""
    options = parse(Options, arguments, command="repair", about=ABOUT, language=language)
    settings = photo_settings(options, RepairRequest)
    settings["picture"] = read_file(options.picture, "picture", EXAMPLE)
    settings["mask"] = read_file(options.mask, "mask", EXAMPLE)
    return run_requests([schema.parse(RepairRequest, settings)], options)
