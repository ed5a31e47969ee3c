"""``vitrail decode``: a file of codes, .vtl or .npz, back to a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from vitrail import schema
from vitrail.codes_schema import DecodeRequest
from vitrail.commands.language import Language, Text
from vitrail.commands.options import Flag, parse
from vitrail.commands.token_options import PictureOptions, read_file, run_requests
from vitrail.errors import InputError

__all__ = ["Options", "run"]

ABOUT = Text(
    "Decode a file of codes to a picture, for instance: vitrail decode cat.vtl cat.png",
    "把编码文件解码成图片，例如：vitrail decode cat.vtl cat.png",
)


@dataclass(frozen=True)
class Options(PictureOptions):
    """The flags of ``vitrail decode`` and ``vitrail decompress``."""

    codes: Annotated[
        str | None,
        Flag(Text("The file of codes, .vtl or .npz.", "编码文件，.vtl 或 .npz。"), "FILE", positional=True),
    ] = None
    picture: Annotated[
        str | None,
        Flag(
            Text("The picture to write; the same as --output.", "要写出的图片，等同于 --output。"),
            "PICTURE",
            positional=True,
        ),
    ] = None


def run(arguments: Sequence[str], language: Language, command: str = "decode", about: Text = ABOUT) -> int:
    """Decode the file and return 0; raises a VitrailError for what cannot be."""
    import dataclasses

    options = parse(Options, arguments, command=command, about=about, language=language)
    if options.picture is not None and options.output is not None:
        raise InputError("the picture to write is given twice; leave out --output")
    codes = read_file(options.codes, "file of codes", f"vitrail {command} cat.vtl cat.png")
    request = schema.parse(DecodeRequest, {"picture": codes, "model": options.model})
    return run_requests([request], dataclasses.replace(options, output=options.output or options.picture))
