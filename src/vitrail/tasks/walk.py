"""Walks and arithmetic in the latents of a tokenizer, between pictures or what a prior draws for words.

The latents of a stop are those of its codes, so the picture at a stop is its reconstruction; between stops
they are points of no code, which the decoder, a continuous function, turns into in-between pictures.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from PIL import Image, ImageOps
from torch import Tensor

from vitrail.codes_schema import ResolvedWalk, WalkRequest, WalkStop
from vitrail.errors import InputError
from vitrail.images import to_pil, to_tensor
from vitrail.samplers.tokens import UNKNOWN
from vitrail.schema import Done, Event, PictureDone, Progress
from vitrail.store import artifacts
from vitrail.tasks import gan_generation
from vitrail.tasks.context import Context
from vitrail.tasks.loading import Loader
from vitrail.tasks.priors import PriorModel, draw_codes, load_prior, read_words
from vitrail.tasks.reconstruct import open_picture
from vitrail.tasks.records import record_of
from vitrail.tasks.tokenizers import TokenizerModel, decode_latents, encode_pixels, load_tokenizer

__all__ = ["between", "places", "walk"]


def walk(request: WalkRequest, loader: Loader, context: Context) -> Iterator[Event]:
    """Make the pictures of a walk, or the one of a sum; yields each, then :class:`Done`.

    Pictures are cut and resized to the first one's size, or to the prior's own size where words are among
    the stops. Raises :class:`ArtifactError` for words and a model without a prior, :class:`InputError` for
    words that it cannot read, :class:`DataError` for a damaged picture. GANs walk in their own latents.
    """
    if loader.kind(request.model) in gan_generation.KINDS:
        yield from gan_generation.gan_walk(request, loader, context)
        return
    started = time.monotonic()
    context.check()
    with context.timed("load"):
        tokenizer = load_tokenizer(loader, request.model)
        drawn = any(stop.picture is None for stop in request.stops)
        prior = load_prior(loader, request.model) if drawn else None
    name, sha256 = (tokenizer.name, tokenizer.sha256) if prior is None else (prior.name, prior.sha256)
    resolved = request.resolve()
    resolved = resolved.model_copy(update={"model": artifacts.public_name(request.model, name)})
    with context.timed("encode"), torch.inference_mode():
        stops, size = _stops(resolved, tokenizer, prior, context)
    legs = [*stops, stops[0]] if resolved.loop and resolved.weights is None else stops
    for index in range(resolved.n):
        with context.timed("decode"), torch.inference_mode():
            if resolved.weights is not None:
                latent = torch.stack(
                    [stop * weight for stop, weight in zip(stops, resolved.weights, strict=True)]
                ).sum(0)
            else:
                leg, share = places(len(legs), resolved.frames, resolved.loop)[index]
                latent = between(legs[leg], legs[leg + 1], share, resolved.curve)
            picture = to_pil(decode_latents(tokenizer, latent, context, size))[0]
        context.report(Progress(step=index + 1, steps=resolved.n))
        record = record_of(resolved, index, context, model_name=name, model_sha256=sha256)
        yield PictureDone(index=index, record=record, picture=picture)
    yield Done(seconds=time.monotonic() - started)


def places(stops: int, frames: int, loop: bool) -> list[tuple[int, float]]:
    """For each frame, which leg of a walk past ``stops`` places it is on, and how far along, 0 to 1.

    A loop, whose last stop is its first, does not show that twice.
    """
    found = []
    for frame in range(frames):
        way = frame * (stops - 1) / (frames if loop else frames - 1)
        leg = min(int(way), stops - 2)
        found.append((leg, way - leg))
    return found


def between(first: Tensor, second: Tensor, share: float, curve: str) -> Tensor:
    """Return latents (C, rows, columns) at ``share`` of the way from ``first`` to ``second``.

    ``slerp`` turns each place's vector on an arc and changes its length evenly (Shoemake, 1985, for unit
    vectors); vectors of opposite or equal direction are joined by a straight line.
    """
    if curve == "linear":
        return torch.lerp(first, second, share)
    lengths = first.norm(dim=0), second.norm(dim=0)
    one, two = (part / length.clamp_min(1e-12) for part, length in zip((first, second), lengths, strict=True))
    angle = (one * two).sum(0).clamp(-1.0, 1.0).acos()
    sine = angle.sin()
    arc = (((1 - share) * angle).sin() * one + (share * angle).sin() * two) / sine.clamp_min(1e-6)
    turned = arc * torch.lerp(lengths[0], lengths[1], share)
    return torch.where(sine > 1e-3, turned, torch.lerp(first, second, share))


def _stops(
    request: ResolvedWalk, tokenizer: TokenizerModel, prior: PriorModel | None, context: Context
) -> tuple[list[Tensor], tuple[int, int]]:
    """The latents (C, rows, columns) of every stop, and the size in pixels of the pictures."""
    pictures = [None if stop.picture is None else open_picture(stop.picture) for stop in request.stops]
    if prior is not None:
        config = prior.model.network.config
        size = (config.columns * tokenizer.patch, config.rows * tokenizer.patch)
    else:
        size = next(picture.size for picture in pictures if picture is not None)
    found: list[Tensor] = []
    for stop, picture in zip(request.stops, pictures, strict=True):
        if picture is not None:
            if picture.size != size:
                picture = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
            codes = encode_pixels(tokenizer, to_tensor([picture])[0], context)
        else:
            assert prior is not None
            codes = _drawn(stop, request.style, prior, context)
        found.append(tokenizer.network.lookup(codes[None].to(context.device))[0].cpu())
    return found, size


def _drawn(stop: WalkStop, style: str | None, prior: PriorModel, context: Context) -> Tensor:
    config = prior.model.network.config
    if stop.seed is None:
        raise InputError("a stop of words needs a seed")
    known = torch.full((config.rows, config.columns), UNKNOWN)
    words = read_words(prior, stop.prompt, style)
    return draw_codes(
        prior,
        known,
        words,
        stop.seed,
        context,
        steps=prior.defaults.steps,
        cfg_scale=prior.defaults.cfg_scale,
        temperature=prior.defaults.temperature,
        guided=bool(stop.prompt),
    )
