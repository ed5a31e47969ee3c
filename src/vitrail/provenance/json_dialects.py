"""Settings that other programs write as JSON: InvokeAI, Fooocus, SwarmUI and NovelAI.

The texts come from strangers: what is not understood is left out, and nothing here raises on content.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vitrail.provenance.json_values import Names, mapped, object_of, parsed
from vitrail.provenance.settings import PictureSettings

__all__ = ["from_fooocus", "from_invokeai", "from_novelai", "from_swarmui"]


def from_swarmui(text: str) -> PictureSettings | None:
    """``{"sui_image_params": {...}}``."""
    data = object_of(object_of(parsed(text)).get("sui_image_params"))
    if not data:
        return None
    names: Names = {
        "prompt": "prompt",
        "negative_prompt": "negativeprompt",
        "steps": "steps",
        "sampler": ("comfyuisampler", "sampler"),
        "schedule": ("comfyuischeduler", "scheduler"),
        "cfg_scale": "cfgscale",
        "seed": "seed",
        "width": "width",
        "height": "height",
        "model": "model",
    }
    return mapped("swarmui", data, names)


def from_fooocus(text: str) -> PictureSettings | None:
    """The flat JSON of Fooocus (``fooocus_scheme`` ``fooocus``)."""
    data = object_of(parsed(text))
    if not ({"base_model", "full_prompt", "performance"} & data.keys()):
        return None
    size = re.match(r"^\((\d{1,6}), (\d{1,6})\)$", str(data.get("resolution", ""))[:40])
    if size is not None:
        data = {key: value for key, value in data.items() if key != "resolution"}
        data |= {"width": int(size[1]), "height": int(size[2])}
    names: Names = {
        "prompt": "prompt",
        "negative_prompt": "negative_prompt",
        "steps": "steps",
        "sampler": "sampler",
        "schedule": "scheduler",
        "cfg_scale": "guidance_scale",
        "seed": "seed",
        "width": "width",
        "height": "height",
        "model": "base_model",
        "model_hash": "base_model_hash",
    }
    return mapped("fooocus", data, names)


def from_invokeai(text: str) -> PictureSettings | None:
    """``invokeai_metadata`` (version 3 on) or ``sd-metadata`` (before)."""
    data = dict(object_of(parsed(text)))
    if not data:
        return None
    old = object_of(data.pop("image", None))
    model = object_of(data.pop("model", None))
    data |= old
    data.setdefault("model_name", model.get("name") or model.get("model_name") or data.get("model_weights"))
    data.setdefault("model_hash", model.get("hash"))
    if isinstance(data.get("prompt"), list):  # version 2: a list of weighted parts
        data["prompt"] = ", ".join(str(object_of(part).get("prompt", "")) for part in data["prompt"][:100])
    names: Names = {
        "prompt": ("positive_prompt", "prompt"),
        "negative_prompt": "negative_prompt",
        "steps": "steps",
        "sampler": ("scheduler", "sampler"),
        "cfg_scale": "cfg_scale",
        "seed": "seed",
        "width": "width",
        "height": "height",
        "model": "model_name",
        "model_hash": "model_hash",
    }
    return mapped("invokeai", data, names)


def from_novelai(texts: Mapping[str, str]) -> PictureSettings | None:
    """NovelAI's fields: the words in ``Description``, the rest as JSON in ``Comment``."""
    if texts.get("Software") != "NovelAI":
        return None
    own = {"prompt": texts.get("Description"), "source": texts.get("Source")}
    data = own | dict(object_of(parsed(texts.get("Comment", ""))))
    names: Names = {
        "prompt": "prompt",
        "negative_prompt": "uc",
        "steps": "steps",
        "sampler": "sampler",
        "schedule": "noise_schedule",
        "cfg_scale": "scale",
        "seed": "seed",
        "width": "width",
        "height": "height",
        "denoising_strength": "strength",
        "model": "source",
    }
    return mapped("novelai", data, names)
