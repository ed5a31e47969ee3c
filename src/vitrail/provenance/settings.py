"""The one form into which the settings of any picture are read, whoever wrote them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vitrail.schema import SAMPLER_LABELS, SCHEDULE_LABELS, ImageRecord, ResolvedTextToImage

__all__ = ["PictureSettings", "Program", "finite", "settings_of", "whole"]

Program = Literal["vitrail", "a1111", "stable-diffusion.cpp", "comfyui", "invokeai", "fooocus", "swarmui"]


@dataclass(frozen=True)
class PictureSettings:
    """How a picture was made, as far as its file tells; ``None`` where it does not."""

    program: Program
    prompt: str = ""
    negative_prompt: str = ""
    steps: int | None = None
    sampler: str | None = None
    schedule: str | None = None
    cfg_scale: float | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    model_hash: str | None = None
    model: str | None = None
    denoising_strength: float | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    """Everything else, by the name that the program gives it."""


def settings_of(record: ImageRecord) -> PictureSettings:
    """What other programs are told of one of our own pictures."""
    request = record.request
    if not isinstance(request, ResolvedTextToImage):
        return _settings_of_codes(record)
    extra = {
        "Style": request.style,
        "Guidance interval": "{:g}-{:g}".format(*request.guidance_interval),
        "CFG rescale": f"{request.cfg_rescale:g}" if request.cfg_rescale else None,
        "Shift": f"{request.shift:g}",
        "Version": f"vitrail {record.versions.get('vitrail', 'unknown')}",
    }
    return PictureSettings(
        program="vitrail",
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        steps=request.steps,
        sampler=SAMPLER_LABELS[request.sampler],
        schedule=SCHEDULE_LABELS[request.schedule],
        cfg_scale=request.cfg_scale,
        seed=record.seed,
        width=request.width,
        height=request.height,
        model_hash=record.model_sha256[:10],
        model=record.model_name,
        extra={key: value for key, value in extra.items() if value is not None},
    )


def _settings_of_codes(record: ImageRecord) -> PictureSettings:
    """The same of a picture that was made of another picture or of codes."""
    request = record.request
    source = getattr(request, "picture", None)
    amount = getattr(request, "amount", None)
    extra = {
        "Task": request.kind,
        "Style": getattr(request, "style", None),
        "Source": None if source is None else source.name,
        "Source SHA256": None if source is None else source.sha256,
        "Amount": None if amount is None else f"{amount:g}",
        "Version": f"vitrail {record.versions.get('vitrail', 'unknown')}",
    }
    return PictureSettings(
        program="vitrail",
        prompt=request.prompt,
        steps=getattr(request, "steps", None),
        cfg_scale=getattr(request, "cfg_scale", None),
        seed=record.seed,
        model_hash=record.model_sha256[:10],
        model=record.model_name,
        extra={key: value for key, value in extra.items() if value is not None},
    )


def whole(value: object) -> int | None:
    """``value`` as an integer below 2**64 in size, or ``None``; never raises."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,20}\s*", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        number = finite(value)
        if number is None or not number.is_integer():
            return None
        value = int(number)
    return value if abs(value) < 2**64 else None


def finite(value: object) -> float | None:
    """``value`` as a finite number, or ``None``; never raises."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value[:64]) if isinstance(value, str) else float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
