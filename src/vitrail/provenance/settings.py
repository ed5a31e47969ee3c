"""The one form into which the settings of any picture are read, whoever wrote them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vitrail.schema import SAMPLER_LABELS, SCHEDULE_LABELS, ImageRecord, ResolvedTextToImage

__all__ = ["PictureSettings", "Program", "finite", "settings_of", "whole"]

Program = Literal[
    "vitrail", "a1111", "stable-diffusion.cpp", "comfyui", "invokeai", "fooocus", "swarmui", "novelai"
]


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
        **_variation(request, record.index),
        **_added(request),
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
        denoising_strength=request.hires_strength if request.hires_scale > 1.0 else None,
        extra={key: value for key, value in extra.items() if value is not None},
    )


def _variation(request: ResolvedTextToImage, index: int) -> dict[str, str | None]:
    """A1111's names for a variation, a second pass and edges that meet."""
    varied, twice = request.subseed_strength > 0.0, request.hires_scale > 1.0
    return {
        "Variation seed": str((request.subseed or 0) + index) if varied else None,
        "Variation seed strength": f"{request.subseed_strength:g}" if varied else None,
        "Hires upscale": f"{request.hires_scale:g}" if twice else None,
        "Hires steps": str(request.hires_steps) if twice and request.hires_steps else None,
        "Hires upscaler": request.hires_upscaler if twice else None,
        "Tiling": None if request.seamless == "none" else request.seamless,
    }


def _added(request: object) -> dict[str, str | None]:
    """What was added to the model, by A1111's names where it has some."""
    skip = getattr(request, "clip_skip", None)
    lora = ", ".join(f"{use.name}: {use.weight:g}" for use in getattr(request, "lora", ()))
    control = ", ".join(f"{use.name}: {use.strength:g}" for use in getattr(request, "control", ()))
    return {
        "Clip skip": str(skip) if skip is not None and skip > 1 else None,
        "VAE": getattr(request, "vae", None),
        "Lora": lora or None,
        "ControlNet": control or None,
        "TI": ", ".join(getattr(request, "embedding", ())) or None,
    }


def _settings_of_codes(record: ImageRecord) -> PictureSettings:
    """The same of a picture that was made of another picture or of codes."""
    request = record.request
    sampler, schedule = getattr(request, "sampler", None), getattr(request, "schedule", None)
    drawn = sampler is not None  # by a diffusion model
    mask = getattr(request, "mask", None)
    source = getattr(request, "picture", None)
    amount = getattr(request, "amount", None)
    extra = {
        "Task": request.kind,
        "Style": getattr(request, "style", None),
        "Source": None if source is None else source.name,
        "Source SHA256": None if source is None else source.sha256,
        "Amount": None if amount is None else f"{amount:g}",
        "Mask": None if mask is None else mask.name,
        "Inpaint area": "Only masked" if drawn and getattr(request, "only_masked", False) else None,
        **_added(request),
        "Version": f"vitrail {record.versions.get('vitrail', 'unknown')}",
    }
    return PictureSettings(
        program="vitrail",
        prompt=request.prompt,
        negative_prompt=getattr(request, "negative_prompt", ""),
        steps=getattr(request, "steps", None),
        sampler=None if sampler is None else SAMPLER_LABELS[sampler],
        schedule=None if schedule is None else SCHEDULE_LABELS[schedule],
        denoising_strength=getattr(request, "strength", None) if drawn else None,
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
