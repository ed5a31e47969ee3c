"""Pictures drawn over: image to image, inpainting and outpainting with any diffusion model.

A picture is brought to the canvas, encoded, noised as far as the strength says and denoised with the
request's words. With a mask, each place changes by its own strength (:mod:`vitrail.tasks.masks`), and what
the mask leaves is the picture itself, to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from vitrail.backends.model import Conditioning, Control, DiffusionModel, KnownPicture
from vitrail.codes_schema import ResolvedInpaint
from vitrail.edit_schema import EditRequest, Fit, ResolvedEdit
from vitrail.errors import InputError
from vitrail.images import contained, to_pil, to_tensor
from vitrail.models.latent import Posterior
from vitrail.runtime import Precision
from vitrail.samplers.denoisers import Denoiser
from vitrail.schema import Done, Event
from vitrail.tasks.additions import controls_of, public_names
from vitrail.tasks.canvas import Canvas, canvas_around, working_size
from vitrail.tasks.context import Context
from vitrail.tasks.diffusion import (
    Draws,
    Sampling,
    check_sampling,
    denoise,
    first_state,
    noise_levels,
    precision_of,
    steps_taken,
)
from vitrail.tasks.loading import Loader
from vitrail.tasks.masks import blended, box_around, filled, held, read_mask, release_levels
from vitrail.tasks.opening import open_diffusion
from vitrail.tasks.pictures import Order, Piece, batch_size, drawn, pieces_of, told
from vitrail.tasks.progress import StepCounter
from vitrail.tasks.reconstruct import open_picture

__all__ = ["Drawing", "draw_over", "edit"]

Content = Literal["original", "fill", "noise"]


def edit(request: EditRequest, loader: Loader, context: Context) -> Iterator[Event]:
    """Draw over a picture; yields a :class:`PictureDone` for each result, then :class:`Done`.

    The result has the picture's size, or that of ``width`` and ``height``; a picture much larger than what
    the model draws comes back at the model's size, with a hint, unless it is drawn in tiles or has a mask.
    Raises what :func:`~vitrail.tasks.text_to_image.text_to_image` raises, and
    :class:`~vitrail.errors.DataError` for a damaged picture.
    """
    started = time.monotonic()
    context.check()
    with context.timed("load"):
        model = open_diffusion(loader, request, context)
    check_sampling(request, model.name, model.path)
    resolved = public_names(request.resolve(model.defaults), request.model, model.name)
    picture = open_picture(request.picture)
    mask: Tensor | None = None
    hints: tuple[str, ...] = ()
    if request.mask is not None:
        mask, hints = read_mask(request.mask, picture.size)
        if not bool(mask.any()):
            raise InputError("the mask is black everywhere, so nothing may change; paint white what may")
    if request.width is not None or request.height is not None:
        size = _size(picture.size, request.width, request.height)
        picture, mask = fitted(picture, mask, size, request.fit)
    drawing = Drawing(
        picture=to_tensor([picture])[0],
        mask=mask,
        strength=request.strength,
        tile=request.tile,
        seamless=request.seamless,
        hints=hints,
        controls=request.control,
    )
    yield from draw_over(resolved, model, drawing, context, started)


@dataclass(frozen=True)
class Drawing:
    """What is drawn over, and how.

    picture: (3, H, W) in [-1, 1]. mask: (H, W) in [0, 1], None for everything. content: what lies under the
    mask at the start. area: work on the masked area alone, with ``padding`` pixels around it. feather: see
    :func:`~vitrail.tasks.masks.blended`. repeats: see :func:`vitrail.tasks.diffusion.denoise`.
    """

    picture: Tensor
    mask: Tensor | None
    strength: float
    content: Content = "original"
    area: bool = False
    padding: int = 32
    feather: int = 4
    repeats: int = 1
    tile: bool = False
    seamless: Literal["none", "x", "y", "xy"] = "none"
    hints: tuple[str, ...] = ()
    controls: tuple[Any, ...] = field(default=())


@dataclass(frozen=True)
class _Stage:
    """The part of the picture that is worked on, as it lies on the canvas.

    pixels: (1, 3, height, width) of the canvas. mask: (height, width), None for everything. known: what the
    state may be held to, (1, C, rows, columns). box: where it comes from in the picture. inner: (width,
    height) in pixels of what is no padding.
    """

    canvas: Canvas
    pixels: Tensor
    mask: Tensor | None
    box: tuple[int, int, int, int]
    inner: tuple[int, int]


def draw_over(
    resolved: ResolvedEdit | ResolvedInpaint,
    model: DiffusionModel,
    drawing: Drawing,
    context: Context,
    started: float,
) -> Iterator[Event]:
    """Make the pictures of a request that begins with one; see :func:`edit`."""
    settings = _sampling(resolved)
    stage = _stage(model, drawing, context)
    hints = list(drawing.hints)
    shrunk = stage.inner[0] < stage.box[2] - stage.box[0]
    if shrunk and not drawing.area:
        advice = "--tile keeps its size" if drawing.mask is None else "--only-masked keeps its detail"
        hints.append(
            f"the picture was worked on at {stage.inner[0]}x{stage.inner[1]}, the model's size; {advice}"
        )
    with torch.inference_mode():
        with context.timed("text"):
            conditioning = model.read(resolved.prompt, resolved.negative_prompt, resolved.style)
        hints.extend(conditioning.hints)
        progress = StepCounter(steps_taken(settings.steps, drawing.strength) * resolved.n, context)
        order = Order(resolved, context, progress, model, conditioning.understood_as, tuple(hints))
        job = _Job(settings, model, stage, drawing, conditioning, context)

        def finish(state: Tensor, precision: Precision) -> list[Image.Image]:
            painted = stage.canvas.decode(state, precision, context.check).cpu()
            return [to_pil(_put_back(one, drawing, stage))[0] for one in painted]

        made = drawn(
            pieces_of(order), batch_size(context), precision_of(context), partial(_drawn, job), finish
        )
        for _, event in made:
            yield event
    yield Done(seconds=time.monotonic() - started, hints=tuple(hints))


@dataclass(frozen=True)
class _Job:
    """What the batches of a request share."""

    settings: Sampling
    model: DiffusionModel
    stage: _Stage
    drawing: Drawing
    conditioning: Conditioning
    context: Context


def _drawn(job: _Job, pieces: Sequence[Piece], precision: Precision) -> Tensor:
    """Return the states of ``pieces``.

    Noise is drawn as diffusers' pipelines draw it from the same generator: for the encoded picture, for the
    start, for the masked picture of a model that was trained to inpaint, then by the sampler.
    """
    model, stage, drawing, context = job.model, job.stage, job.drawing, job.context
    canvas, settings, device = stage.canvas, job.settings, job.context.device
    draws = Draws([piece.seed for piece in pieces], canvas.shape)
    whole = drawing.strength == 1.0
    mask = None if stage.mask is None else stage.mask.to(device)
    trained = model.needs_known and mask is not None
    base = stage.pixels.to(device)
    if mask is not None and drawing.content == "fill":
        base = filled(base[0], mask > 0)[None]
    known = None if trained and whole else _encoded(canvas, base, draws)
    noise = draws.first(device)
    levels = noise_levels(settings, model.path)
    sigmas = noise_levels(settings, model.path, drawing.strength)
    if len(sigmas) < 2:
        assert known is not None
        return known
    begin = float(sigmas[0])
    fresh = first_state(settings, model.path, noise, begin)
    start = fresh if known is None else model.path.noised(known, noise, begin)
    release: Tensor | None = None
    if mask is not None:
        release = release_levels(
            mask, (canvas.rows, canvas.columns), levels, settings.steps, drawing.strength
        )
        if (whole or drawing.content == "noise") and known is not None:
            start = torch.where(release >= begin * (1.0 - 1e-5), fresh, start)
    shown = canvas.nothing_known(device)
    if trained:
        assert mask is not None
        shown = _shown_to_the_network(canvas, stage, mask, draws)
        assert release is not None
        # The network is told what is known; only grey places are held besides.
        release = None if known is None else release.where(release >= 0, release.new_full((), begin))
    bound = canvas.bind(
        job.conditioning,
        precision,
        context.check,
        known=shown,
        controls=_controls(job),
    )

    def wrap(inner: Denoiser) -> Denoiser:
        if release is None or known is None:
            return inner
        return held(inner, known, release, (begin, fresh) if whole else None)

    look = canvas.glance if getattr(settings, "fast", False) else canvas.look
    with canvas.seams_closed():
        return denoise(
            model,
            bound,
            start,
            sigmas,
            settings,
            noise=draws,
            context=context,
            told=told(pieces, look),
            wrap=wrap,
            repeats=drawing.repeats,
        )


def _encoded(canvas: Canvas, pixels: Tensor, draws: Draws) -> Tensor:
    """Return the state of a picture (1, 3, H, W), once for each generator: a Gaussian's draws."""
    latent = canvas.encoded(pixels)
    if not isinstance(latent, Posterior):
        return latent.z.float().expand(len(draws), -1, -1, -1)
    return torch.cat([latent.sample(generator).float() for generator in draws.generators])


def _shown_to_the_network(canvas: Canvas, stage: _Stage, mask: Tensor, draws: Draws) -> KnownPicture:
    hard = mask >= 0.5 if bool((mask >= 0.5).any()) else mask > 0
    grey = stage.pixels.to(mask.device) * (~hard)
    small = functional.adaptive_max_pool2d(hard[None, None].float(), (canvas.rows, canvas.columns))
    return KnownPicture(small.expand(len(draws), -1, -1, -1), _encoded(canvas, grey, draws))


def _controls(job: _Job) -> list[Control]:
    """The request's ControlNets with the part of their pictures that lies on the canvas."""
    stage, (height, width) = job.stage, job.drawing.picture.shape[1:]
    left, top, right, bottom = stage.box
    margin = (0, stage.canvas.width - stage.inner[0], 0, stage.canvas.height - stage.inner[1])
    found = []
    for control in controls_of(job.drawing.controls, (width, height), job.context.device):
        part = control.picture[:, :, top:bottom, left:right]
        if stage.inner != (right - left, bottom - top):
            part = _resized(part, stage.inner).clamp(0.0, 1.0)
        found.append(replace(control, picture=functional.pad(part, margin, mode="replicate")))
    return found


def _stage(model: DiffusionModel, drawing: Drawing, context: Context) -> _Stage:
    """Bring the picture, or the masked area of it, to a canvas that the model can draw."""
    height, width = drawing.picture.shape[1:]
    box = (0, 0, width, height)
    if drawing.area and drawing.mask is not None:
        box = box_around(drawing.mask, drawing.padding)
        box = _grown(box, (width, height), (model.defaults.width, model.defaults.height))
    left, top, right, bottom = box
    part = drawing.picture[None, :, top:bottom, left:right]
    mask = None if drawing.mask is None else drawing.mask[top:bottom, left:right]
    inner = working_size(model, right - left, bottom - top, tile=drawing.tile, area=drawing.area)
    if inner != (right - left, bottom - top):
        part = _resized(part, inner)
        mask = None if mask is None else _resized_mask(mask, inner)
    canvas = canvas_around(model, *inner, tile=drawing.tile, seamless=drawing.seamless)
    margin = (0, canvas.width - inner[0], 0, canvas.height - inner[1])
    if any(margin):
        part = functional.pad(part, margin, mode="replicate")
        mask = None if mask is None else functional.pad(mask, margin)
    return _Stage(canvas, part.clamp(-1.0, 1.0), mask, box, inner)


def _put_back(painted: Tensor, drawing: Drawing, stage: _Stage) -> Tensor:
    """Return the finished picture (3, H, W) from what was painted on the canvas."""
    width, height = stage.inner
    painted = painted[:, :height, :width].clamp(-1.0, 1.0)
    left, top, right, bottom = stage.box
    size = (right - left, bottom - top)
    if drawing.mask is None:
        return painted if size[0] >= width else _resized(painted[None], size)[0]
    if size != stage.inner:
        painted = _resized(painted[None], size)[0].clamp(-1.0, 1.0)
    area = drawing.picture[:, top:bottom, left:right]
    result = drawing.picture.clone()
    result[:, top:bottom, left:right] = blended(
        area, painted, drawing.mask[top:bottom, left:right], drawing.feather
    )
    return result


def _grown(
    box: tuple[int, int, int, int], size: tuple[int, int], shape: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return ``box`` grown to the shape (width, height) as far as the picture's ``size`` allows."""
    left, top, right, bottom = box
    ratio = shape[0] / shape[1]
    wide, high = right - left, bottom - top
    wide, high = max(wide, round(high * ratio)), max(high, round(wide / ratio))
    spans = []
    for first, last, wanted, limit in ((left, right, wide, size[0]), (top, bottom, high, size[1])):
        wanted = min(wanted, limit)
        begin = min(max(0, first - (wanted - (last - first)) // 2), limit - wanted)
        spans.append((begin, begin + wanted))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return pictures (B, 3, H, W) at ``size`` (width, height)."""
    return functional.interpolate(
        pixels, size=(size[1], size[0]), mode="bicubic", antialias=True, align_corners=False
    )


def _resized_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """As :func:`_resized` for a mask; a thin line of it must not vanish."""
    wide, high = size
    if wide <= mask.shape[1] and high <= mask.shape[0]:
        return functional.adaptive_max_pool2d(mask[None, None], (high, wide))[0, 0]
    return functional.interpolate(mask[None, None], size=(high, wide), mode="nearest")[0, 0]


def _size(own: tuple[int, int], width: int | None, height: int | None) -> tuple[int, int]:
    """The size that is asked for, the missing side in proportion."""
    if width is None:
        assert height is not None
        return max(16, round(own[0] * height / own[1])), height
    return width, max(16, round(own[1] * width / own[0])) if height is None else height


def fitted(
    picture: Image.Image, mask: Tensor | None, size: tuple[int, int], fit: Fit
) -> tuple[Image.Image, Tensor | None]:
    """Bring a picture and its mask to ``size`` (width, height): cut, padded with its edge, or stretched."""
    drawing = None if mask is None else to_pil(mask[None] * 2.0 - 1.0)[0].convert("L")

    def brought(image: Image.Image, method: Image.Resampling) -> Image.Image:
        if fit == "crop":
            return ImageOps.fit(image, size, method)
        if fit == "stretch":
            return image.resize(size, method)
        inside = contained(image, size, method)
        place = ((size[0] - inside.width) // 2, (size[1] - inside.height) // 2)
        pixels = torch.from_numpy(np.asarray(inside).copy()).float()
        pixels = pixels[None, None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)[None]
        right, bottom = size[0] - inside.width - place[0], size[1] - inside.height - place[1]
        padded = functional.pad(pixels, (place[0], right, place[1], bottom), mode="replicate")[0]
        array = padded.permute(1, 2, 0).squeeze(-1).to(torch.uint8).numpy()
        return Image.fromarray(np.ascontiguousarray(array))

    picture = brought(picture, Image.Resampling.LANCZOS)
    if drawing is None:
        return picture, None
    grey = np.asarray(brought(drawing, Image.Resampling.BILINEAR), dtype=np.float32) / 255.0
    return picture, torch.from_numpy(grey)


def _sampling(resolved: ResolvedEdit | ResolvedInpaint) -> Sampling:
    """The sampler's settings of a resolved request, none of them open."""
    for name in ("cfg_rescale", "guidance_interval", "sampler", "schedule", "shift"):
        assert getattr(resolved, name) is not None, name
    return cast(Sampling, resolved)
