"""JSON of strangers as our settings: what is not understood is left out; nothing here raises on content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vitrail.provenance.settings import PictureSettings, Program, finite, whole

__all__ = ["MAX_JSON", "Names", "mapped", "object_of", "parsed"]

MAX_JSON = 4_000_000
"""Longest JSON that is parsed, in characters (ComfyUI graphs are long)."""

_MAX_VALUE = 200_000  # longest single text that is kept

Names = Mapping[str, str | tuple[str, ...]]
"""Names of our settings to theirs; of several the first that is there counts."""


def mapped(
    program: Program, data: Mapping[str, Any], names: Mapping[str, str | tuple[str, ...]]
) -> PictureSettings:
    """Build settings from ``data``: ``names`` maps our fields to theirs; what is left goes into ``extra``."""
    given: dict[str, Any] = {}
    used: set[str] = set()
    for own, theirs in names.items():
        for name in (theirs,) if isinstance(theirs, str) else theirs:
            if own not in given and data.get(name) is not None:
                given[own] = _CONVERT[own](data[name])
                used.add(name)
    given = {own: value for own, value in given.items() if value is not None}
    extra = {key: _text(value) or "" for key, value in data.items() if key not in used and value is not None}
    return PictureSettings(program, **given, extra=extra)


def parsed(text: str) -> Any:
    if len(text) > MAX_JSON:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # not JSON, a number of 5,000 digits, or nested to death
        return None


def object_of(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value[:_MAX_VALUE]
    if isinstance(value, dict | list):
        try:
            return json.dumps(value, ensure_ascii=False)[:_MAX_VALUE]
        except (ValueError, RecursionError):
            return None
    if isinstance(value, int) and value.bit_length() > 4096:
        return None
    return str(value)


_CONVERT: dict[str, Any] = {f.name: _text for f in fields(PictureSettings)} | {
    "steps": whole,
    "seed": whole,
    "width": whole,
    "height": whole,
    "cfg_scale": finite,
    "denoising_strength": finite,
}
