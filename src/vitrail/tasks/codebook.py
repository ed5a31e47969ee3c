"""What each code of a tokenizer draws, and how often it is used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vitrail.errors import InputError
from vitrail.images import grid, to_pil, to_tensor
from vitrail.tasks.context import Context
from vitrail.tasks.loading import Loader
from vitrail.tasks.tokenizers import encode_pixels, load_tokenizer

__all__ = ["Codebook", "CodebookSheet", "codebook_sheet", "read_codebook"]

#: Codes a side of the patch that is decoded for each code: the middle is free of the picture's edge.
SIDE = 4
_TILE = 72  # pixels a side of a code on the sheet, wide enough for its label


@dataclass(frozen=True)
class Codebook:
    """Codes of a tokenizer, the most used first, with the figures of the whole codebook.

    ``order``: their numbers; ``shares``: the use of each, of 1; ``tiles``: what each draws, squares of 72
    pixels; ``used``: codes that occur at all; ``perplexity``: how many equally used codes would be as varied;
    ``source``: what the use was counted on.
    """

    order: list[int]
    shares: list[float]
    tiles: list[Image.Image]
    codes: int
    used: int
    perplexity: float
    source: str


@dataclass(frozen=True)
class CodebookSheet:
    """A contact sheet of codes, the most used first; figures as in :class:`Codebook`."""

    sheet: Image.Image
    shown: int
    codes: int
    used: int
    perplexity: float
    source: str


def codebook_sheet(
    model: str,
    loader: Loader,
    context: Context,
    *,
    count: int = 256,
    pictures: Iterable[Image.Image] | None = None,
) -> CodebookSheet:
    """Lay out what :func:`read_codebook` returns on a sheet, with each code's number and use below it."""
    found = read_codebook(model, loader, context, count=count, pictures=pictures)
    labels = [f"{code}  {100 * share:.2g}%" for code, share in zip(found.order, found.shares, strict=True)]
    # White codes are common, and must show.
    sheet = grid(found.tiles, labels=labels, background=(168, 168, 168))
    return CodebookSheet(sheet, len(found.tiles), found.codes, found.used, found.perplexity, found.source)


def read_codebook(
    model: str,
    loader: Loader,
    context: Context,
    *,
    count: int = 256,
    pictures: Iterable[Image.Image] | None = None,
) -> Codebook:
    """Draw the ``count`` most used codes of a tokenizer (all of its first stage, if there are fewer).

    A code's drawing is a patch of that code alone. Use is counted on ``pictures``; without any it is the
    moving average that training left in the model. Raises :class:`InputError` for a count below 1 or for no
    pictures at all, :class:`ArtifactError` for a model without a tokenizer.
    """
    if count < 1:
        raise InputError(f"count {count} is out of range; allowed are 1 and more")
    tokenizer = load_tokenizer(loader, model)
    if pictures is None:
        shares = tokenizer.network.quantize.usage.detach().cpu().double().numpy()[: tokenizer.codes]
        source = "training"
    else:
        shares, number = np.zeros(tokenizer.codes), 0
        for picture in pictures:
            context.check()
            codes = encode_pixels(tokenizer, to_tensor([picture])[0], context)
            first = codes if codes.ndim == 2 else codes[..., 0]
            shares += np.bincount(first.flatten().numpy(), minlength=tokenizer.codes)
            number += 1
        if not number:
            raise InputError("there is no picture to count codes on; give a folder with pictures")
        source = f"{number} pictures"
    total = float(shares.sum())
    shares = shares / total if total > 0 else shares
    order = np.argsort(-shares, kind="stable")[:count]
    tiles = _tiles(model, order, loader, context)
    positive = shares[shares > 0]
    perplexity = float(np.exp(-(positive * np.log(positive)).sum())) if len(positive) else 0.0
    # Moving averages never reach zero: below 1 % of an equal share a code counts as unused.
    floor = 0.01 / tokenizer.codes if pictures is None else 0.0
    used = int((shares > floor).sum())
    return Codebook(order.tolist(), shares[order].tolist(), tiles, tokenizer.codes, used, perplexity, source)


def _tiles(model: str, order: NDArray[np.int64], loader: Loader, context: Context) -> list[Image.Image]:
    tokenizer = load_tokenizer(loader, model)
    found: list[Image.Image] = []
    for start in range(0, len(order), 64):
        context.check()
        codes = torch.from_numpy(order[start : start + 64].copy())[:, None, None].expand(-1, SIDE, SIDE)
        if tokenizer.stages > 1:  # the first stage's drawing, with the others' first code
            rest = torch.zeros(*codes.shape, tokenizer.stages - 1, dtype=codes.dtype)
            codes = torch.cat([codes[..., None], rest], dim=-1)
        with torch.inference_mode():
            pixels = tokenizer.network.decode_codes(codes.to(context.device)).cpu()
        pixels = pixels if pixels.shape[1] == 3 else pixels[:, :1].expand(-1, 3, -1, -1)
        found += [picture.resize((_TILE, _TILE), Image.Resampling.NEAREST) for picture in to_pil(pixels)]
    return found
