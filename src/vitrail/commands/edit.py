"""``vitrail edit``: draw over a picture with other words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from vitrail import schema
from vitrail.commands.diffusion_options import DiffusionOptions, settings_of
from vitrail.commands.language import Language, Text
from vitrail.commands.options import Flag, parse
from vitrail.commands.token_options import read_file, run_requests, setting
from vitrail.edit_schema import EditRequest

__all__ = ["Options", "run"]

ABOUT = Text(
    "Draw over a picture with other words, by a diffusion model, for instance: "
    'vitrail edit cat.png --prompt "a red cat" --strength 0.6',
    "用扩散模型按新的文字重画图片，例如：vitrail edit cat.png --prompt 红色的猫 --strength 0.6",
)
EXAMPLE = 'vitrail edit cat.png --prompt "a red cat" --strength 0.6'


@dataclass(frozen=True)
class Options(DiffusionOptions):
    """The flags of ``vitrail edit``; those of the request are text until the schema has read them."""

    picture: Annotated[
        str | None, Flag(Text("The picture to draw over.", "要重画的图片。"), "PICTURE", positional=True)
    ] = None
    strength: Annotated[str | None, setting(EditRequest, "strength", "FLOAT")] = None
    mask: Annotated[str | None, setting(EditRequest, "mask", "PICTURE")] = None
    width: Annotated[str | None, setting(EditRequest, "width", "INT")] = None
    height: Annotated[str | None, setting(EditRequest, "height", "INT")] = None
    fit: Annotated[str | None, setting(EditRequest, "fit", "NAME")] = None
    tile: Annotated[bool, setting(EditRequest, "tile")] = False
    seamless: Annotated[str | None, setting(EditRequest, "seamless", "AXES")] = None


def run(arguments: Sequence[str], language: Language) -> int:
    """Draw and return 0; raises a VitrailError for what cannot be."""
    options = parse(Options, arguments, command="edit", about=ABOUT, language=language)
    settings = settings_of(options, EditRequest)
    settings["picture"] = read_file(options.picture, "picture", EXAMPLE)
    if options.mask is not None:
        settings["mask"] = read_file(options.mask, "mask", EXAMPLE)
    return run_requests([schema.parse(EditRequest, settings)], options)
