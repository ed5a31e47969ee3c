"""Settings that other programs write as JSON: ComfyUI's graph, InvokeAI, Fooocus and SwarmUI.

The texts come from strangers: what is not understood is left out, and nothing here raises on content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vitrail.provenance.settings import PictureSettings, Program, finite, whole

__all__ = ["MAX_JSON", "from_comfyui", "from_fooocus", "from_invokeai", "from_swarmui"]

MAX_JSON = 4_000_000
"""Longest JSON that is parsed, in characters (ComfyUI graphs are long)."""

_MAX_VALUE = 200_000  # longest single text that is kept

_MAX_NODES = 2000  # of a ComfyUI graph, looked at for one value

_Names = Mapping[str, str | tuple[str, ...]]


def from_swarmui(text: str) -> PictureSettings | None:
    """``{"sui_image_params": {...}}``."""
    data = _object(_object(_json(text)).get("sui_image_params"))
    if not data:
        return None
    names: _Names = {
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
    return _mapped("swarmui", data, names)


def from_fooocus(text: str) -> PictureSettings | None:
    """The flat JSON of Fooocus (``fooocus_scheme`` ``fooocus``)."""
    data = _object(_json(text))
    if not ({"base_model", "full_prompt", "performance"} & data.keys()):
        return None
    size = re.match(r"^\((\d{1,6}), (\d{1,6})\)$", str(data.get("resolution", ""))[:40])
    if size is not None:
        data = {key: value for key, value in data.items() if key != "resolution"}
        data |= {"width": int(size[1]), "height": int(size[2])}
    names: _Names = {
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
    return _mapped("fooocus", data, names)


def from_invokeai(text: str) -> PictureSettings | None:
    """``invokeai_metadata`` (version 3 on) or ``sd-metadata`` (before)."""
    data = dict(_object(_json(text)))
    if not data:
        return None
    old = _object(data.pop("image", None))
    model = _object(data.pop("model", None))
    data |= old
    data.setdefault("model_name", model.get("name") or model.get("model_name") or data.get("model_weights"))
    data.setdefault("model_hash", model.get("hash"))
    if isinstance(data.get("prompt"), list):  # version 2: a list of weighted parts
        data["prompt"] = ", ".join(str(_object(part).get("prompt", "")) for part in data["prompt"][:100])
    names: _Names = {
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
    return _mapped("invokeai", data, names)


def from_comfyui(prompt: str, workflow: str = "") -> PictureSettings | None:
    """ComfyUI's API graph (``prompt``); of a ``workflow`` alone only the program is told.

    The graph is followed from its sampler node: the texts that reach its positive and negative input, the
    size of its latent, the file of its model.
    """
    graph = {key: node for key, node in _object(_json(prompt)).items() if "class_type" in _object(node)}
    if not graph:
        return PictureSettings("comfyui") if "nodes" in _object(_json(workflow)) else None
    walk = _Graph(graph)
    samplers = [key for key, node in graph.items() if "Sampler" in str(node["class_type"])[:100]]
    start = max(samplers, key=lambda key: len(walk.inputs(key)), default=next(iter(graph)))
    wanted: dict[str, tuple[str, ...]] = {
        "steps": ("steps",),
        "sampler": ("sampler_name",),
        "schedule": ("scheduler",),
        "cfg_scale": ("cfg",),
        "seed": ("seed", "noise_seed"),
        "width": ("width",),
        "height": ("height",),
        "model": ("ckpt_name", "unet_name", "model_name"),
        "denoising_strength": ("denoise",),
    }
    data = {name: walk.nearest(start, theirs) for name, theirs in wanted.items()}
    data["prompt"] = walk.text(start, "positive")
    data["negative_prompt"] = walk.text(start, "negative")
    return _mapped("comfyui", data, {name: name for name in data})


class _Graph:
    """A ComfyUI graph: nodes by id, inputs either values or links ``[id, output]``."""

    def __init__(self, nodes: Mapping[str, Any]) -> None:
        self.nodes = nodes

    def inputs(self, key: str) -> Mapping[str, Any]:
        return _object(_object(self.nodes.get(key)).get("inputs"))

    def _link(self, value: Any) -> str | None:
        linked = isinstance(value, list) and len(value) == 2 and str(value[0])[:100] in self.nodes
        return str(value[0]) if linked else None

    def nearest(self, start: str, wanted: tuple[str, ...], follow: str | None = None) -> Any:
        """The first plain value called one of ``wanted``, breadth first from ``start`` against the links."""
        queue, seen = [start], {start}
        for key in queue:  # grows while it is walked; `seen` bounds it
            inputs = self.inputs(key)
            for name in wanted:
                value = inputs.get(name)
                if isinstance(value, str | int | float) and not isinstance(value, bool):
                    return value
            for name, value in inputs.items():
                link = self._link(value)
                if (
                    link is not None
                    and link not in seen
                    and len(seen) < _MAX_NODES
                    and (follow is None or key != start or name == follow)
                ):
                    seen.add(link)
                    queue.append(link)
        return None

    def text(self, start: str, side: str) -> Any:
        """The text that reaches input ``side`` of the sampler, or of the guider between them."""
        queue, seen = [start], {start}
        for key in queue:
            inputs = self.inputs(key)
            if self._link(inputs.get(side)) is not None:
                return self.nearest(key, ("text", "text_g", "prompt", "value", "string"), follow=side)
            for value in inputs.values():
                link = self._link(value)
                if link is not None and link not in seen and len(seen) < _MAX_NODES:
                    seen.add(link)
                    queue.append(link)
        return None


def _mapped(
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


def _json(text: str) -> Any:
    if len(text) > MAX_JSON:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # not JSON, a number of 5,000 digits, or nested to death
        return None


def _object(value: Any) -> Mapping[str, Any]:
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
