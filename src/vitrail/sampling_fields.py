"""Settings of sampling that several requests share: their names, types, bounds and a model's own values.

:mod:`vitrail.schema` and the schemas below it build on them. Nothing here imports torch.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict

from vitrail.request_fields import Model, Scale, Side, Steps, Unit, Word

__all__ = [
    "SAMPLER_LABELS",
    "SCHEDULE_LABELS",
    "Choice",
    "Interval",
    "NoiseName",
    "Sampler",
    "SamplerName",
    "SamplingDefaults",
    "Schedule",
    "ScheduleName",
    "Shift",
    "Strength",
    "Temperature",
    "TopK",
    "TopP",
    "Truncation",
]

SAMPLER_LABELS: dict[str, str] = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "unipc": "UniPC",
    "ddim": "DDIM",
    "lcm": "LCM",
    "maskgit": "MaskGIT",
    "autoregressive": "Autoregressive",
}
"""Sampler names and what other programs call them; the last two are for models that draw codes."""

SCHEDULE_LABELS: dict[str, str] = {
    "karras": "Karras",
    "exponential": "Exponential",
    "simple": "Simple",
    "sgm_uniform": "SGM Uniform",
    "linspace": "Normal",
    "leading": "DDIM",
    "lcm": "LCM",
    "cosine": "Cosine",
    "raster": "Raster",
}
"""Noise schedule names and what other programs call them; the last two are orders in which codes are drawn:
MaskGIT's, and row by row."""

SamplerName = Literal[
    "euler",
    "euler_ancestral",
    "heun",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_sde",
    "unipc",
    "ddim",
    "lcm",
    "maskgit",
    "autoregressive",
]
ScheduleName = Literal[
    "karras", "exponential", "simple", "sgm_uniform", "linspace", "leading", "lcm", "cosine", "raster"
]


def _known_spelling(labels: dict[str, str]) -> BeforeValidator:
    """Accept ``DPM++ 2M`` and ``dpmpp-2m`` for ``dpmpp_2m``."""
    known = {_key(spelling): name for name, label in labels.items() for spelling in (name, label)}
    return BeforeValidator(lambda value: known.get(_key(value), value) if isinstance(value, str) else value)


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name[:64].lower().replace("++", "pp"))


Shift = Annotated[float, Strict(), Field(ge=0.1, le=20.0, allow_inf_nan=False)]
Temperature = Annotated[float, Strict(), Field(ge=0.0, le=10.0, allow_inf_nan=False)]
TopK = Annotated[int, Strict(), Field(ge=0, le=2**20)]
TopP = Annotated[float, Strict(), Field(ge=0.001, le=1.0, allow_inf_nan=False)]
Choice = Annotated[float, Strict(), Field(ge=0.0, le=100.0, allow_inf_nan=False)]
Truncation = Annotated[float, Strict(), Field(ge=0.01, le=10.0, allow_inf_nan=False)]
Strength = Annotated[float, Strict(), Field(ge=0.0, le=10.0, allow_inf_nan=False)]
NoiseName = Literal["gaussian", "uniform", "laplace", "student_t"]
Sampler = Annotated[SamplerName, _known_spelling(SAMPLER_LABELS)]
Schedule = Annotated[ScheduleName, _known_spelling(SCHEDULE_LABELS)]


def _interval(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError("needs a start below its end, such as 0.1 0.8")
    return value


Interval = Annotated[tuple[Unit, Unit], AfterValidator(_interval)]


class SamplingDefaults(Model):
    """A model's own settings, kept in its artifact; they fill what a request leaves open."""

    steps: Steps = 20
    cfg_scale: Scale = 4.0
    cfg_rescale: Unit = 0.0
    guidance_interval: Interval = (0.0, 1.0)
    sampler: Sampler = "euler"
    schedule: Schedule = "simple"
    shift: Shift = 1.0
    temperature: Temperature = 1.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    choice_temperature: Choice = 0.0
    truncation: Truncation | None = None
    noise_strength: Strength = 1.0
    noise: NoiseName | None = None
    style: Word | None = None
    width: Side = 128
    height: Side = 128
