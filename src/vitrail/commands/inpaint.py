"""``vitrail inpaint``: paint a masked part of a picture anew, or beyond its edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from vitrail import schema
from vitrail.codes_schema import TOKEN_MODEL, InpaintRequest
from vitrail.commands.diffusion_options import SamplingOptions, settings_of
from vitrail.commands.language import Language, Text
from vitrail.commands.options import Flag, parse
from vitrail.commands.token_options import DrawOptions, read_file, run_requests, setting
from vitrail.errors import InputError
from vitrail.files import shown

__all__ = ["Options", "run"]

ABOUT = Text(
    "Paint a masked part of a picture anew, or beyond its edges, for instance: "
    'vitrail inpaint room.png --mask mask.png --prompt "a red chair", '
    "vitrail inpaint room.png --expand left=64, or with a diffusion model: "
    'vitrail inpaint cat.png --mask mask.png --prompt "a red hat" --model default',
    '重画图片中蒙版的部分，或向外扩画，例如：vitrail inpaint room.png --mask mask.png --prompt "红色椅子"，'
    "vitrail inpaint room.png --expand left=64，或用扩散模型："
    'vitrail inpaint cat.png --mask mask.png --prompt "红色帽子" --model default',
)
EXAMPLE = "vitrail inpaint room.png --mask mask.png"
SIDES = ("left", "right", "top", "bottom")


@dataclass(frozen=True)
class Options(SamplingOptions, DrawOptions):
    """The flags of ``vitrail inpaint``; those of the request are text until the schema has read them."""

    picture: Annotated[
        str | None, Flag(Text("The picture to work on.", "要处理的图片。"), "PICTURE", positional=True)
    ] = None
    mask: Annotated[str | None, setting(InpaintRequest, "mask", "PICTURE")] = None
    expand: Annotated[
        tuple[str, ...],
        Flag(
            Text(
                "Pixels to paint beyond edges, such as left=64 or left=32,right=32,top=16; "
                "may be given several times.",
                "向外扩画的像素，例如 left=64 或 left=32,right=32,top=16；可给出多个。",
            ),
            "SIDE=PIXELS,...",
        ),
    ] = ()
    feather: Annotated[str | None, setting(InpaintRequest, "feather", "INT")] = None
    negative_prompt: Annotated[str | None, setting(InpaintRequest, "negative_prompt", "TEXT")] = None
    strength: Annotated[str | None, setting(InpaintRequest, "strength", "FLOAT")] = None
    content: Annotated[str | None, setting(InpaintRequest, "content", "NAME")] = None
    repeats: Annotated[str | None, setting(InpaintRequest, "repeats", "INT")] = None
    only_masked: Annotated[bool, setting(InpaintRequest, "only_masked")] = False
    padding: Annotated[str | None, setting(InpaintRequest, "padding", "INT")] = None
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
    """Paint and return 0; raises a VitrailError for what cannot be."""
    options = parse(Options, arguments, command="inpaint", about=ABOUT, language=language)
    settings = settings_of(options, InpaintRequest)
    if options.expand:
        settings["expand"] = _margins(",".join(options.expand))
    settings["picture"] = read_file(options.picture, "picture", EXAMPLE)
    if options.mask is not None:
        settings["mask"] = read_file(options.mask, "mask", EXAMPLE)
    return run_requests([schema.parse(InpaintRequest, settings)], options)


def _margins(text: str) -> dict[str, object]:
    """Read ``left=64,top=16``; :class:`InputError` for another form."""
    margins: dict[str, object] = {}
    for part in text.split(","):
        side, equals, pixels = part.strip().partition("=")
        if side in margins:
            raise InputError(f"expand names {side} twice; give each side once")
        if side not in SIDES or not equals:
            raise InputError(
                f"expand '{shown(part, 40)}' cannot be read; write for instance left=64 or left=32,top=32 "
                f"(sides: {', '.join(SIDES)})"
            )
        try:
            margins[side] = int(pixels)
        except ValueError:  # the schema refuses it with its limits
            margins[side] = pixels
    return margins
