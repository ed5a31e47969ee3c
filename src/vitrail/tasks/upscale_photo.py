"""A photograph two or four times larger, with the detail that such things have; transparency is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter

from vitrail.backends import realesrgan
from vitrail.errors import InputError
from vitrail.photo_schema import UpscaleRequest
from vitrail.schema import Done, Event, PictureDone
from vitrail.store import artifacts, model_folders
from vitrail.tasks.context import Context
from vitrail.tasks.loading import Loader
from vitrail.tasks.photos import check_fetched, find_model, open_photo
from vitrail.tasks.progress import StepCounter
from vitrail.tasks.records import record_of

__all__ = ["upscale"]

_NETWORK_BYTES_A_PIXEL = 16 * 64 * 4 * 3
"""Memory of a tile at its widest: three times 64 channels in float32 at four times the size."""


def upscale(request: UpscaleRequest, loader: Loader, context: Context) -> Iterator[Event]:
    """Enlarge the picture tile by tile; yields one :class:`PictureDone`, then :class:`Done`.

    Raises :class:`InputError` for a result that does not fit into memory; :class:`ArtifactError` for a model
    that is not there or of another kind; :class:`DataError` for a damaged file.
    """
    started = time.monotonic()
    context.check()
    photo = open_photo(request.picture, keep_alpha=True)
    _check_memory(photo, request)
    fidelity = _fidelity(request)
    with context.timed("load"):
        upscaler = _upscaler(request.model, loader, context)
    counter: StepCounter | None = None

    def progress(done: int, total: int) -> None:
        nonlocal counter
        context.check()
        counter = counter or StepCounter(total, context)
        if done:
            counter.step(1, done, total)

    pixels = np.asarray(photo)
    with context.timed("decode"):
        colours = realesrgan.enlarge(
            upscaler.network,
            _opaque(pixels) if photo.mode == "RGBA" else pixels,
            scale=request.scale,
            tile=request.tile,
            fidelity=fidelity,
            progress=progress,
        )
    result = Image.fromarray(colours)
    if photo.mode == "RGBA":
        result.putalpha(_enlarged_alpha(photo.getchannel("A"), result.size))
    settled = {"model": artifacts.public_name(request.model, upscaler.name), "fidelity": fidelity}
    resolved = request.model_copy(update=settled)
    record = record_of(resolved, 0, context, model_name=upscaler.name, model_sha256=upscaler.sha256)
    yield PictureDone(index=0, record=record, picture=result)
    yield Done(seconds=time.monotonic() - started)


def _upscaler(name: str, loader: Loader, context: Context) -> realesrgan.Upscaler:
    """The model of that name: vitrail's own, or a file in the folders of other programs or at a path."""
    place: Path | None = None
    if name not in artifacts.available():
        check_fetched(name)
        path = Path(name)
        if path.is_file():
            place = path
        elif not path.is_dir():
            items = model_folders.listing("upscaler")
            if any(name.casefold() in (item.name.casefold(), item.short.casefold()) for item in items):
                place = model_folders.find("upscaler", name)
    if place is not None:
        file = place
        key = ("rrdb", file.resolve(), file.stat().st_mtime_ns, str(context.device))
        return loader.kept(key, lambda: realesrgan.load_file(file, context.device))
    folder = find_model(name)
    return loader.kept(
        ("rrdb", folder.resolve(), str(context.device)), lambda: realesrgan.load(folder, context.device)
    )


def _fidelity(request: UpscaleRequest) -> float:
    """As asked, else 0 for four times the size: what the network was trained for, and the published result.

    At twice the size half of what it drew is averaged away; there the picture itself says more than it does.
    """
    if request.fidelity is not None:
        return request.fidelity
    return 0.0 if request.scale == 4 else 0.5


def _opaque(pixels: realesrgan.Pixels) -> realesrgan.Pixels:
    """Colours (H, W, 3) of a picture (H, W, 4), where nothing is seen those of the nearest seen pixels."""
    from vitrail.backends.hole_filling import spread

    seen = torch.from_numpy(pixels[:, :, 3] > 0)[None, None].float()
    colours = torch.from_numpy(pixels[:, :, :3].copy()).permute(2, 0, 1)[None].float()
    if not bool(seen.any()):
        return np.ascontiguousarray(pixels[:, :, :3])
    filled = spread(colours, seen).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(filled[0].permute(1, 2, 0).numpy())


def _enlarged_alpha(alpha: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Enlarge by a plain filter (a network would invent texture), without the ripples beside edges that sharp
    filters make: no pixel leaves the range of the nine around its place.
    """
    nearest = Image.Resampling.NEAREST
    low = alpha.filter(ImageFilter.MinFilter(3)).resize(size, nearest)
    high = alpha.filter(ImageFilter.MaxFilter(3)).resize(size, nearest)
    smooth = alpha.resize(size, Image.Resampling.LANCZOS)
    return ImageChops.darker(ImageChops.lighter(smooth, low), high)


def _check_memory(photo: Image.Image, request: UpscaleRequest) -> None:
    """Refuse what cannot fit, before any work; nothing is known of it outside Linux."""
    free = _free_bytes()
    side = min(request.tile, max(photo.size))
    pixels = photo.width * photo.height * request.scale**2
    needed = pixels * len(photo.getbands()) * 2 + side * side * _NETWORK_BYTES_A_PIXEL
    if free is not None and needed > free:
        raise InputError(
            f"a picture of {request.scale * photo.width}x{request.scale * photo.height} needs about "
            f"{needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; use --scale 2, a smaller "
            "--tile or a smaller picture"
        )


def _free_bytes() -> int | None:
    """What the system says is available, in bytes; None where it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass  # another system: torch says when memory runs out
    return None
