"""What AUTOMATIC1111's interface lists: models, samplers, styles, and what its extension ControlNet has.

Shapes as in ``modules/api/models.py`` of AUTOMATIC1111/stable-diffusion-webui and ``scripts/api.py`` of
Mikubill/sd-webui-controlnet. No folder of this machine is told.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from vitrail.diffusion_fields import MAX_ADDONS
from vitrail.sampling_fields import SAMPLER_LABELS, SCHEDULE_LABELS
from vitrail.serving.http_models import CHECKPOINT, ModelInfo, Shelf

__all__ = ["controlnet_router", "lists_router", "title_of"]


def title_of(info: ModelInfo) -> str:
    """The name of a model as A1111 shows it, with the beginning of its hash."""
    return f"{info.name} [{info.sha256[:10]}]" if info.sha256 else info.name


def lists_router(shelf: Shelf) -> APIRouter:
    """What there is to choose from."""
    router = APIRouter()

    @router.get("/samplers")
    def samplers() -> list[dict[str, Any]]:
        """Samplers by A1111's names."""
        ours = ("maskgit", "autoregressive")
        return [
            {"name": label, "aliases": [name, f"k_{name}"], "options": {}}
            for name, label in SAMPLER_LABELS.items()
            if name not in ours
        ]

    @router.get("/schedulers")
    def schedulers() -> list[dict[str, Any]]:
        """Noise schedules."""
        rows = [("automatic", "Automatic"), *SCHEDULE_LABELS.items()]
        return [
            {
                "name": name,
                "label": label,
                "aliases": None,
                "default_rho": 7.0 if name == "karras" else -1.0,
                "need_inner_model": False,
            }
            for name, label in rows
            if name not in ("cosine", "raster")
        ]

    @router.get("/sd-models")
    def sd_models() -> list[dict[str, Any]]:
        """Models by A1111's titles; no folder of this machine is told."""
        return [
            {
                "title": title_of(info),
                "model_name": info.name,
                "hash": (info.sha256 or "")[:10] or None,
                "sha256": info.sha256,
                "filename": f"{info.name}.safetensors",
                "config": None,
            }
            for info in shelf.models()
            if info.kind in (CHECKPOINT, "shell_dit", "token_transformer", "gan")
        ]

    @router.get("/loras")
    def loras() -> list[dict[str, Any]]:
        """LoRAs that a prompt may name."""
        names = [(item.short, f"{item.name}{item.path.suffix}") for item in shelf.files("lora")]
        return [{"name": name, "alias": name, "path": path, "metadata": {}} for name, path in names]

    @router.get("/sd-vae")
    def vaes() -> list[dict[str, Any]]:
        """Autoencoders that may replace a model's own."""
        return [
            {"model_name": item.short, "filename": f"{item.name}{item.path.suffix}"}
            for item in shelf.files("vae")
        ]

    @router.get("/embeddings")
    def embeddings() -> dict[str, Any]:
        """Textual inversions that a prompt may name."""
        unknown = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 0, "vectors": 0}
        return {"loaded": {item.short: unknown for item in shelf.files("embedding")}, "skipped": {}}

    @router.get("/upscalers")
    def upscalers() -> list[dict[str, Any]]:
        """What enlarges: interpolation, and models that are here."""
        own = [info.name for info in shelf.models() if info.kind == "rrdb"]
        names = ["None", "Lanczos", "Nearest", *own, *(item.short for item in shelf.files("upscaler"))]
        return [
            {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4}
            for name in dict.fromkeys(names)
        ]

    @router.get("/latent-upscale-modes")
    def latent_modes() -> list[dict[str, str]]:
        """What enlarges between two passes without a model."""
        return [{"name": "Latent"}]

    @router.get("/prompt-styles")
    def styles() -> list[dict[str, str]]:
        """House styles of the models here, to be named in styles."""
        names = dict.fromkeys(style for info in shelf.models() for style in info.styles)
        return [{"name": name, "prompt": "", "negative_prompt": ""} for name in names]

    @router.get("/scripts")
    def scripts() -> dict[str, list[str]]:
        """Extensions; ControlNet's units are read."""
        return {"txt2img": ["controlnet"], "img2img": ["controlnet"]}

    @router.get("/cmd-flags")
    def flags() -> dict[str, Any]:
        """The command line, of which a stranger is told nothing."""
        return {"api": True}

    @router.get("/extensions", name="extensions")
    @router.get("/script-info", name="script_info")
    @router.get("/hypernetworks", name="hypernetworks")
    @router.get("/face-restorers", name="face_restorers")
    @router.get("/realesrgan-models", name="realesrgan_models")
    def nothing() -> list[dict[str, Any]]:
        """There are none."""
        return []

    @router.get("/memory")
    def memory() -> dict[str, Any]:
        """Not told."""
        return {"ram": {}, "cuda": {}}

    return router


def controlnet_router(shelf: Shelf) -> APIRouter:
    """The routes under ``/controlnet``, by which clients see whether the extension is there."""
    router = APIRouter(prefix="/controlnet", tags=["a1111"])

    def names() -> list[str]:
        return ["None", *(item.name for item in shelf.files("controlnet"))]

    @router.get("/version")
    def version() -> dict[str, int]:
        """The extension's interface that is spoken here."""
        return {"version": 2}

    @router.get("/model_list")
    def models() -> dict[str, list[str]]:
        """ControlNets that a unit may name."""
        return {"model_list": names()}

    @router.get("/module_list")
    def modules() -> dict[str, Any]:
        """What makes maps of pictures: nothing here, so the map itself is sent."""
        return {"module_list": ["none"], "module_detail": {"none": {"model_free": False, "sliders": []}}}

    @router.get("/control_types")
    def kinds() -> dict[str, Any]:
        """All ControlNets are of one kind here."""
        every = {
            "module_list": ["none"],
            "model_list": names(),
            "default_option": "none",
            "default_model": "None",
        }
        return {"control_types": {"All": every}}

    @router.get("/settings")
    def settings() -> dict[str, int]:
        """How many units a request may have."""
        return {"control_net_unit_count": MAX_ADDONS}

    return router
