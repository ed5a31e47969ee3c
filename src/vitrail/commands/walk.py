"""``vitrail walk``: pictures that change step by step from one to the next, and sums of pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from vitrail import schema
from vitrail.codes_schema import WalkRequest
from vitrail.commands.language import Language, Text
from vitrail.commands.options import Flag, parse
from vitrail.commands.token_options import PictureOptions, read_file, run_requests, setting, settings_of
from vitrail.errors import InputError
from vitrail.files import shown

__all__ = ["Options", "run"]

ABOUT = Text(
    "Walk in latent space between pictures or words; writes the frames and an animated WebP. For instance: "
    'vitrail walk cat.png dog.png --frames 24 -o walk/, vitrail walk "a cat" "a dog" --seed 7 --loop, or as '
    "a sum: vitrail walk a.png b.png c.png --weights 1,1,-1",
    "在潜空间中从一张图（或一段文字）走向下一张，写出各帧与 WebP 动画。例如："
    'vitrail walk cat.png dog.png --frames 24 -o walk/，vitrail walk "一只猫" "一只狗" --seed 7 --loop，'
    "或相加：vitrail walk a.png b.png c.png --weights 1,1,-1",
)
EXAMPLE = "vitrail walk cat.png dog.png --frames 24"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")


@dataclass(frozen=True)
class Options(PictureOptions):
    """The flags of ``vitrail walk``; those of the request are text until the schema has read them."""

    stops: Annotated[
        tuple[str, ...],
        Flag(
            Text(
                "Pictures, or words in quotes, in order; two or more.",
                "依次经过的图片或带引号的文字，至少两个。",
            ),
            "STOP",
            positional=True,
        ),
    ] = ()
    frames: Annotated[str | None, setting(WalkRequest, "frames", "INT")] = None
    loop: Annotated[bool, setting(WalkRequest, "loop")] = False
    curve: Annotated[str | None, setting(WalkRequest, "curve", "NAME")] = None
    fps: Annotated[str | None, setting(WalkRequest, "fps", "FLOAT")] = None
    weights: Annotated[str | None, setting(WalkRequest, "weights", "W1,W2,...")] = None
    seed: Annotated[str | None, setting(WalkRequest, "seed", "INT")] = None
    style: Annotated[str | None, setting(WalkRequest, "style", "NAME")] = None


def run(arguments: Sequence[str], language: Language) -> int:
    """Make the walk and return 0; raises a VitrailError for what cannot be."""
    options = parse(Options, arguments, command="walk", about=ABOUT, language=language)
    if len(options.stops) < 2:
        raise InputError(f"a walk needs two stops or more; write for instance: {EXAMPLE}")
    settings = settings_of(options, WalkRequest)
    settings["stops"] = tuple(_stop(text) for text in options.stops)
    if options.weights is not None:
        settings["weights"] = _weights(options.weights)
    return run_requests([schema.parse(WalkRequest, settings)], options)


def _stop(text: str) -> dict[str, Any]:
    """A stop of the walk: a picture where there is a file of that name or the name has a picture's ending."""
    if text.lower().endswith(PICTURES) or os.path.isfile(text):
        return {"picture": read_file(text, "picture", EXAMPLE)}
    return {"prompt": text}


def _weights(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"weights '{shown(text, 40)}' cannot be read; write one number for each stop, such as 1,1,-1"
        ) from None
