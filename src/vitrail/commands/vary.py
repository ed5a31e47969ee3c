"""``vitrail vary``: other versions of a picture, by drawing a part of its codes again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from vitrail import schema
from vitrail.codes_schema import VaryRequest
from vitrail.commands.language import Language, Text
from vitrail.commands.options import Flag, parse
from vitrail.commands.token_options import DrawOptions, read_file, run_requests, setting, settings_of

__all__ = ["Options", "run"]

ABOUT = Text(
    "Draw a part of a picture's codes again, for instance: vitrail vary cat.png --amount 0.3 --n 4 --seed 7",
    "重新生成图片的一部分编码，例如：vitrail vary cat.png --amount 0.3 --n 4 --seed 7",
)
EXAMPLE = "vitrail vary cat.png --amount 0.3"


@dataclass(frozen=True)
class Options(DrawOptions):
    """The flags of ``vitrail vary``; those of the request are text until the schema has read them."""

    picture: Annotated[
        str | None, Flag(Text("The picture to vary.", "要变化的图片。"), "PICTURE", positional=True)
    ] = None
    amount: Annotated[str | None, setting(VaryRequest, "amount", "FLOAT")] = None


def run(arguments: Sequence[str], language: Language) -> int:
    """Make the variations and return 0; raises a VitrailError for what cannot be."""
    options = parse(Options, arguments, command="vary", about=ABOUT, language=language)
    picture = read_file(options.picture, "picture", EXAMPLE)
    request = schema.parse(VaryRequest, settings_of(options, VaryRequest) | {"picture": picture})
    return run_requests([request], options)
