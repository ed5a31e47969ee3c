"""Whose settings are these? The text fields of a picture -> :class:`PictureSettings`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vitrail.provenance.a1111 import from_a1111, to_a1111
from vitrail.provenance.comfyui import from_comfyui
from vitrail.provenance.json_dialects import from_fooocus, from_invokeai, from_novelai, from_swarmui
from vitrail.provenance.settings import PictureSettings, settings_of

__all__ = [
    "PictureSettings",
    "from_a1111",
    "from_comfyui",
    "from_fooocus",
    "from_invokeai",
    "from_novelai",
    "from_swarmui",
    "recognise",
    "settings_of",
    "to_a1111",
]


def recognise(texts: Mapping[str, str]) -> PictureSettings | None:
    """Settings from a picture's text fields (PNG keywords; for JPEG and WebP what stands in EXIF).

    ``texts`` maps keywords such as ``parameters``, ``prompt``, ``invokeai_metadata`` to their content.
    Returns ``None`` where nothing is recognised.
    """
    for key in ("invokeai_metadata", "sd-metadata"):
        found = from_invokeai(texts[key]) if key in texts else None
        if found is not None:
            return found
    parameters = texts.get("parameters", "")
    if parameters.lstrip().startswith("{"):
        found = from_swarmui(parameters) or from_fooocus(parameters)
        if found is not None:
            return found
    elif parameters.strip():
        found = from_a1111(parameters)
        if found is not None:
            fooocus = texts.get("fooocus_scheme") == "a1111"
            return replace(found, program="fooocus") if fooocus else found
    if "prompt" in texts or "workflow" in texts:
        return from_comfyui(texts.get("prompt", ""), texts.get("workflow", ""))
    return from_novelai(texts)
