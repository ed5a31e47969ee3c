"""A masked part of a picture painted anew by the prior, inside the picture or beyond its edges.

Codes whose patch has a masked pixel are forgotten and drawn again from those that stay (MaskGIT,
arXiv:2202.04200, section 4.3). What the mask leaves is put back from the picture itself, so pixels further
than the seam from the mask stay as they were, to the byte. Before the picture is encoded, the masked part is
filled with its surroundings' colours: the encoder sees beyond its patch, and what is to go must not speak.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vitrail.codes_schema import InpaintRequest
from vitrail.errors import InputError
from vitrail.images import MAX_PIXELS, to_pil, to_tensor
from vitrail.samplers.tokens import UNKNOWN
from vitrail.schema import Done, Event, PictureDone, Progress
from vitrail.store import artifacts
from vitrail.tasks.context import Context
from vitrail.tasks.loading import Loader
from vitrail.tasks.priors import draw_codes, load_prior, read_words
from vitrail.tasks.reconstruct import open_picture
from vitrail.tasks.records import record_of
from vitrail.tasks.tokenizers import decode_codes, encode_pixels, grid_of

__all__ = ["filled", "inpaint", "soft_edge"]


def inpaint(request: InpaintRequest, loader: Loader, context: Context) -> Iterator[Event]:
    """Paint; yields a :class:`PictureDone` for each picture, then :class:`Done`.

    A mask of another size but the same shape is resized, with a hint. Raises :class:`InputError` for a mask
    of another shape or without a white pixel, words, a style or a size that the model cannot serve;
    :class:`ArtifactError` for a model without a prior; :class:`DataError` for a damaged file.
    """
    started = time.monotonic()
    context.check()
    with context.timed("load"):
        prior = load_prior(loader, request.model)
    resolved = request.resolve(prior.defaults)
    resolved = resolved.model_copy(update={"model": artifacts.public_name(request.model, prior.name)})
    with torch.inference_mode(), context.timed("text"):
        words = read_words(prior, resolved.prompt, resolved.style)
    pixels, mask, hints = _canvas(request)
    hints = (*hints, *words.hints)
    height, width = mask.shape
    patch = prior.tokenizer.patch
    rows, columns = grid_of(prior.tokenizer, width, height)
    with context.timed("encode"):
        codes = encode_pixels(prior.tokenizer, filled(pixels, mask), context)
        wide = functional.pad(
            mask[None, None].float(), (0, columns * patch - width, 0, rows * patch - height)
        )
        unknown = functional.max_pool2d(wide, patch)[0, 0] > 0
        known = codes.masked_fill(unknown, UNKNOWN)
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
            painted = decode_codes(prior.tokenizer, drawn, context, (width, height))
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


def _canvas(request: InpaintRequest) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """The picture (3, H, W) with its margins, the mask (H, W), True where to paint, and hints."""
    picture = open_picture(request.picture)
    margins = request.expand
    hints: tuple[str, ...] = ()
    width = picture.width + margins.left + margins.right
    height = picture.height + margins.top + margins.bottom
    if width * height > MAX_PIXELS:
        raise InputError(
            f"a picture of {width}x{height} pixels is too large; allowed are {MAX_PIXELS} in all"
        )
    mask = torch.ones(height, width, dtype=torch.bool)
    inner = torch.zeros(picture.height, picture.width, dtype=torch.bool)
    if request.mask is not None:
        drawing = open_picture(request.mask).convert("L")
        if drawing.size != picture.size:
            ratio = drawing.width * picture.height / (drawing.height * picture.width)
            if not 0.98 < ratio < 1.02:
                raise InputError(
                    f"the mask has {drawing.width}x{drawing.height} pixels and the picture "
                    f"{picture.width}x{picture.height}; make the mask of the picture's shape"
                )
            hints = (f"the mask was resized from {drawing.width}x{drawing.height} to the picture's size",)
            drawing = drawing.resize(picture.size, Image.Resampling.BILINEAR)
        inner = torch.from_numpy(np.asarray(drawing) >= 128)
        if not bool(inner.any()) and not margins:
            raise InputError(
                "the mask has no white pixel, so there is nothing to paint; paint white what is to go"
            )
    mask[margins.top : margins.top + picture.height, margins.left : margins.left + picture.width] = inner
    sides = (margins.left, margins.right, margins.top, margins.bottom)
    pixels = functional.pad(to_tensor([picture]), sides, mode="replicate")[0]
    return pixels, mask, hints


def filled(pixels: Tensor, mask: Tensor) -> Tensor:
    """Return pixels (3, H, W) with those under ``mask`` (H, W) replaced by their surroundings' colours.

    Push and pull: averages of the known pixels over squares of doubling size fill what the smaller ones left.
    """
    if bool(mask.all()):
        return torch.zeros_like(pixels)
    keep = (~mask)[None, None].float()
    levels = [(pixels[None] * keep, keep)]
    while min(levels[-1][1].shape[2:]) > 1 or float(levels[-1][1].min()) == 0.0:
        value, weight = (functional.avg_pool2d(part, 2, ceil_mode=True) for part in levels[-1])
        levels.append((value, weight))
        if max(weight.shape[2:]) == 1:
            break
    value, weight = levels.pop()
    guess = value / weight.clamp_min(1e-12)
    for value, weight in reversed(levels):
        rough = functional.interpolate(guess, size=value.shape[2:], mode="bilinear", align_corners=False)
        guess = torch.where(weight > 0, value / weight.clamp_min(1e-12), rough)
    return torch.where(mask, guess[0], pixels)


def soft_edge(mask: Tensor, feather: int) -> Tensor:
    """Return weights (H, W): 1 under ``mask``, falling to 0 ``feather`` + 1 pixels from it (in squares)."""
    start = mask[None, None].float()
    total, grown = start, start
    for _ in range(feather):
        grown = functional.max_pool2d(grown, 3, stride=1, padding=1)
        total = total + grown
    weights = total[0, 0] / (feather + 1)
    return torch.where(mask, torch.ones_like(weights), weights)
