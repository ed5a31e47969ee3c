"""``vitrail vary``: other versions of a picture, by drawing a part of its codes again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from vitrail import schema
from vitrail.codes_schema import TOKEN_MODEL, VaryRequest
from vitrail.commands.language import Language, Text
from vitrail.commands.options import Flag, parse
from vitrail.commands.token_options import DrawOptions, read_file, run_requests, setting, settings_of

__all__ = ["Options", "run"]

ABOUT = Text(
    "Make other versions of a picture: a model of codes draws a part of them again, a diffusion model turns "
    "the noise of a picture that vitrail made (or draws over any other one). For instance: "
    "vitrail vary cat.png --amount 0.3 --n 4 --seed 7, or with --model default",
    "生成图片的其他版本：编码模型重新生成一部分编码；扩散模型改变 vitrail 所生成图片的噪声"
    "（其他图片则重画）。例如：vitrail vary cat.png --amount 0.3 --n 4 --seed 7，或加上 --model default",
)
EXAMPLE = "vitrail vary cat.png --amount 0.3"


@dataclass(frozen=True)
class Options(DrawOptions):
    """The flags of ``vitrail vary``; those of the request are text until the schema has read them."""

    picture: Annotated[
        str | None, Flag(Text("The picture to vary.", "要变化的图片。"), "PICTURE", positional=True)
    ] = None
    amount: Annotated[str | None, setting(VaryRequest, "amount", "FLOAT")] = None
    model: Annotated[
        str,
        Flag(
            Text(
                "Name or folder of a model that draws codes, or of a diffusion model such as default.",
                "编码模型或扩散模型（如 default）的名称或文件夹。",
            ),
            "NAME",
        ),
    ] = TOKEN_MODEL


def run(arguments: Sequence[str], language: Language) -> int:
    """Make the variations and return 0; raises a VitrailError for what cannot be."""
    options = parse(Options, arguments, command="vary", about=ABOUT, language=language)
    picture = read_file(options.picture, "picture", EXAMPLE)
    request = schema.parse(VaryRequest, settings_of(options, VaryRequest) | {"picture": picture})
    return run_requests([request], options)
