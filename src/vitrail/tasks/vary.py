"""Other versions of a picture: a part of its codes is forgotten and drawn again by the prior."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vitrail.codes_schema import VaryRequest
from vitrail.edit_schema import EditRequest
from vitrail.errors import InputError
from vitrail.images import to_pil, to_tensor
from vitrail.provenance.metadata import read
from vitrail.runtime import cpu_generator
from vitrail.samplers.tokens import UNKNOWN
from vitrail.schema import (
    Done,
    Event,
    PictureDone,
    Progress,
    ResolvedTextToImage,
    TextToImageRequest,
    new_seed,
    parse,
)
from vitrail.store import artifacts
from vitrail.tasks.context import Context
from vitrail.tasks.image_to_image import edit
from vitrail.tasks.loading import Loader
from vitrail.tasks.opening import draws_pixels
from vitrail.tasks.priors import draw_codes, load_prior, read_words, room, shrunk_hint
from vitrail.tasks.reconstruct import open_picture
from vitrail.tasks.records import record_of
from vitrail.tasks.text_to_image import text_to_image
from vitrail.tasks.tokenizers import decode_codes, encode_pixels, grid_of

__all__ = ["forgotten", "vary"]


def vary(request: VaryRequest, loader: Loader, context: Context) -> Iterator[Event]:
    """Make the variations; yields a :class:`PictureDone` for each, then :class:`Done`.

    Raises :class:`ArtifactError` for a model without a prior, :class:`InputError` for words, a style or a
    size that it cannot serve, :class:`DataError` for a damaged picture.
    """
    started = time.monotonic()
    context.check()
    if draws_pixels(loader, request.model):
        yield from _from_noise(request, loader, context)
        return
    with context.timed("load"):
        prior = load_prior(loader, request.model)
    resolved = request.resolve(prior.defaults)
    resolved = resolved.model_copy(update={"model": artifacts.public_name(request.model, prior.name)})
    with torch.inference_mode(), context.timed("text"):
        words = read_words(prior, resolved.prompt, resolved.style)
    picture = open_picture(request.picture)
    whole = picture.size

    def all_codes(width: int, height: int) -> Tensor:
        return torch.ones(grid_of(prior.tokenizer, width, height), dtype=torch.bool)

    if resolved.amount > 0.0:
        picture = _at(picture, room(prior, all_codes, whole))
    hints = (*shrunk_hint(prior, picture.size, whole), *words.hints)
    with context.timed("encode"):
        codes = encode_pixels(prior.tokenizer, to_tensor([picture])[0], context)
    for index in range(resolved.n):
        seed = resolved.seed + index
        known = codes.masked_fill(forgotten(codes.shape, resolved.amount, seed), UNKNOWN)

        def report(step: int, total: int, done: int = index) -> None:
            context.report(Progress(step=done * total + step, steps=resolved.n * total))

        with context.timed("denoise"):
            drawn = draw_codes(
                prior,
                known,
                words,
                seed,
                context,
                steps=resolved.steps,
                cfg_scale=resolved.cfg_scale,
                temperature=resolved.temperature,
                guided=bool(resolved.prompt),
                report=report,
            )
        with context.timed("decode"):
            pixels = decode_codes(prior.tokenizer, drawn, context, picture.size)
        record = record_of(
            resolved,
            index,
            context,
            model_name=prior.name,
            model_sha256=prior.sha256,
            understood_as=words.understood_as,
            hints=hints,
        )
        yield PictureDone(index=index, record=record, picture=_at(to_pil(pixels)[0], whole))
    yield Done(seconds=time.monotonic() - started, hints=hints)


def _at(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def _from_noise(request: VaryRequest, loader: Loader, context: Context) -> Iterator[Event]:
    """Vary with a diffusion model.

    A picture that carries the record of its making is made again with its noise turned towards that of other
    seeds; any other one is drawn over, at the strength ``amount``.
    """
    asked = {name: getattr(request, name) for name in ("prompt", "style", "steps", "cfg_scale")}
    given: dict[str, object] = {name: value for name, value in asked.items() if value not in (None, "")}
    if request.temperature not in (None, 1.0):
        raise InputError("temperature is not for a model that draws pixels; leave it out")
    record = read(request.picture.data).record if request.picture.data else None
    if record is not None and _by_diffusion(record.request):
        fields = record.again().model_dump() | given
        fields |= {"model": request.model, "n": request.n, "subseed_strength": request.amount}
        fields["subseed"] = new_seed() if request.seed is None else request.seed
        yield from text_to_image(parse(TextToImageRequest, fields), loader, context)
        return
    given |= {"picture": request.picture, "strength": request.amount, "n": request.n}
    given |= {"model": request.model, "seed": request.seed}
    yield from edit(parse(EditRequest, given), loader, context)


def _by_diffusion(made: object) -> bool:
    """Whether what a record holds was asked of a diffusion model, in words."""
    return isinstance(made, ResolvedTextToImage) and made.sampler not in ("maskgit", "autoregressive")


def forgotten(shape: tuple[int, ...] | torch.Size, amount: float, seed: int) -> Tensor:
    """Which codes (rows, columns) are forgotten: a share ``amount`` of them, rounded, in patches.

    Patches and not single codes, because the neighbours of a single code leave it little choice: the highest
    values of a smooth random field, drawn from ``seed``.
    """
    rows, columns = shape[:2]
    generator = cpu_generator(seed)
    coarse = torch.randn(1, 1, (rows + 3) // 4 + 1, (columns + 3) // 4 + 1, generator=generator)
    fine = torch.randn(rows, columns, generator=generator)
    field = functional.interpolate(coarse, size=(rows, columns), mode="bilinear", align_corners=True)[0, 0]
    order = (2.0 * field + 0.5 * fine).flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(rows * columns, dtype=torch.bool)
    mask[order[: round(amount * rows * columns)]] = True
    return mask.view(rows, columns)
