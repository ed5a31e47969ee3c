"""AUTOMATIC1111's ``parameters`` text: the form that most programs and picture sites read.

Also written by stable-diffusion.cpp, SD.Next, Forge and vitrail. Source: ``modules/infotext_utils.py`` and
``modules/processing.py`` of AUTOMATIC1111/stable-diffusion-webui.
"""

from __future__ import annotations

import json
import re

from vitrail.errors import InputError
from vitrail.provenance.settings import PictureSettings, Program, finite, whole
from vitrail.schema import SCHEDULE_LABELS

__all__ = ["MAX_TEXT", "from_a1111", "to_a1111"]

MAX_TEXT = 200_000
"""Longest text that is parsed, in characters."""

# A1111's own pattern is \s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$). Without the \s*
# and with a bound on the key the same pairs are found, in linear time on hostile text.
_PAIR = re.compile(r'(\w[\w \-/]{1,80}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"^(\d{1,6})x(\d{1,6})$")
_KEY = re.compile(r"^\w[\w \-/]{0,79}[\w\-/]$")
_NEGATIVE = "Negative prompt:"

# The order in which A1111 writes; keys that it does not know go before Version.
_ORDER = (
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
    "Seed",
    "Size",
    "Model hash",
    "Model",
    "VAE hash",
    "VAE",
    "Variation seed",
    "Variation seed strength",
    "Denoising strength",
    "Clip skip",
    "Init image hash",
)
_LAST = "Version"


def to_a1111(settings: PictureSettings) -> str:
    """The A1111 ``parameters`` text.

    What the form cannot hold is lost, as in A1111 itself: blanks at the ends of prompt lines, and the meaning
    of a prompt line that begins with ``Negative prompt:`` (our own record beside it keeps both). Raises
    :class:`InputError` for an extra key that the form cannot hold.
    """
    size = (
        None if settings.width is None or settings.height is None else f"{settings.width}x{settings.height}"
    )
    own: dict[str, object] = {
        "Steps": settings.steps,
        "Sampler": settings.sampler,
        "Schedule type": settings.schedule,
        "CFG scale": settings.cfg_scale,
        "Seed": settings.seed,
        "Size": size,
        "Model hash": settings.model_hash,
        "Model": settings.model,
        "Denoising strength": settings.denoising_strength,
    }
    pairs: dict[str, object] = {key: value for key, value in own.items() if value is not None}
    for key, value in settings.extra.items():
        if not _KEY.match(key):
            raise InputError(
                f"{key[:40]!r} cannot be a key of the parameters text; use letters, digits and blanks"
            )
        pairs.setdefault(key, value)
    middle = [key for key in pairs if key not in _ORDER and key != _LAST]
    ordered = [key for key in (*_ORDER, *middle, _LAST) if key in pairs]
    lines = [settings.prompt]
    if settings.negative_prompt:
        lines.append(f"{_NEGATIVE} {settings.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(str(pairs[key]))}" for key in ordered))
    return "\n".join(lines).strip()


def from_a1111(text: str) -> PictureSettings | None:
    """Read the A1111 form; ``None`` for a text that is too long to be one."""
    if len(text) > MAX_TEXT:
        return None
    *lines, last = text.strip().split("\n")
    found = _PAIR.findall(last)
    if len(found) < 3:
        lines.append(last)
        found = []
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in lines:
        line = line.strip()
        if line.startswith(_NEGATIVE):
            target = negative
            line = line[len(_NEGATIVE) :].strip()
        target.append(line)
    pairs = {key.strip(): _unquoted(value.strip()) for key, value in found}
    version = pairs.get(_LAST, "")
    program: Program = "a1111"
    if version == "stable-diffusion.cpp":
        program = "stable-diffusion.cpp"
    elif version.startswith("vitrail"):
        program = "vitrail"
    size = _SIZE.match(pairs.get("Size", ""))
    if size is not None:
        del pairs["Size"]
    sampler, schedule = _split_sampler(pairs.pop("Sampler", None), pairs.pop("Schedule type", None))
    return PictureSettings(
        program=program,
        prompt="\n".join(prompt),
        negative_prompt="\n".join(negative),
        steps=whole(pairs.pop("Steps", None)),
        sampler=sampler,
        schedule=schedule,
        cfg_scale=finite(pairs.pop("CFG scale", None)),
        seed=whole(pairs.pop("Seed", None)),
        width=int(size[1]) if size else None,
        height=int(size[2]) if size else None,
        model_hash=pairs.pop("Model hash", None),
        model=pairs.pop("Model", None),
        denoising_strength=finite(pairs.pop("Denoising strength", None)),
        extra=pairs,
    )


def _quoted(value: str) -> str:
    plain = not any(c in value for c in ",\n:") and value == value.strip() and value and value[0] != '"'
    return value if plain else json.dumps(value, ensure_ascii=False)


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        return str(json.loads(value))
    except ValueError:  # only looks quoted: it is the value itself
        return value


def _split_sampler(sampler: str | None, schedule: str | None) -> tuple[str | None, str | None]:
    """``DPM++ 2M Karras`` (A1111 before 1.9) and ``euler_a karras`` (stable-diffusion.cpp) hold two names."""
    if sampler is None or schedule is not None:
        return sampler, schedule
    for label in SCHEDULE_LABELS.values():
        if sampler.lower().endswith(" " + label.lower()):
            return sampler[: -len(label) - 1], label
    return sampler, None
