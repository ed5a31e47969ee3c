"""AUTOMATIC1111's HTTP interface (``/sdapi/v1``): programs written for it work with this server as they are.

What each answer holds is described in ``modules/api/api.py`` of AUTOMATIC1111/stable-diffusion-webui. A
request goes through the queue like any other job, and its pictures lie in the gallery.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from PIL import Image, ImageOps
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

import vitrail
from vitrail.errors import InputError
from vitrail.photo_schema import UpscaleRequest
from vitrail.provenance import metadata
from vitrail.provenance.dialects import PictureSettings, settings_of, to_a1111
from vitrail.request_fields import Model
from vitrail.sampling_fields import SAMPLER_LABELS
from vitrail.serving.dialects.a1111_lists import lists_router, title_of
from vitrail.serving.dialects.a1111_requests import (
    Enlarge,
    Extra,
    ExtraBatch,
    Img2Img,
    PngInfo,
    Txt2Img,
    drawn_over,
    from_words,
    left_out,
    upscaler_of,
)
from vitrail.serving.dialects.common import Kitchen, Sized, opened, png_file, sizes_of
from vitrail.serving.http_errors import documented
from vitrail.serving.http_models import ModelInfo, Shelf
from vitrail.serving.http_stream import Streams
from vitrail.serving.http_wire import picture_file
from vitrail.serving.jobs import TERMINAL, Job, JobEngine
from vitrail.store.gallery import Gallery

__all__ = ["make_router"]


class Pictures(BaseModel):
    """Answer of txt2img and img2img; ``info`` is JSON in a string."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class Failure(BaseModel):
    """An error, in A1111's shape."""

    error: str
    detail: str
    body: str
    errors: str


class OnePicture(BaseModel):
    """Answer of extra-single-image."""

    html_info: str
    image: str


class SeveralPictures(BaseModel):
    """Answer of extra-batch-images."""

    html_info: str
    images: list[str]


class PictureText(BaseModel):
    """Answer of png-info."""

    info: str
    items: dict[str, Any]
    parameters: dict[str, Any]


class State(BaseModel):
    """Where the work stands."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class Progress(BaseModel):
    """Answer of progress."""

    progress: float
    eta_relative: float
    state: State
    current_image: str | None = None
    textinfo: str | None = None


@dataclass
class _Desk:
    """What A1111 keeps globally: the chosen model, and the jobs that its clients wait for."""

    kitchen: Kitchen
    model: str = "default"
    active: dict[str, None] = field(default_factory=dict)
    interrupted: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def model_of(self, settings: dict[str, Any] | None) -> ModelInfo:
        """The model that a request is for: its own override, else the chosen one."""
        named = (settings or {}).get("sd_model_checkpoint")
        return self.find(named) if isinstance(named, str) and named else self.kitchen.shelf.model(self.model)

    def find(self, name: str) -> ModelInfo:
        """Look a model up by its name, its title or its hash, as A1111 does."""
        for info in self.kitchen.shelf.models():
            hash = (info.sha256 or "")[:10]
            if name in (info.name, title_of(info), hash, info.sha256, f"{info.name}.safetensors"):
                return info
        return self.kitchen.shelf.model(name.partition(" [")[0])

    async def run(self, request: Model) -> Job:
        """Take ``request`` through the queue; an interrupted one comes back with what was made."""
        job = await self.kitchen.submit(request)
        with self.lock:
            self.active[job.id], self.interrupted = None, False
        try:
            return await self.kitchen.done(job)
        finally:
            with self.lock:
                self.active.pop(job.id, None)


_CHOICE: dict[str, Any] = {
    "model": {"summary": "Choose a model", "value": {"sd_model_checkpoint": "default"}}
}


def make_router(engine: JobEngine, gallery: Gallery, shelf: Shelf, streams: Streams) -> APIRouter:
    """The routes under ``/sdapi/v1``."""
    kitchen = Kitchen(engine, gallery, shelf, streams)
    desk = _Desk(kitchen)
    errors = documented(408, 413, 415, 429, model=Failure)
    router = APIRouter(prefix="/sdapi/v1", tags=["a1111"], responses=errors)

    @router.post("/txt2img", response_model=Pictures)
    async def txt2img(body: Txt2Img) -> Pictures:
        """Pictures from words."""
        model = await run_in_threadpool(desk.model_of, body.override_settings)
        request, size = from_words(body, model)
        return await _made(desk, await desk.run(request), body, size)

    @router.post("/img2img", response_model=Pictures)
    async def img2img(body: Img2Img) -> Pictures:
        """Draw over a picture, or over what a white mask covers."""
        model = await run_in_threadpool(desk.model_of, body.override_settings)
        request, size = await run_in_threadpool(drawn_over, body, model)
        return await _made(desk, await desk.run(request), body, size)

    @router.post("/extra-single-image", response_model=OnePicture)
    async def extra_single_image(body: Extra) -> OnePicture:
        """Enlarge a picture, by a model or by interpolation."""
        return OnePicture(html_info="", image=await _larger(desk, body, body.image))

    @router.post("/extra-batch-images", response_model=SeveralPictures)
    async def extra_batch_images(body: ExtraBatch) -> SeveralPictures:
        """Enlarge several pictures, one after the other."""
        return SeveralPictures(
            html_info="", images=[await _larger(desk, body, file.data) for file in body.files]
        )

    @router.post("/png-info", response_model=PictureText)
    def png_info(body: PngInfo) -> PictureText:
        """What a picture says about how it was made."""
        found = metadata.read(picture_file(body.image).data)
        settings = found.settings
        text = found.texts.get("parameters", "") or (to_a1111(settings) if settings else "")
        values = {} if settings is None else _parameters(settings)
        items = {name: value for name, value in found.texts.items() if len(value) < 1 << 20}
        return PictureText(info=text, items=items, parameters=values)

    @router.get("/progress", response_model=Progress)
    def progress(skip_current_image: Annotated[bool, Query()] = False) -> Progress:
        """How far the job is that a client waits for."""
        with desk.lock:
            ids = list(desk.active)
        jobs = [job for job in map(engine.job, ids) if job.state not in TERMINAL]
        if not jobs:
            return Progress(progress=0.0, eta_relative=0.0, state=State(interrupted=desk.interrupted))
        job = next((job for job in jobs if job.state == "running"), jobs[0])
        data = None if skip_current_image else engine.preview(job.id)
        return Progress(
            progress=min(1.0, job.step / job.steps) if job.steps else 0.0,
            eta_relative=job.eta or 0.0,
            state=State(
                job=job.id,
                job_count=len(jobs),
                job_timestamp=_timestamp(job.created),
                sampling_step=job.step,
                sampling_steps=job.steps,
                interrupted=desk.interrupted,
            ),
            current_image=None if data is None else base64.b64encode(data).decode(),
        )

    def stop() -> dict[str, Any]:
        """Stop the work that clients of this interface wait for; other jobs go on."""
        with desk.lock:
            ids, desk.interrupted = list(desk.active), True
        for id in ids:
            engine.cancel(id)
        return {}

    router.add_api_route("/interrupt", stop, methods=["POST"])
    router.add_api_route("/skip", stop, methods=["POST"], operation_id="a1111_skip")

    @router.get("/options")
    def options() -> dict[str, Any]:
        """The settings that A1111's clients ask for."""
        info = shelf.model(desk.model)
        return {
            "sd_model_checkpoint": title_of(info),
            "sd_checkpoint_hash": info.sha256 or "",
            "samples_format": "png",
            "CLIP_stop_at_last_layers": 1,
            "sd_vae": "Automatic",
        }

    @router.post("/options")
    def set_options(body: Annotated[dict[str, Any], Body(openapi_examples=_CHOICE)]) -> None:
        """Choose the model for what follows; other settings are A1111's own and are taken without effect."""
        named = body.get("sd_model_checkpoint")
        if named is not None:
            if not isinstance(named, str):
                raise InputError("sd_model_checkpoint is not a text; give a model's title or name")
            desk.model = desk.find(named).name

    @router.post("/refresh-checkpoints")
    def refresh_checkpoints() -> None:
        """Nothing to do: folders are looked at every few seconds."""

    def nothing() -> dict[str, Any]:
        """Nothing to do: folders are looked at, and models loaded, as they are needed."""
        return {}

    for name in (
        "refresh-loras",
        "refresh-vae",
        "refresh-embeddings",
        "unload-checkpoint",
        "reload-checkpoint",
    ):
        router.add_api_route(
            f"/{name}", nothing, methods=["POST"], operation_id=f"a1111_{name.replace('-', '_')}"
        )

    router.include_router(lists_router(shelf))
    return router


async def _larger(desk: _Desk, body: Enlarge, content: str) -> str:
    """The picture in ``content`` enlarged as ``body`` says, as base64 of a PNG."""
    name = upscaler_of(body.upscaler_1)
    picture = await run_in_threadpool(lambda: opened(picture_file(content, "image.png").data))
    size = _enlarged(body, picture.size)
    sizes_of(*size)
    if name is not None:
        scale = 2 if max(size[0] / picture.width, size[1] / picture.height) <= 2 else 4
        request = UpscaleRequest(
            picture=picture_file(content, "image.png"), scale=2 if scale == 2 else 4, model=name
        )
        job = await desk.run(request)
        if job.pictures:
            picture = opened((await desk.kitchen.files(job.pictures, None))[0])
    method = Image.Resampling.NEAREST if body.upscaler_1 == "Nearest" else Image.Resampling.LANCZOS
    crop = body.resize_mode == 1 and body.upscaling_crop

    def finish() -> str:
        fitted = ImageOps.fit(picture, size, method) if crop else picture.resize(size, method)
        return png_file(fitted)

    return await run_in_threadpool(finish)


async def _made(desk: _Desk, job: Job, body: Txt2Img, size: Sized) -> Pictures:
    kitchen = desk.kitchen
    files, records = await asyncio.gather(
        kitchen.files(job.pictures, size.size),
        run_in_threadpool(lambda: [kitchen.gallery.get(picture.id).record for picture in job.pictures]),
    )
    ordered = sorted(records, key=lambda record: record.index)
    first = ordered[0] if ordered else None
    sampler = getattr(first.request, "sampler", None) if first else None
    info: dict[str, Any] = {
        "prompt": body.prompt,
        "all_prompts": [body.prompt] * len(ordered),
        "negative_prompt": body.negative_prompt or "",
        "all_negative_prompts": [body.negative_prompt or ""] * len(ordered),
        "seed": first.seed if first else body.seed,
        "all_seeds": [record.seed for record in ordered],
        "subseed": body.subseed,
        "all_subseeds": [body.subseed] * len(ordered),
        "subseed_strength": body.subseed_strength,
        "width": size.size[0],
        "height": size.size[1],
        "sampler_name": SAMPLER_LABELS.get(sampler, sampler) if sampler else body.sampler_name or "",
        "cfg_scale": body.cfg_scale,
        "steps": body.steps,
        "batch_size": body.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": first.model_name if first else "",
        "sd_model_hash": first.model_sha256[:10] if first else "",
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": body.denoising_strength,
        "extra_generation_params": _not_done(body, first.request if first else None),
        "index_of_first_image": 0,
        "infotexts": [to_a1111(settings_of(record)) for record in ordered],
        "styles": body.styles or [],
        "job_timestamp": _timestamp(job.created),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": f"vitrail {vitrail.__version__}",
    }
    echo = body.model_dump(mode="json", exclude={"init_images", "mask", "alwayson_scripts"})
    if isinstance(body, Img2Img):
        echo |= {"init_images": body.init_images if body.include_init_images else None, "mask": None}
    images = [base64.b64encode(data).decode() for data in files] if body.send_images else []
    return Pictures(images=images, parameters=echo, info=json.dumps(info, ensure_ascii=False))


def _not_done(body: Txt2Img, drawn: Model | None) -> dict[str, str]:
    """What a client is told of what it asked for and that is done without."""
    told = {}
    if body.enable_hr and drawn is not None and not getattr(drawn, "hires_strength", None):
        told["Hires fix"] = "enlarged by the model's own upsampler, without a second pass"
    if scripts := left_out(body):
        told["Scripts left out"] = ", ".join(scripts)
    return told


def _timestamp(moment: datetime) -> str:
    return moment.strftime("%Y%m%d%H%M%S")


def _enlarged(body: Enlarge, size: tuple[int, int]) -> tuple[int, int]:
    if body.resize_mode == 1:
        return body.upscaling_resize_w, body.upscaling_resize_h
    if not 1.0 <= body.upscaling_resize <= 4.0:
        raise InputError("upscaling_resize is out of range; allowed 1 to 4")
    return round(size[0] * body.upscaling_resize), round(size[1] * body.upscaling_resize)


def _parameters(settings: PictureSettings) -> dict[str, Any]:
    """Settings by the names that A1111's own reader gives them."""
    values: dict[str, Any] = {
        "Prompt": settings.prompt,
        "Negative prompt": settings.negative_prompt,
        "Steps": settings.steps,
        "Sampler": settings.sampler,
        "Schedule type": settings.schedule,
        "CFG scale": settings.cfg_scale,
        "Seed": settings.seed,
        "Size-1": settings.width,
        "Size-2": settings.height,
        "Model hash": settings.model_hash,
        "Model": settings.model,
        "Denoising strength": settings.denoising_strength,
        **settings.extra,
    }
    return {name: str(value) for name, value in values.items() if value is not None}
