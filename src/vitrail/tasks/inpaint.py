"""A masked part of a picture painted anew by the prior, inside the picture or beyond its edges.

Codes whose patch has a masked pixel are forgotten and drawn again from those that stay (MaskGIT,
arXiv:2202.04200, section 4.3). What the mask leaves is put back from the picture itself, so pixels further
than the seam from the mask stay as they were, to the byte. Before the picture is encoded, the masked part is
filled with its surroundings' colours: the encoder sees beyond its patch, and what is to go must not speak.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from vitrail.codes_schema import InpaintRequest
from vitrail.diffusion_fields import GuidanceFields
from vitrail.errors import InputError
from vitrail.files import shown
from vitrail.images import MAX_PIXELS, to_pil, to_tensor
from vitrail.picture_headers import megapixels
from vitrail.samplers.tokens import UNKNOWN
from vitrail.schema import Done, Event, PictureDone, Progress
from vitrail.store import artifacts
from vitrail.tasks.additions import public_names, refuse_additions
from vitrail.tasks.context import Context
from vitrail.tasks.diffusion import check_sampling
from vitrail.tasks.image_to_image import Drawing, draw_over
from vitrail.tasks.loading import Loader
from vitrail.tasks.masks import filled, read_mask
from vitrail.tasks.opening import draws_pixels, open_diffusion
from vitrail.tasks.pixel_model import PixelModel
from vitrail.tasks.priors import draw_codes, load_prior, read_words, room, shrunk_hint
from vitrail.tasks.reconstruct import open_picture
from vitrail.tasks.records import record_of
from vitrail.tasks.tokenizers import decode_codes, encode_pixels, grid_of

__all__ = ["inpaint", "soft_edge"]

#: Settings of a request that a model of codes has no use for.
_FOR_DIFFUSION = (
    *GuidanceFields.model_fields,
    "negative_prompt",
    "strength",
    "content",
    "repeats",
    "only_masked",
)


def inpaint(request: InpaintRequest, loader: Loader, context: Context) -> Iterator[Event]:
    """Paint; yields a :class:`PictureDone` for each picture, then :class:`Done`.

    A mask of another size but the same shape is resized, with a hint. Raises :class:`InputError` for a mask
    of another shape or without a white pixel, words, a style or a size that the model cannot serve;
    :class:`ArtifactError` for a model without a prior; :class:`DataError` for a damaged file.
    """
    started = time.monotonic()
    context.check()
    if draws_pixels(loader, request.model):
        yield from _from_noise(request, loader, context, started)
        return
    refuse_additions(request, f"model {shown(request.model, 80)}, which draws codes", _FOR_DIFFUSION)
    with context.timed("load"):
        prior = load_prior(loader, request.model)
    resolved = request.resolve(prior.defaults)
    resolved = resolved.model_copy(update={"model": artifacts.public_name(request.model, prior.name)})
    with torch.inference_mode(), context.timed("text"):
        words = read_words(prior, resolved.prompt, resolved.style)
    pixels, soft, hints = _canvas(request)
    mask = soft >= 0.5
    height, width = mask.shape
    patch = prior.tokenizer.patch

    def masked(width: int, height: int) -> Tensor:
        small = functional.adaptive_max_pool2d(mask[None, None].float(), (height, width))
        rows, columns = grid_of(prior.tokenizer, width, height)
        wide = functional.pad(small, (0, columns * patch - width, 0, rows * patch - height))
        return functional.max_pool2d(wide, patch)[0, 0] > 0

    size = room(prior, masked, (width, height))
    hints = (*hints, *shrunk_hint(prior, size, (width, height)), *words.hints)
    with context.timed("encode"):
        ground = _scaled(filled(pixels, mask), size)
        known = encode_pixels(prior.tokenizer, ground, context).masked_fill(masked(*size), UNKNOWN)
    alpha = soft_edge(mask, resolved.feather)
    for index in range(resolved.n):

        def report(step: int, total: int, done: int = index) -> None:
            context.report(Progress(step=done * total + step, steps=resolved.n * total))

        with context.timed("denoise"):
            drawn = draw_codes(
                prior,
                known,
                words,
                resolved.seed + index,
                context,
                steps=resolved.steps,
                cfg_scale=resolved.cfg_scale,
                temperature=resolved.temperature,
                guided=bool(resolved.prompt),
                report=report,
            )
        with context.timed("decode"):
            painted = _scaled(decode_codes(prior.tokenizer, drawn, context, size), (width, height))
        record = record_of(
            resolved,
            index,
            context,
            model_name=prior.name,
            model_sha256=prior.sha256,
            understood_as=words.understood_as,
            hints=hints,
        )
        # torch.lerp is exact at both ends: known pixels come back as they were.
        yield PictureDone(index=index, record=record, picture=to_pil(torch.lerp(pixels, painted, alpha))[0])
    yield Done(seconds=time.monotonic() - started, hints=hints)


def _scaled(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """``pixels`` (3, H, W) in [-1, 1] at ``size`` (width, height)."""
    if (pixels.shape[2], pixels.shape[1]) == size:
        return pixels
    scaled = functional.interpolate(pixels[None], size[::-1], mode="bicubic", antialias=True)
    return scaled[0].clamp(-1.0, 1.0)


def _from_noise(request: InpaintRequest, loader: Loader, context: Context, started: float) -> Iterator[Event]:
    """Paint with a diffusion model; see :mod:`vitrail.tasks.image_to_image`."""
    with context.timed("load"):
        model = open_diffusion(loader, request, context)
    check_sampling(request, model.name, model.path)
    if request.temperature not in (None, 1.0):
        raise InputError(f"temperature is not for model {model.name}, which draws pixels; leave it out")
    # One that was not trained to inpaint hears too little of what is known; small ones can afford to repeat.
    repeats = request.repeats or (4 if isinstance(model, PixelModel) else 1)
    resolved = public_names(request.resolve(model.defaults), request.model, model.name)
    resolved = resolved.model_copy(update={"repeats": repeats})
    pixels, mask, hints = _canvas(request)
    drawing = Drawing(
        picture=pixels,
        mask=mask,
        strength=request.strength,
        content=request.content,
        area=request.only_masked,
        padding=request.padding,
        feather=request.feather,
        repeats=repeats,
        hints=hints,
        controls=request.control,
    )
    yield from draw_over(resolved, model, drawing, context, started)


def _canvas(request: InpaintRequest) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """The picture (3, H, W) with its margins, the mask (H, W) in [0, 1], 1 where to paint, and hints."""
    picture = open_picture(request.picture)
    margins = request.expand
    hints: tuple[str, ...] = ()
    width = picture.width + margins.left + margins.right
    height = picture.height + margins.top + margins.bottom
    if width * height > MAX_PIXELS:
        raise InputError(
            f"a picture of {width}x{height} pixels ({megapixels(width * height)}) is too large; "
            f"allowed are {megapixels(MAX_PIXELS)}"
        )
    mask = torch.ones(height, width)
    inner = torch.zeros(picture.height, picture.width)
    if request.mask is not None:
        inner, hints = read_mask(request.mask, picture.size)
        if not bool((inner >= 0.5).any()) and not margins:
            raise InputError(
                "the mask has no white pixel, so there is nothing to paint; paint white what is to go"
            )
    mask[margins.top : margins.top + picture.height, margins.left : margins.left + picture.width] = inner
    sides = (margins.left, margins.right, margins.top, margins.bottom)
    pixels = functional.pad(to_tensor([picture]), sides, mode="replicate")[0]
    return pixels, mask, hints


def soft_edge(mask: Tensor, feather: int) -> Tensor:
    """Return weights (H, W): 1 under ``mask``, falling to 0 ``feather`` + 1 pixels from it (in squares)."""
    start = mask[None, None].float()
    total, grown = start, start
    for _ in range(feather):
        grown = functional.max_pool2d(grown, 3, stride=1, padding=1)
        total = total + grown
    weights = total[0, 0] / (feather + 1)
    return torch.where(mask, torch.ones_like(weights), weights)
