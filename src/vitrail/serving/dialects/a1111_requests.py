"""AUTOMATIC1111's requests, and what each becomes here.

Source of fields, defaults and meaning: ``modules/api/models.py`` and ``modules/processing.py`` of
AUTOMATIC1111/stable-diffusion-webui. Fields that are not listed are taken and not used, as its clients expect
of a server that lacks an extension. A field that is null is as good as left out: clients made from the
interface's own document send every field that they know.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from PIL import Image, ImageFilter, ImageOps
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from vitrail.codes_schema import InpaintRequest
from vitrail.edit_schema import EditRequest
from vitrail.errors import InputError
from vitrail.images import contained
from vitrail.request_fields import FileRef
from vitrail.sampling_fields import SAMPLER_LABELS, SCHEDULE_LABELS
from vitrail.schema import TextToImageRequest
from vitrail.serving.dialects.common import Sized, opened, png_file, sized, sizes_of
from vitrail.serving.http_models import CHECKPOINT, DIFFUSION_KINDS, ModelInfo
from vitrail.serving.http_wire import file_of, picture_file
from vitrail.validation import parse

__all__ = [
    *("Enlarge", "Extra", "ExtraBatch", "Img2Img", "PngInfo", "Txt2Img"),
    *("drawn_over", "from_words", "left_out", "upscaler_of"),
]

MAX_TOGETHER = 64
"""Pictures of one request."""


def _cut(value: object) -> object:
    """A whole number of one that a script worked out, such as 0.75 * 85 pixels; A1111 cuts it as well."""
    return int(value) if isinstance(value, float) and math.isfinite(value) else value


Text = Annotated[str, Field(max_length=1 << 16)]
Whole = Annotated[int, BeforeValidator(_cut), Field(ge=-(2**53), le=2**53)]
Number = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
Content = Annotated[str, Field(max_length=96 << 20, description="Base64 or a data: URL; no address.")]


#: A grey square of 16 pixels as PNG, for examples.
_DOT = "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAAAAAA6mKC9AAAAEUlEQVR42mNsYEAFTAwjWgAAmZAAoFDIQrAAAAAASUVORK5CYII="


class _Body(BaseModel):
    model_config = ConfigDict(
        extra="ignore", allow_inf_nan=False, hide_input_in_errors=True, validate_by_name=True
    )

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, values: Any) -> Any:
        return _without_none(values) if isinstance(values, dict) else values


class Txt2Img(_Body):
    """``POST /sdapi/v1/txt2img``."""

    prompt: Text = Field(default="", examples=["a cat sitting in a garden"])
    negative_prompt: Text | None = ""
    styles: list[Text] | None = None
    seed: Whole = -1
    subseed: Whole = -1
    subseed_strength: Number = 0
    sampler_name: Text | None = None
    sampler_index: Text | Whole | None = None
    scheduler: Text | None = None
    batch_size: Whole = 1
    n_iter: Whole = 1
    steps: Whole = 50
    cfg_scale: Number = 7.0
    width: Whole = 512
    height: Whole = 512
    tiling: bool | None = False
    denoising_strength: Number | None = 0.75
    enable_hr: bool = False
    hr_scale: Number = 2.0
    hr_upscaler: Text | None = None
    hr_second_pass_steps: Whole = 0
    hr_resize_x: Whole = 0
    hr_resize_y: Whole = 0
    override_settings: dict[str, Any] | None = None
    send_images: bool = True
    save_images: bool = False
    force_task_id: Text | None = None
    script_name: Text | None = None
    alwayson_scripts: dict[str, Any] | None = None


class Img2Img(Txt2Img):
    """``POST /sdapi/v1/img2img``."""

    init_images: list[Content] | None = Field(default=None, examples=[[_DOT]])
    resize_mode: Whole = 0
    mask: Content | None = None
    mask_blur: Whole | None = 4
    inpainting_fill: Whole = 0
    inpaint_full_res: bool = True
    inpaint_full_res_padding: Whole = 0
    inpainting_mask_invert: Whole = 0
    include_init_images: bool = False


class PngInfo(_Body):
    """``POST /sdapi/v1/png-info``."""

    image: Content = Field(examples=[_DOT])


class Enlarge(_Body):
    """What ``POST /sdapi/v1/extra-*`` have in common."""

    resize_mode: Whole = 0
    upscaling_resize: Number = 2
    upscaling_resize_w: Whole = 512
    upscaling_resize_h: Whole = 512
    upscaling_crop: bool = True
    upscaler_1: Text = "None"


class Extra(Enlarge):
    """``POST /sdapi/v1/extra-single-image``."""

    image: Content = Field(default="", examples=[_DOT])


class FileData(_Body):
    """A picture of several; its name is not used."""

    data: Content


class ExtraBatch(Enlarge):
    """``POST /sdapi/v1/extra-batch-images``."""

    files: list[FileData] = Field(
        alias="imageList", max_length=MAX_TOGETHER, examples=[[{"data": _DOT, "name": "dot.png"}]]
    )


#: Spellings that A1111's clients use beside its labels.
_SAMPLERS = {
    "k_euler": "euler",
    "k_euler_a": "euler_ancestral",
    "k_euler_ancestral": "euler_ancestral",
    "k_heun": "heun",
    "k_dpmpp_2m": "dpmpp_2m",
    "k_dpmpp_2m_sde": "dpmpp_2m_sde",
    "k_dpmpp_sde": "dpmpp_sde",
}
_SCHEDULES = {"automatic": None, "": None, "uniform": "linspace", "normal": "linspace", "ddim": "leading"}
_PLAIN_UPSCALERS = ("none", "latent", "lanczos", "nearest")
_REALESRGAN = {"r-esrgan 4x+": "realesrgan-x4", "r-esrgan 4x+ anime6b": "realesrgan-x4-drawings"}


def from_words(body: Txt2Img, model: ModelInfo) -> tuple[TextToImageRequest, Sized]:
    """What ``txt2img`` asks for. Raises :class:`InputError` that repeats nothing of it."""
    larger, strength = 1.0, None
    more: dict[str, Any] = {}
    if body.enable_hr:
        larger = _hires(body)
        strength = body.denoising_strength if body.denoising_strength is not None else 0.75
    size = sized(model, body.width, body.height, larger=larger, strength=strength)
    if body.enable_hr and model.kind in DIFFUSION_KINDS:
        more["hires_upscaler"] = upscaler_of(body.hr_upscaler)
        more["hires_steps"] = (body.hr_second_pass_steps or None) if model.kind == CHECKPOINT else None
    if body.subseed_strength and model.kind in DIFFUSION_KINDS:
        more["subseed_strength"] = body.subseed_strength
        more["subseed"] = None if body.subseed < 0 else body.subseed
    if body.tiling and model.kind in DIFFUSION_KINDS:
        more["seamless"] = "xy"
    values = _common(body, model) | size.settings | more
    return parse(TextToImageRequest, _without_none(values), echo=False), size


def drawn_over(body: Img2Img, model: ModelInfo) -> tuple[EditRequest | InpaintRequest, Sized]:
    """What ``img2img`` asks for: to draw over a picture, or over what a mask covers."""
    if not body.init_images:
        raise InputError("init_images is empty; give one picture as base64")
    if len(body.init_images) > 1:
        raise InputError("init_images holds several pictures; give one at a time")
    sizes_of(body.width, body.height)
    size = (body.width, body.height)
    picture = picture_file(body.init_images[0], "init.png")
    values = _common(body, model) | {"model": model.name}
    strength = 0.75 if body.denoising_strength is None else body.denoising_strength
    fit = {0: "stretch", 1: "crop", 2: "pad", 3: "stretch"}.get(body.resize_mode)
    if fit is None:
        raise InputError("resize_mode is unknown; allowed are 0 (stretch), 1 (crop) and 2 (fill)")
    if body.mask is None:
        values |= {"picture": picture, "strength": strength, "width": size[0], "height": size[1], "fit": fit}
        if body.tiling:
            values["seamless"] = "xy"
        return parse(EditRequest, _without_none(values), echo=False), Sized({}, size)
    content = {0: "fill", 1: "original", 2: "noise", 3: "fill"}.get(body.inpainting_fill)
    if content is None:
        raise InputError("inpainting_fill is unknown; allowed are 0, 1, 2 and 3")
    values |= {
        "picture": _resized(opened(picture.data).convert("RGB"), size, body.resize_mode, "init.png"),
        "mask": _mask(body, size),
        "feather": 0,
    }
    if model.kind in DIFFUSION_KINDS:
        values |= {
            "strength": strength,
            "content": content,
            "only_masked": body.inpaint_full_res,
            "padding": max(0, body.inpaint_full_res_padding),
        }
    return parse(InpaintRequest, _without_none(values), echo=False), Sized({}, size)


def upscaler_of(name: str | None) -> str | None:
    """The model that A1111's name of an upscaler means; None for interpolation."""
    plain = (name or "").strip().lower()
    if not plain or plain.startswith(_PLAIN_UPSCALERS):
        return None
    return _REALESRGAN.get(plain, (name or "").strip())


def _common(body: Txt2Img, model: ModelInfo) -> dict[str, Any]:
    """Fields that every request has. Those that a kind of model knows nothing of are left out."""
    n = body.batch_size * body.n_iter
    if body.batch_size < 1 or body.n_iter < 1 or n > MAX_TOGETHER:
        raise InputError("batch_size times n_iter is out of range; allowed 1 to 64 pictures in all")
    if body.script_name and body.script_name.lower() != "none":
        raise InputError("scripts are not run here; leave script_name out")
    settings = body.override_settings or {}
    values: dict[str, Any] = {
        "prompt": body.prompt,
        "negative_prompt": body.negative_prompt or "",
        "style": next((style for style in body.styles or [] if style in model.styles), None),
        "n": n,
        "seed": None if body.seed < 0 else body.seed,
        "steps": body.steps,
        "cfg_scale": body.cfg_scale,
        "model": model.name,
    }
    sampler, schedule = _sampler(body)
    drawn_over = body.init_images[0] if isinstance(body, Img2Img) and body.init_images else None
    controls = _controls(body.alwayson_scripts or {}, drawn_over)
    if controls and model.kind != CHECKPOINT:
        raise InputError("ControlNet is for Stable Diffusion models; leave it out, or choose one")
    if model.kind in DIFFUSION_KINDS:
        values |= {"sampler": sampler, "schedule": schedule}
    elif model.kind != "token_transformer":  # one pass: nothing to set
        values = {name: value for name, value in values.items() if name not in _OF_SAMPLERS}
    if model.kind == CHECKPOINT:
        skip, vae = settings.get("CLIP_stop_at_last_layers"), settings.get("sd_vae")
        values |= {
            "clip_skip": skip if isinstance(skip, int) and skip > 1 else None,
            "vae": vae if isinstance(vae, str) and vae not in ("", "None", "Automatic") else None,
            "control": controls,
        }
    return values


_OF_SAMPLERS = ("steps", "cfg_scale", "negative_prompt")


def _sampler(body: Txt2Img) -> tuple[str | None, str | None]:
    """Names of sampler and schedule; ``DPM++ 2M Karras`` holds both."""
    label = (body.sampler_name or (body.sampler_index if isinstance(body.sampler_index, str) else "")).strip()
    known = {text.lower(): name for name, text in SAMPLER_LABELS.items()} | _SAMPLERS
    known |= {name: name for name in SAMPLER_LABELS}
    schedules: dict[str, str | None] = {text.lower(): name for name, text in SCHEDULE_LABELS.items()}
    schedules |= {name: name for name in SCHEDULE_LABELS} | _SCHEDULES
    wanted = (body.scheduler or "").strip().lower()
    if wanted not in schedules:
        raise InputError(f"scheduler is unknown; allowed are {', '.join(SCHEDULE_LABELS.values())}")
    schedule = schedules[wanted]
    sampler = known.get(label.lower())
    if label and sampler is None:
        for text, name in (("karras", "karras"), ("exponential", "exponential")):
            if label.lower().endswith(f" {text}"):
                sampler, schedule = known.get(label[: -len(text) - 1].lower()), schedule or name
    if label and sampler is None:
        raise InputError(f"sampler is unknown; allowed are {', '.join(SAMPLER_LABELS.values())}")
    return sampler, schedule


def _hires(body: Txt2Img) -> float:
    sides = [
        wanted / own
        for wanted, own in ((body.hr_resize_x, body.width), (body.hr_resize_y, body.height))
        if wanted > 0 and own > 0
    ]
    scale = max(sides) if sides else body.hr_scale
    if not 1.0 <= scale <= 4.0:
        raise InputError("hr_scale is out of range; allowed 1 to 4")
    return scale


def left_out(body: Txt2Img) -> list[str]:
    """Names of scripts that were to run beside the drawing and that nobody here knows."""
    scripts = (body.alwayson_scripts or {}).items()
    return [
        name[:80]
        for name, script in scripts
        if name.lower() != "controlnet" and isinstance(script, dict) and script.get("args")
    ]


def _controls(scripts: dict[str, Any], drawn_over: str | None) -> list[dict[str, Any]]:
    """ControlNet units of ``alwayson_scripts`` whose picture is a map already (module none).

    One without a picture takes that which is ``drawn_over``, as A1111's does.
    """
    found = []
    for name, script in scripts.items():
        if name.lower() != "controlnet" or not isinstance(script, dict):
            continue
        for unit in script.get("args") or []:
            if not isinstance(unit, dict) or not unit.get("enabled", True):
                continue
            if str(unit.get("module") or "none").lower() != "none":
                raise InputError("ControlNet's module must be none: send the map itself as the image")
            model = unit.get("model")
            if model is None or (isinstance(model, str) and model.lower() in ("", "none")):
                continue  # a place that nobody filled in
            image = unit.get("image") or unit.get("input_image")
            if isinstance(image, dict):
                image = image.get("image")
            elif isinstance(image, list):
                image = image[0] if image else None
            image = image or drawn_over
            if not isinstance(image, str) or not isinstance(model, str):
                raise InputError("a ControlNet unit needs an image as base64 and a model")
            control = {
                "name": model.partition(" [")[0],
                "picture": picture_file(image, "control.png"),
                "strength": unit.get("weight", 1.0),
                "start": unit.get("guidance_start", 0.0),
                "end": unit.get("guidance_end", unit.get("guidance", 1.0)),
            }
            found.append(control)
    return found


def _resized(picture: Image.Image, size: tuple[int, int], mode: int, name: str) -> FileRef:
    """``picture`` at ``size`` as A1111's resize_mode has it: 0 stretch, 1 crop, 2 fill."""
    if picture.size != size:
        if mode == 1:
            picture = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
        elif mode == 2:
            inside = contained(picture, size, Image.Resampling.LANCZOS)
            picture = ImageOps.pad(inside, size, Image.Resampling.LANCZOS)
        else:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
    return file_of(png_file(picture), name)


def _mask(body: Img2Img, size: tuple[int, int]) -> FileRef:
    """White is painted anew; of a mask with transparency, what is more than half opaque."""
    assert body.mask is not None
    given = opened(picture_file(body.mask, "mask.png").data)
    alpha = given.getchannel("A") if given.mode == "RGBA" else None
    if alpha is not None and any(alpha.histogram()[:255]):
        mask = alpha.point(lambda value: 255 if value > 128 else 0)
    else:
        mask = given.convert("L")
    if body.inpainting_mask_invert:
        mask = ImageOps.invert(mask)
    if body.mask_blur and body.mask_blur > 0:
        mask = mask.filter(ImageFilter.GaussianBlur(min(64, body.mask_blur)))
    return _resized(mask, size, body.resize_mode, "mask.png")


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
