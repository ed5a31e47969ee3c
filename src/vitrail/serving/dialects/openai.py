"""OpenAI's images interface (``/v1/images``), for programs that speak it: generations, edits, variations.

Shapes as in OpenAI's own published description and as the ``openai`` client reads them. Names of OpenAI's
models mean the default model here.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.concurrency import run_in_threadpool

from vitrail.codes_schema import TOKEN_MODEL, InpaintRequest, VaryRequest
from vitrail.edit_schema import EditRequest
from vitrail.errors import InputError
from vitrail.images import contained
from vitrail.request_fields import FileRef, Model
from vitrail.schema import TextToImageRequest
from vitrail.serving.dialects.common import (
    LARGEST,
    JobFailedError,
    Kitchen,
    Sized,
    opened,
    png_file,
    sized,
    sizes_of,
)
from vitrail.serving.dialects.forms import described, one_file, open_form, texts_of, uploads_of
from vitrail.serving.http_errors import ParamError, documented, error_answer, refusal_of
from vitrail.serving.http_jobs import SSE_HEADERS
from vitrail.serving.http_models import DIFFUSION_KINDS, ModelInfo, Shelf
from vitrail.serving.http_stream import Streams
from vitrail.serving.http_tickets import TICKET_SECONDS, ticket
from vitrail.serving.http_wire import file_of
from vitrail.serving.jobs import Job, JobEngine
from vitrail.store.gallery import Gallery
from vitrail.validation import parse

__all__ = ["make_router"]

M = TypeVar("M", bound=BaseModel)
Short = Annotated[str, Field(max_length=400)]
Format = Literal["png", "jpeg", "webp"]
_THEIRS = re.compile(r"^(dall-e|gpt-image|chatgpt-image)[a-z0-9.-]{0,60}$")
_NEWER = re.compile(r"^(chatgpt|gpt)-image")
_SIZE = re.compile(r"^([0-9]{1,5})[xX]([0-9]{1,5})$")
_EDIT_STRENGTH = 0.75  # how much an edit without a mask may change


class Settings(BaseModel):
    """What all three have in common. Fields that are not listed are taken and not used.

    One that is null or an empty text is as good as left out.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, hide_input_in_errors=True)

    model: Short | None = Field(default=None, examples=["default"])
    n: Annotated[int, Field(ge=1, le=10)] | None = 1
    size: Short | None = Field(default="auto", description="WIDTHxHEIGHT, or auto for the model's own.")
    response_format: Literal["url", "b64_json"] | None = None
    output_format: Format | None = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = 100
    background: Literal["transparent", "opaque", "auto"] | None = None
    quality: Short | None = None
    stream: bool | None = False
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = 0
    user: Short | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {
            name: value
            for name, value in values.items()
            if value is not None and (value != "" or name == "prompt")
        }


class Generation(Settings):
    """``POST /v1/images/generations``."""

    prompt: Annotated[str, Field(max_length=32000)] = Field(examples=["a cat sitting in a garden"])
    style: Short | None = None


class Edit(Settings):
    """``POST /v1/images/edits``, beside its files."""

    prompt: Annotated[str, Field(max_length=32000)]


class Variation(Settings):
    """``POST /v1/images/variations``, beside its file."""


class Reason(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failure(BaseModel):
    """An error, in OpenAI's shape."""

    error: Reason


class OnePicture(BaseModel):
    """One of the pictures."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


class Details(BaseModel):
    """Which tokens were counted."""

    text_tokens: int = 0
    image_tokens: int = 0


class Usage(BaseModel):
    """Nothing is counted here, but programs add it up."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: Details = Details()


class Pictures(BaseModel):
    """The answer of all three."""

    created: int
    data: list[OnePicture]
    size: str
    output_format: Format
    background: Literal["opaque"] = "opaque"
    usage: Usage = Usage()


class ModelCard(BaseModel):
    """A model, in OpenAI's form."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "vitrail"


class ModelCards(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


@dataclass(frozen=True)
class _Order:
    """A request on its way: what is to be made, how it is handed over, and what its events are called."""

    request: Model
    size: tuple[int, int] | None
    settings: Settings
    name: Literal["image_generation", "image_edit"]
    address: Callable[[str], str]


def make_router(
    engine: JobEngine, gallery: Gallery, shelf: Shelf, streams: Streams, token: str | None = None
) -> APIRouter:
    """The routes under ``/v1``. ``token``: what the server asks for, to sign addresses of pictures with."""
    kitchen = Kitchen(engine, gallery, shelf, streams)
    errors = documented(408, 413, 415, 429, model=Failure)
    router = APIRouter(prefix="/v1", tags=["openai"], responses=errors)

    @router.post("/images/generations", response_model=Pictures, response_model_exclude_none=True)
    async def generations(request: Request, body: Generation) -> Any:
        """Pictures from words."""
        model = await run_in_threadpool(_model, shelf, body.model)
        plan = _sized(model, body.size)
        values = {
            "prompt": body.prompt,
            "n": body.n or 1,
            "model": model.name,
            "style": body.style if body.style in model.styles else None,
            **(plan.settings if plan else {}),
        }
        wanted = _parsed(TextToImageRequest, values)
        return await _serve(
            kitchen, _Order(wanted, _size(plan), body, "image_generation", _addresses(request, token))
        )

    @router.post(
        "/images/edits",
        response_model=Pictures,
        response_model_exclude_none=True,
        openapi_extra=described(Edit, ("image[]", "image", "mask")),
    )
    async def edits(request: Request) -> Any:
        """Draw over a picture; of a mask, what is transparent is drawn anew."""
        async with open_form(request, 20) as form:
            body = _parsed(Edit, texts_of(form))
            pictures = await uploads_of(form, "image[]") or await uploads_of(form, "image")
            masks = await uploads_of(form, "mask")
        model = await run_in_threadpool(_model, shelf, body.model)
        wanted, size = await run_in_threadpool(_edit, body, model, pictures, masks)
        return await _serve(kitchen, _Order(wanted, size, body, "image_edit", _addresses(request, token)))

    @router.post(
        "/images/variations",
        response_model=Pictures,
        response_model_exclude_none=True,
        openapi_extra=described(Variation, ("image",)),
    )
    async def variations(request: Request) -> Any:
        """Other versions of a picture."""
        async with open_form(request, 2) as form:
            body = _parsed(Variation, texts_of(form))
            pictures = await uploads_of(form, "image")
        model = await run_in_threadpool(_model, shelf, body.model or TOKEN_MODEL, TOKEN_MODEL)
        picture, own = await run_in_threadpool(_seen, one_file(pictures), model)
        values = {"picture": picture, "n": body.n or 1, "model": model.name}
        size = _asked(body.size) or own
        wanted = _parsed(VaryRequest, values)
        return await _serve(
            kitchen, _Order(wanted, size, body, "image_generation", _addresses(request, token))
        )

    @router.get("/models", response_model=ModelCards)
    def models() -> ModelCards:
        """Models on this machine."""
        return ModelCards(data=[ModelCard(id=info.name) for info in shelf.models()])

    @router.get("/models/{id}", response_model=ModelCard)
    def model(id: str) -> ModelCard:
        """One of them."""
        return ModelCard(id=shelf.model(id).name)

    return router


async def _serve(kitchen: Kitchen, order: _Order) -> Any:
    settings = order.settings
    if settings.background == "transparent":
        raise InputError("background transparent is not possible here; leave it out")
    if settings.stream and (settings.n or 1) > 1:
        raise InputError("n is out of range while streaming; allowed is 1")
    job = await kitchen.submit(order.request)
    if settings.stream:
        events = _events(kitchen, job, order)
        return StreamingResponse(events, media_type="text/event-stream", headers=SSE_HEADERS)
    ended = await kitchen.done(job)
    if not ended.pictures:
        raise InputError("the job was cancelled before a picture was made")
    return await _pictures(kitchen, ended, order)


async def _pictures(kitchen: Kitchen, job: Job, order: _Order) -> Pictures:
    settings = order.settings
    shape = order.size or (job.pictures[0].width, job.pictures[0].height)
    format: Format = settings.output_format or "png"
    made = sorted(job.pictures, key=lambda picture: picture.index)
    data = [OnePicture() for _ in made]
    forms = _forms(settings)
    if "url" in forms:
        for one, picture in zip(data, made, strict=True):
            one.url = order.address(picture.id)
    if "b64_json" in forms:
        files = await kitchen.files(job.pictures, order.size, format, _quality(settings))
        for one, file in zip(data, files, strict=True):
            one.b64_json = base64.b64encode(file).decode()
    return Pictures(created=int(time.time()), data=data, size=f"{shape[0]}x{shape[1]}", output_format=format)


def _forms(settings: Settings) -> tuple[str, ...]:
    """How pictures are handed over: as asked for, else in every form that who asks may look for.

    OpenAI's older models answered with addresses where nothing was said, and programs of that time rely on
    it; its newer ones know no addresses, and who names one of those may fetch any that comes.
    """
    if settings.response_format is not None:
        return (settings.response_format,)
    return ("b64_json",) if _NEWER.match(settings.model or "") else ("b64_json", "url")


def _addresses(request: Request, token: str | None) -> Callable[[str], str]:
    """What makes the address of a picture's file."""
    # A proxy that ends TLS says so here; whoever else says it harms nobody but itself.
    outside = request.headers.get("x-forwarded-proto", "").split(",")[0].strip().lower()
    scheme = outside if outside in ("http", "https") else request.url.scheme
    server = f"{scheme}://{request.headers['host']}"

    def address(id: str) -> str:
        path = f"/api/pictures/{id}/file"
        until = int(time.time()) + TICKET_SECONDS
        return server + (path if token is None else f"{path}?{ticket(token, path, until)}")

    return address


async def _events(kitchen: Kitchen, job: Job, order: _Order) -> AsyncIterator[str]:
    """The stream: as many previews as were asked for, as they come, then the picture."""
    settings, left = order.settings, order.settings.partial_images or 0
    shape = f"{order.size[0]}x{order.size[1]}" if order.size else "auto"
    common = {
        "created_at": int(time.time()),
        "size": shape,
        "quality": "auto",
        "background": "opaque",
        "output_format": settings.output_format or "png",
    }
    shown = 0
    try:
        async for event in kitchen.streams.follow(job.id):
            if event is None:
                yield ": still here\n\n"
            elif event.type == "preview" and shown < left and _due(event.job, shown, left):
                data = await run_in_threadpool(kitchen.engine.preview, job.id)
                if data is not None:
                    kind = f"{order.name}.partial_image"
                    text = base64.b64encode(data).decode()
                    yield _event(kind, {**common, "b64_json": text, "partial_image_index": shown})
                    shown += 1
        ended = await kitchen.done(job)
        if not ended.pictures:
            raise JobFailedError("the job was cancelled before a picture was made")
        files = await kitchen.files(
            ended.pictures, order.size, settings.output_format or "png", _quality(settings)
        )
    except Exception as error:  # the stream has begun: what went wrong is its last event
        answer = error_answer("/v1/", refusal_of(error)).body
        yield f"event: error\ndata: {bytes(answer).decode()}\n\n"
        return
    picture = ended.pictures[0]
    usage = Usage().model_dump()
    shape = shape if order.size else f"{picture.width}x{picture.height}"
    text = base64.b64encode(files[0]).decode()
    yield _event(f"{order.name}.completed", {**common, "size": shape, "b64_json": text, "usage": usage})


def _due(job: Job, shown: int, wanted: int) -> bool:
    """Whether it is time for the next of ``wanted`` previews, spread over the job's steps."""
    return not job.steps or job.step >= job.steps * (shown + 1) / (wanted + 2)


def _event(kind: str, values: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n"


def _quality(settings: Settings) -> int:
    asked = 100 if settings.output_compression is None else settings.output_compression
    return max(1, min(95, asked))


def _model(shelf: Shelf, name: str | None, default: str = "default") -> ModelInfo:
    return shelf.model(default if name is None or _THEIRS.match(name) else name)


def _asked(size: str | None) -> tuple[int, int] | None:
    if size is None or size == "auto":
        return None
    match = _SIZE.match(size.strip())
    if match is None:
        raise ParamError("size cannot be read; write auto, or width and height such as 1024x1024", "size")
    width, height = int(match[1]), int(match[2])
    sizes_of(width, height)
    return width, height


def _sized(model: ModelInfo, size: str | None) -> Sized | None:
    asked = _asked(size)
    return None if asked is None else sized(model, *asked)


def _size(plan: Sized | None) -> tuple[int, int] | None:
    return None if plan is None else plan.size


def _parsed(model: type[M], values: dict[str, Any]) -> M:
    given = {name: value for name, value in values.items() if value is not None}
    return parse(model, given, echo=False)


def _edit(
    body: Edit, model: ModelInfo, pictures: list[bytes], masks: list[bytes]
) -> tuple[Model, tuple[int, int] | None]:
    picture = one_file(pictures)
    image = opened(picture.data)
    size = _asked(body.size)
    values: dict[str, Any] = {"prompt": body.prompt, "n": body.n or 1, "model": model.name}
    mask = _painted(opened(one_file(masks, "mask").data), image) if masks else _transparent(image)
    if mask is not None:
        values |= {"picture": file_of(png_file(image.convert("RGB")), "image.png"), "mask": mask}
        return _parsed(InpaintRequest, values), size
    if model.kind not in DIFFUSION_KINDS:
        raise InputError("this model draws over a mask only; give one, or another model")
    values |= {"picture": picture, "strength": _EDIT_STRENGTH}
    if size is not None:
        values |= {"width": size[0], "height": size[1]}
    return _parsed(EditRequest, values), size


def _seen(picture: FileRef, model: ModelInfo) -> tuple[FileRef, tuple[int, int] | None]:
    """``picture`` as ``model`` is shown it, and the size of the answer where nobody asks for one.

    A model that draws codes reads a large picture window by window, while its client waits: it is given one
    that is no larger than those that it draws, and what it makes is enlarged to the size that was sent.
    """
    if model.kind in DIFFUSION_KINDS or model.width is None or model.height is None:
        return picture, None
    image = opened(picture.data)
    if image.width <= model.width and image.height <= model.height:
        return picture, None
    most = LARGEST / max(image.size)
    own = image.size if most >= 1.0 else (round(image.width * most) or 1, round(image.height * most) or 1)
    small = contained(image.convert("RGB"), (model.width, model.height), Image.Resampling.LANCZOS)
    return file_of(png_file(small), picture.name), own


def _painted(mask: Image.Image, image: Image.Image) -> FileRef:
    if mask.mode != "RGBA":
        raise InputError("the mask has no transparency; make what is to be drawn anew transparent")
    if mask.size != image.size:
        raise InputError("the mask has another size than the image; make them the same")
    found = _transparent(mask)
    if found is None:
        raise InputError("nothing of the mask is transparent, so nothing would be drawn anew")
    return found


def _transparent(image: Image.Image) -> FileRef | None:
    """White where ``image`` is transparent; None where it is not."""
    if image.mode != "RGBA":
        return None
    alpha = image.getchannel("A")
    if not any(alpha.histogram()[:255]):
        return None
    return file_of(png_file(ImageOps.invert(alpha)), "mask.png")
