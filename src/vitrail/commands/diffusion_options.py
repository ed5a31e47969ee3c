"""Flags of the commands that draw with diffusion models, and how their words become a request's settings."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel

from vitrail.commands.language import Text
from vitrail.commands.options import Flag, Precision
from vitrail.commands.token_options import PictureOptions, read_file, setting
from vitrail.edit_schema import EditRequest
from vitrail.errors import InputError
from vitrail.files import shown

__all__ = ["AddonOptions", "DiffusionOptions", "SamplingOptions", "numbers", "settings_of"]

WHOLE = frozenset(
    {"n", "seed", "steps", "top_k", "width", "height", "subseed", "hires_steps", "clip_skip", "feather"}
) | {"padding", "repeats"}
REAL = frozenset(
    {"cfg_scale", "cfg_rescale", "shift", "temperature", "top_p", "choice_temperature", "truncation"}
) | {"noise_strength", "strength", "subseed_strength", "hires_scale", "hires_strength", "amount"}
CONTROL = "--control canny=edges.png:0.8"


def _flag(name: str, metavar: str | None = None) -> Flag:
    return setting(EditRequest, name, metavar)


@dataclass(frozen=True)
class AddonOptions(PictureOptions):
    """Flags of what is added to a Stable Diffusion."""

    lora: Annotated[tuple[str, ...], _flag("lora", "NAME:WEIGHT")] = ()
    control: Annotated[tuple[str, ...], _flag("control", "NAME=PICTURE")] = ()
    vae: Annotated[str | None, _flag("vae", "NAME")] = None
    embedding: Annotated[tuple[str, ...], _flag("embedding", "NAME")] = ()
    clip_skip: Annotated[str | None, _flag("clip_skip", "INT")] = None
    fast: Annotated[bool, _flag("fast")] = False


@dataclass(frozen=True)
class SamplingOptions(AddonOptions):
    """Flags of the sampler beside steps and guidance scale."""

    cfg_rescale: Annotated[str | None, _flag("cfg_rescale", "FLOAT")] = None
    guidance_interval: Annotated[str | None, _flag("guidance_interval", "START,END")] = None
    sampler: Annotated[str | None, _flag("sampler", "NAME")] = None
    schedule: Annotated[str | None, _flag("schedule", "NAME")] = None
    shift: Annotated[str | None, _flag("shift", "FLOAT")] = None
    precision: Precision = "auto"
    preview_every: Annotated[
        str | None,
        Flag(
            Text(
                "Write preview-1.png and so on beside the pictures every so many steps. Default: never.",
                "每隔若干步在图片旁写出 preview-1.png 等预览图。默认不写。",
            ),
            "INT",
        ),
    ] = None


@dataclass(frozen=True)
class DiffusionOptions(SamplingOptions):
    """Flags of a command for diffusion models alone."""

    prompt: Annotated[str | None, _flag("prompt", "TEXT")] = None
    negative_prompt: Annotated[str | None, _flag("negative_prompt", "TEXT")] = None
    style: Annotated[str | None, _flag("style", "NAME")] = None
    n: Annotated[str | None, _flag("n", "INT")] = None
    seed: Annotated[str | None, _flag("seed", "INT")] = None
    steps: Annotated[str | None, _flag("steps", "INT")] = None
    cfg_scale: Annotated[str | None, _flag("cfg_scale", "FLOAT")] = None
    model: Annotated[str, _flag("model", "NAME")] = "default"


def settings_of(options: object, request: type[BaseModel]) -> dict[str, Any]:
    """Return those fields of ``request`` that the flags give, numbers as numbers where they are some.

    Pictures of ControlNets are read. Raises :class:`InputError` for a flag that cannot be read and
    :class:`~vitrail.errors.DataError` for a picture that cannot.
    """
    settings: dict[str, Any] = {}
    for name in request.model_fields:
        value = getattr(options, name, None)
        if value is None or value == () or value is False:
            continue
        settings[name] = value
    if "control" in settings:
        settings["control"] = tuple(_control(text) for text in settings["control"])
    return numbers(settings)


def numbers(settings: dict[str, Any]) -> dict[str, Any]:
    """Return ``settings`` with texts as the numbers that they are; the schema refuses what is left."""
    found = dict(settings)
    for name, value in settings.items():
        if not isinstance(value, str):
            continue
        if name in WHOLE:
            found[name] = _number(value, int)
        elif name in REAL:
            found[name] = _number(value, float)
        elif name == "guidance_interval":
            found[name] = [_number(part, float) for part in re.split(r"[\s,]+", value)]
    return found


def _number(text: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(text)
    except ValueError:  # not a number, or one of more than 4300 digits: the schema says its limits
        return text


def _control(text: str) -> dict[str, Any]:
    """Read ``NAME=PICTURE`` or ``NAME=PICTURE:STRENGTH``."""
    name, equals, rest = text.partition("=")
    if not equals or not name or not rest:
        raise InputError(f"control '{shown(text, 60)}' cannot be read; write for instance {CONTROL}")
    path, colon, strength = rest.rpartition(":")
    use: dict[str, Any] = {"name": name}
    try:
        if colon and path and not os.path.isfile(rest):
            use["strength"], rest = float(strength), path
    except ValueError:  # a colon of the path itself
        pass
    return use | {"picture": read_file(rest, "picture", f"vitrail generate ... {CONTROL}")}
