"""ComfyUI's graphs of nodes: the settings that lead to the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitrail.provenance.json_values import mapped, object_of, parsed
from vitrail.provenance.settings import PictureSettings

__all__ = ["from_comfyui"]

_MAX_NODES = 2000  # of a graph, looked at for one value

_TEXTS = (
    *("text", "text_g", "t5xxl", "clip_l", "prompt", "value", "string", "string_a", "populated_text"),
    *("wildcard_text", "text_positive", "Text"),
)
"""What nodes call the text that they hold."""

_LATENT = ("width", "height", "batch_size")
_WIDGETS: Mapping[str, tuple[str, ...]] = {
    "KSampler": ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": ("add_noise", "noise_seed", "", "steps", "cfg", "sampler_name", "scheduler"),
    "SamplerCustom": ("add_noise", "noise_seed", "", "cfg"),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "RandomNoise": ("noise_seed",),
    "CFGGuider": ("cfg",),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeSDXL": ("", "", "", "", "", "", "text_g", "text_l"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "CheckpointLoader": ("config_name", "ckpt_name"),
    "UNETLoader": ("unet_name",),
    "EmptyLatentImage": _LATENT,
    "EmptySD3LatentImage": _LATENT,
    "PrimitiveNode": ("value",),
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
}
"""The values that stand on a node of the page, in their order there; "" for what is of the page alone."""


def from_comfyui(prompt: str, workflow: str = "") -> PictureSettings | None:
    """ComfyUI's API graph (``prompt``), or its page's (``workflow``) where that is all there is.

    The graph is followed from its sampler node: the texts that reach its positive and negative input, the
    size of its latent, the file of its model.
    """
    graph = {key: node for key, node in object_of(parsed(prompt)).items() if "class_type" in object_of(node)}
    if not graph:
        page = object_of(parsed(workflow))
        if "nodes" not in page:
            return None
        graph = _graph_of_page(page)
        if not graph:
            return PictureSettings("comfyui")
    walk = _Graph(graph)
    # Of several the one with the most inputs: the others refine its picture, or only name a method.
    samplers = [key for key, node in graph.items() if "Sampler" in str(node["class_type"])[:100]]
    start = max(samplers, key=lambda key: len(walk.inputs(key)), default=next(iter(graph)))
    wanted: dict[str, tuple[str, ...]] = {
        "steps": ("steps",),
        "sampler": ("sampler_name",),
        "schedule": ("scheduler",),
        "cfg_scale": ("cfg",),
        "seed": ("seed", "noise_seed"),
        "width": ("width", "empty_latent_width"),
        "height": ("height", "empty_latent_height"),
        "model": ("ckpt_name", "unet_name", "model_name"),
        "denoising_strength": ("denoise",),
    }
    data = {name: walk.nearest(start, theirs) for name, theirs in wanted.items()}
    data["prompt"] = walk.text(start, "positive")
    data["negative_prompt"] = walk.text(start, "negative")
    return mapped("comfyui", data, {name: name for name in data})


class _Graph:
    """A ComfyUI graph: nodes by id, inputs either values or links ``[id, output]``."""

    def __init__(self, nodes: Mapping[str, Any]) -> None:
        self.nodes = nodes

    def inputs(self, key: str) -> Mapping[str, Any]:
        return object_of(object_of(self.nodes.get(key)).get("inputs"))

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
                return self.nearest(key, (*_TEXTS, side), follow=side)
            for value in inputs.values():
                link = self._link(value)
                if link is not None and link not in seen and len(seen) < _MAX_NODES:
                    seen.add(link)
                    queue.append(link)
        return None


def _graph_of_page(page: Mapping[str, Any]) -> dict[str, Any]:
    """The page's graph in the form of the API's: nodes that are muted are left out."""
    sources: dict[str, list[str | int]] = {}
    links = page.get("links")
    for link in links if isinstance(links, list) else ():
        if isinstance(link, list) and len(link) >= 3:
            sources[str(link[0])[:40]] = [str(link[1])[:100], 0]
        elif "id" in object_of(link):
            sources[str(link["id"])[:40]] = [str(link.get("origin_id"))[:100], 0]
    graph: dict[str, Any] = {}
    nodes = page.get("nodes")
    for node in (object_of(one) for one in (nodes if isinstance(nodes, list) else ())):
        kind, values = node.get("type"), node.get("widgets_values")
        if not isinstance(kind, str) or node.get("mode") in (2, 4):
            continue
        inputs: dict[str, Any] = {}
        if isinstance(values, dict):
            inputs |= values
        elif isinstance(values, list):
            inputs |= {
                name: value for name, value in zip(_WIDGETS.get(kind, ()), values, strict=False) if name
            }
        slots = node.get("inputs")
        for slot in (object_of(one) for one in (slots if isinstance(slots, list) else ())):
            source = sources.get(str(slot.get("link"))[:40])
            if source is not None and isinstance(slot.get("name"), str):
                inputs[slot["name"]] = source
        graph[str(node.get("id"))[:100]] = {"class_type": kind, "inputs": inputs}
    return graph
