"""``vitrail upscale``: photographs two or four times larger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from vitrail import schema
from vitrail.commands.language import Language, Text
from vitrail.commands.options import Flag, parse
from vitrail.commands.photo_options import photo_settings
from vitrail.commands.token_options import PictureOptions, read_file, run_requests, setting
from vitrail.errors import InputError
from vitrail.photo_schema import UPSCALE_MODEL, UpscaleRequest

__all__ = ["Options", "run"]

ABOUT = Text(
    "Enlarge photographs, for instance: vitrail upscale photo.png --scale 2 -o larger.png. The model is "
    "fetched once, by: vitrail models pull realesrgan-x4 (for drawings: realesrgan-x4-drawings)",
    "放大照片，例如：vitrail upscale photo.png --scale 2 -o larger.png。"
    "模型只需获取一次：vitrail models pull realesrgan-x4（插画用 realesrgan-x4-drawings）",
)
EXAMPLE = "vitrail upscale photo.png --scale 2"


@dataclass(frozen=True)
class Options(PictureOptions):
    """The flags of ``vitrail upscale``; those of the request are text until the schema has read them."""

    pictures: Annotated[
        tuple[str, ...],
        Flag(Text("Pictures to enlarge.", "要放大的图片。"), "PICTURE", positional=True),
    ] = ()
    scale: Annotated[str | None, setting(UpscaleRequest, "scale", "2|4")] = None
    tile: Annotated[str | None, setting(UpscaleRequest, "tile", "INT")] = None
    fidelity: Annotated[str | None, setting(UpscaleRequest, "fidelity", "FLOAT")] = None
    model: Annotated[str, setting(UpscaleRequest, "model", "NAME")] = UPSCALE_MODEL


def run(arguments: Sequence[str], language: Language) -> int:
    """Enlarge every picture and return 0; raises a VitrailError for the first that cannot be."""
    options = parse(Options, arguments, command="upscale", about=ABOUT, language=language)
    if not options.pictures:
        raise InputError(f"the picture is missing; write for instance: {EXAMPLE}")
    settings = photo_settings(options, UpscaleRequest)
    requests = [
        schema.parse(UpscaleRequest, settings | {"picture": read_file(path, "picture", EXAMPLE)})
        for path in options.pictures
    ]
    return run_requests(requests, options)
