"""A photograph with what a mask covers drawn anew; every pixel that the mask leaves stays as it was.

MI-GAN does it alone, in seconds. With a Stable Diffusion it is inpainting of the masked area without words
(:mod:`vitrail.tasks.inpaint`).
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from vitrail.backends import migan
from vitrail.backends.hole_filling import fill_holes
from vitrail.codes_schema import InpaintRequest
from vitrail.errors import InputError
from vitrail.photo_schema import RepairRequest
from vitrail.request_fields import FileRef
from vitrail.schema import Done, Event, PictureDone, Progress, parse
from vitrail.store import artifacts
from vitrail.tasks.context import Context
from vitrail.tasks.inpaint import inpaint
from vitrail.tasks.loading import STABLE_DIFFUSION, Loader
from vitrail.tasks.masks import read_mask
from vitrail.tasks.photos import check_fetched, find_model, open_photo
from vitrail.tasks.records import record_of

__all__ = ["repair"]

_PADDING = 64
"""Pixels around the mask that a Stable Diffusion is shown with it."""


def repair(request: RepairRequest, loader: Loader, context: Context) -> Iterator[Event]:
    """Fill what the mask covers; yields one :class:`PictureDone`, then :class:`Done`.

    White of the mask is drawn anew, black stays to the byte, grey is a mixture of old and new. Transparency
    of the photograph is kept. Raises :class:`InputError` for a mask of another shape, one without a white
    pixel or without a black one; :class:`ArtifactError` for a model that is not there or of another kind;
    :class:`DataError` for a damaged file.
    """
    started = time.monotonic()
    context.check()
    photo = open_photo(request.picture, keep_alpha=True)
    weight, hints = _weights(request.mask, photo.size, request.grow)
    check_fetched(request.model)
    if loader.kind(request.model) == STABLE_DIFFUSION:
        yield from inpaint(_inpainting(request, weight), loader, context)
        return
    with context.timed("load"):
        folder = find_model(request.model)
        network, artifact = loader.kept(
            ("migan", folder.resolve(), str(context.device)), lambda: migan.load(folder, context.device)
        )
    pixels = np.asarray(photo)

    def progress(done: int, total: int) -> None:
        context.check()
        if done:
            context.report(Progress(step=done, steps=total))

    with context.timed("decode"):
        filled = fill_holes(network, np.ascontiguousarray(pixels[:, :, :3]), weight > 0, progress=progress)
    result = pixels.copy()
    share = weight[:, :, None] / np.float32(255)
    mixed = np.rint(filled * share + pixels[:, :, :3] * (1 - share))
    result[:, :, :3] = np.where(weight[:, :, None] > 0, mixed, pixels[:, :, :3]).astype(np.uint8)
    resolved = request.model_copy(update={"model": artifacts.public_name(request.model, artifact.name)})
    record = record_of(
        resolved, 0, context, model_name=artifact.name, model_sha256=artifact.sha256, hints=hints
    )
    yield PictureDone(index=0, record=record, picture=Image.fromarray(result))
    yield Done(seconds=time.monotonic() - started, hints=hints)


def _weights(file: FileRef, size: tuple[int, int], grow: int) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Return the mask (H, W), 255 where the picture of ``size`` (width, height) is drawn anew, and hints.

    ``grow`` widens what is not black by so many pixels, as white. Raises as :func:`repair`.
    """
    soft, hints = read_mask(file, size)
    mask = soft.mul(255).round().to(torch.uint8).numpy()
    if not mask.any():
        raise InputError("the mask is all black, so there is nothing to repair; paint white what is to go")
    if grow:
        wide = torch.from_numpy((mask > 0).astype(np.float32))[None, None]
        for step in [64] * (grow // 64) + [grow % 64]:
            wide = functional.max_pool2d(wide, 2 * step + 1, stride=1, padding=step) if step else wide
        mask = np.where(wide[0, 0].numpy() > 0, np.uint8(255), mask)
    if (mask > 0).all():
        raise InputError("the mask leaves no pixel of the picture to go by; leave some of it black")
    return mask, hints


def _inpainting(request: RepairRequest, weight: NDArray[np.uint8]) -> InpaintRequest:
    """The same wish for a model that inpaints: the masked area alone, at the model's full size."""
    mask = request.mask
    if request.grow:
        data = io.BytesIO()
        Image.fromarray(weight).save(data, "PNG")
        mask = FileRef.of(mask.name, data.getvalue())
    settings = {"picture": request.picture, "mask": mask, "model": request.model}
    return parse(InpaintRequest, settings | {"only_masked": True, "padding": _PADDING})
