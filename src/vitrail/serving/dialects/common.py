"""What the dialects share: a size that any model can serve, and pictures as their clients want them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps
from starlette.concurrency import run_in_threadpool

from vitrail.errors import InputError, VitrailError
from vitrail.images import open_image
from vitrail.provenance.metadata import PictureFormat, encode
from vitrail.request_fields import Model
from vitrail.serving.http_models import CHECKPOINT, DIFFUSION_KINDS, ModelInfo, Shelf
from vitrail.serving.http_stream import Streams
from vitrail.serving.http_wire import MAX_PIXELS
from vitrail.serving.jobs import Job, JobEngine, JobPicture
from vitrail.store.gallery import Gallery

__all__ = ["LARGEST", "JobFailedError", "Kitchen", "Sized", "opened", "png_file", "sized", "sizes_of"]

LARGEST, SMALLEST = 4096, 16
MOST_HIRES = 4.0
_STEP = 8  # sides of Stable Diffusion's pictures are multiples of it


class JobFailedError(VitrailError):
    """The job ended without pictures."""


@dataclass(frozen=True)
class Sized:
    """How a picture of a wanted size is asked of a model.

    settings: fields of the request. size: (width, height) that the client is to get, for what the model
    cannot draw itself is enlarged or framed afterwards.
    """

    settings: dict[str, Any]
    size: tuple[int, int]


def sizes_of(width: int, height: int) -> None:
    """Raise :class:`InputError` for a size that is not served."""
    if not (SMALLEST <= width <= LARGEST and SMALLEST <= height <= LARGEST):
        raise InputError(f"width and height are out of range; allowed {SMALLEST} to {LARGEST}")


def sized(
    model: ModelInfo, width: int, height: int, *, larger: float = 1.0, strength: float | None = None
) -> Sized:
    """Return how a picture of ``width`` x ``height`` pixels, made ``larger``, is asked of ``model``.

    ``strength``: how much a second pass of Stable Diffusion may change of what is enlarged; None where there
    is none to be. Stable Diffusion draws what it is asked for. A model that draws pixels, as the shipped one
    with its 128 a side, is enlarged by its own upsampler, up to four times, and has no second pass: that
    would draw dozens of tiles, each as long as a picture, and add nothing that it knows.
    """
    sizes_of(width, height)
    size = round(width * larger), round(height * larger)
    sizes_of(*size)
    if model.kind == CHECKPOINT:
        settings: dict[str, Any] = {"width": _stepped(width), "height": _stepped(height)}
        if strength is not None and larger > 1.0:
            settings |= {"hires_scale": min(MOST_HIRES, larger), "hires_strength": strength}
        return Sized(settings, size)
    if model.kind not in DIFFUSION_KINDS or model.width is None:
        return Sized({}, size)
    own, short = model.width, min(width, height)
    least = own
    while least > max(short, 32):  # the sizes below its own that it draws as well
        least //= 2
    if width == height:
        settings = {"width": least, "height": least}
    else:
        share = least / short
        settings = {"width": _cells(width * share), "height": _cells(height * share), "tile": True}
    scale = min(MOST_HIRES, short * larger / least)
    if scale > 1.0:
        settings |= {"hires_scale": scale, "hires_strength": 0.0}
    return Sized(settings, size)


def _stepped(side: int) -> int:
    return max(64, round(side / _STEP) * _STEP)


def _cells(side: float) -> int:
    return max(32, round(side / 4) * 4)


@dataclass
class Kitchen:
    """Takes a request through the queue and brings its pictures back; for clients that wait."""

    engine: JobEngine
    gallery: Gallery
    shelf: Shelf
    streams: Streams

    async def submit(self, request: Model, *, key: str | None = None) -> Job:
        """Accept ``request``, whose names are looked up first."""

        def accept() -> Job:
            self.shelf.check(request)
            return self.engine.submit(request, key=key)

        return await run_in_threadpool(accept)

    async def done(self, job: Job) -> Job:
        """Wait for the job's end; :class:`JobFailedError` if it failed, a cancelled one is returned."""
        ended = await self.streams.wait(job.id)
        if ended.state == "failed":
            message = ended.error.message if ended.error else "the picture could not be made"
            if ended.error is not None and ended.error.code in ("InputError", "DataError", "ArtifactError"):
                raise InputError(message)
            raise JobFailedError(message)
        return ended

    async def files(
        self,
        pictures: tuple[JobPicture, ...],
        size: tuple[int, int] | None,
        format: PictureFormat = "png",
        quality: int = 95,
    ) -> list[bytes]:
        """The files of ``pictures`` at ``size`` (None for their own), in their order."""

        def read() -> list[bytes]:
            return [
                self._file(picture.id, size, format, quality)
                for picture in sorted(pictures, key=lambda one: one.index)
            ]

        return await run_in_threadpool(read)

    def _file(self, id: str, size: tuple[int, int] | None, format: PictureFormat, quality: int) -> bytes:
        picture, data = self.gallery.get(id), self.gallery.open(id)
        same = size is None or size == (picture.width, picture.height)
        if same and picture.suffix == {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}[format]:
            return data
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP"]) as image:
            image.load()
            made = image if size is None or same else _framed(image, size)
            return encode(made, format, picture.record, quality=quality)


def _framed(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """``picture`` at ``size``: scaled, and where the shape is another one, framed in its corner's colour."""
    picture = picture.convert("RGB")
    if abs(picture.width * size[1] - picture.height * size[0]) <= max(size) * 2:
        return picture.resize(size, Image.Resampling.LANCZOS)
    corner = picture.getpixel((0, 0))
    assert isinstance(corner, tuple)
    return ImageOps.pad(picture, size, Image.Resampling.LANCZOS, color=corner)


def opened(data: bytes) -> Image.Image:
    """Decode a picture that a client sent, upright, with transparency where it has some."""
    return open_image(data, MAX_PIXELS, keep_alpha=True)


def png_file(picture: Image.Image) -> str:
    """``picture`` as base64 of a PNG."""
    target = io.BytesIO()
    picture.save(target, "PNG")
    return base64.b64encode(target.getvalue()).decode()
