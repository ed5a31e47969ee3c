"""``vitrail reconstruct``: pictures through a tokenizer and back, to see what its codes keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from vitrail import schema
from vitrail.codes_schema import ReconstructRequest
from vitrail.commands.language import Language, Text
from vitrail.commands.options import Flag, parse
from vitrail.commands.token_options import PictureOptions, read_file, run_requests, setting
from vitrail.errors import InputError

__all__ = ["Options", "run"]

ABOUT = Text(
    "Encode pictures to codes and decode them again, for instance: "
    "vitrail reconstruct photo.png --compare -o photo-again.png",
    "把图片编码再解码，例如：vitrail reconstruct photo.png --compare -o photo-again.png",
)
EXAMPLE = "vitrail reconstruct photo.png"


@dataclass(frozen=True)
class Options(PictureOptions):
    """The flags of ``vitrail reconstruct``."""

    pictures: Annotated[
        tuple[str, ...],
        Flag(Text("Pictures to reconstruct.", "要重建的图片。"), "PICTURE", positional=True),
    ] = ()
    compare: Annotated[bool, setting(ReconstructRequest, "compare")] = False


def run(arguments: Sequence[str], language: Language) -> int:
    """Reconstruct every picture and return 0; raises a VitrailError for the first that cannot be."""
    options = parse(Options, arguments, command="reconstruct", about=ABOUT, language=language)
    if not options.pictures:
        raise InputError(f"the picture is missing; write for instance: {EXAMPLE}")
    requests = [
        schema.parse(
            ReconstructRequest,
            {
                "picture": read_file(path, "picture", EXAMPLE),
                "compare": options.compare,
                "model": options.model,
            },
        )
        for path in options.pictures
    ]
    return run_requests(requests, options)
