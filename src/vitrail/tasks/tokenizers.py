"""A tokenizer at work on pictures of any size: padding, tiles, and codes in and out.

A picture is padded at its right and lower edge to a multiple of the tokenizer's patch by repeating its last
pixels. Up to :data:`WHOLE` pixels it goes through the network in one piece; a larger one in tiles that see
:data:`MARGIN` codes beyond their edge, so that memory does not grow with the picture. Decoded tiles overlap
by twice that and fade into each other. All of it is float32: codes must not depend on a machine's taste.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vitrail.errors import ArtifactError, DataError, NonFiniteError
from vitrail.models.autoencoders import VQAutoencoder
from vitrail.store import artifacts
from vitrail.tasks.context import Context
from vitrail.tasks.loading import Loader, open_network

__all__ = [
    "TokenizerModel",
    "check_codes",
    "decode_codes",
    "decode_latents",
    "encode_pixels",
    "grid_of",
    "load_tokenizer",
]

WHOLE = 768 * 768
"""Most pixels that go through the network at once."""

TILE = 512
"""Side in pixels of a tile without its margin, rounded down to whole codes."""

MARGIN = 8
"""Codes beyond its edge that a tile sees."""


@dataclass(frozen=True)
class TokenizerModel:
    """A tokenizer on a device. ``name`` and ``sha256`` are of its own folder, not of a prior's around it."""

    name: str
    sha256: str
    network: VQAutoencoder

    @property
    def patch(self) -> int:
        """Pixels a side of one code."""
        return self.network.latent.downsample

    @property
    def codes(self) -> int:
        """Different codes at a place."""
        return self.network.codebook_size

    @property
    def stages(self) -> int:
        """Codes at a place; more than 1 only for residual quantizers."""
        return self.network.quantize.stages

    def usage(self) -> NDArray[np.int64]:
        """How often each code was used in training: whole numbers (stages, K); 1 everywhere if unknown.

        A twentieth is spread over all codes, so that a picture of another kind is not punished without limit.
        Elementwise float64 arithmetic on stored numbers, so equal on every machine.
        """
        shares = self.network.quantize.usage.detach().cpu().double().numpy().reshape(self.stages, -1)
        shares = np.where(np.isfinite(shares) & (shares > 0), shares, 0.0)
        counts = np.rint(np.minimum(shares, 1.0) * (1 << 28)).astype(np.int64)
        total = counts.sum(axis=1, keepdims=True)
        return np.where(total > 0, counts + total // (20 * self.codes), 1)


#: The last tokenizer of each loader, with what tells whether its folder has changed.
_LOADED: WeakKeyDictionary[Loader, tuple[tuple[Path, int], TokenizerModel]] = WeakKeyDictionary()


def load_tokenizer(loader: Loader, name: str) -> TokenizerModel:
    """Return the tokenizer of the model called ``name``: a tokenizer's folder, or a prior's with one inside.

    Raises :class:`ArtifactError` for a model that is not there, damaged, or without a tokenizer.
    """
    folder = artifacts.find(name)
    if (folder / "tokenizer" / artifacts.MANIFEST_NAME).is_file():
        folder = folder / "tokenizer"
    key = artifacts.stamp(folder)
    kept = _LOADED.get(loader)
    if kept is not None and kept[0] == key:
        return kept[1]
    manifest = artifacts.read_manifest(folder, verify=False)
    if manifest.kind != "vq_autoencoder":
        raise ArtifactError(
            f"model {manifest.name} is of kind {manifest.kind} and has no codes; "
            "give a vq_autoencoder, or a prior with one in its folder tokenizer/"
        )
    artifact = artifacts.load(folder)
    network = open_network(artifact)
    assert isinstance(network, VQAutoencoder)
    model = TokenizerModel(artifact.name, artifact.sha256, network.to(loader.device))
    _LOADED[loader] = (key, model)
    return model


def grid_of(tokenizer: TokenizerModel, width: int, height: int) -> tuple[int, int]:
    """Rows and columns of codes of a picture of ``width`` x ``height`` pixels."""
    return math.ceil(height / tokenizer.patch), math.ceil(width / tokenizer.patch)


def encode_pixels(tokenizer: TokenizerModel, pixels: Tensor, context: Context) -> Tensor:
    """Return the codes (rows, columns[, stages]) int64, on the CPU, of pixels (3, H, W) in [-1, 1].

    Raises :class:`NonFiniteError` for pixels that are no numbers.
    """
    patch = tokenizer.patch
    height, width = pixels.shape[1:]
    rows, columns = grid_of(tokenizer, width, height)
    padding = (0, columns * patch - width, 0, rows * patch - height)
    if not bool(torch.isfinite(pixels).all()):
        raise NonFiniteError("the picture holds NaN or infinite values; it cannot be encoded")
    whole = functional.pad(pixels[None], padding, mode="replicate") if any(padding) else pixels[None]
    stages = () if tokenizer.stages == 1 else (tokenizer.stages,)
    codes = torch.empty((rows, columns, *stages), dtype=torch.int64)
    for tile in _tiles(tokenizer, rows, columns):
        context.check()
        seen = whole[:, :, tile.top * patch : tile.bottom * patch, tile.left * patch : tile.right * patch]
        with torch.inference_mode():
            part = tokenizer.network.encode(seen.to(context.device)).codes[0].cpu()
        inner = part[tile.row - tile.top : tile.last_row - tile.top]
        codes[tile.row : tile.last_row, tile.column : tile.last_column] = inner[
            :, tile.column - tile.left : tile.last_column - tile.left
        ]
    return codes


def decode_codes(
    tokenizer: TokenizerModel, codes: Tensor, context: Context, size: tuple[int, int] | None = None
) -> Tensor:
    """Return the picture (3, H, W) in [-1, 1], on the CPU, of codes (rows, columns[, stages]).

    ``size``: (width, height) in pixels that it is cut to. Raises :class:`DataError` for codes that the
    tokenizer does not have.
    """
    check_codes(tokenizer, codes)
    return decode_latents(tokenizer, codes, context, size)


def decode_latents(
    tokenizer: TokenizerModel, latents: Tensor, context: Context, size: tuple[int, int] | None = None
) -> Tensor:
    """Return the picture (3, H, W) of codes (rows, columns[, stages]) or of latents (C, rows, columns).

    Floating-point ``latents`` are decoded as they are; see :func:`decode_codes`.
    """
    patch, continuous = tokenizer.patch, latents.is_floating_point()
    rows, columns = (latents.shape[1:] if continuous else latents.shape)[:2]
    tiles = list(_tiles(tokenizer, rows, columns))
    total = torch.zeros(3, rows * patch, columns * patch)
    weight = torch.zeros(rows * patch, columns * patch)
    for tile in tiles:
        context.check()
        box = (slice(tile.top, tile.bottom), slice(tile.left, tile.right))
        with torch.inference_mode():
            if continuous:
                part = tokenizer.network.decode(latents[None, :, *box].to(context.device))
            else:
                part = tokenizer.network.decode_codes(latents[None, *box].to(context.device))
        pixels = part[0].float().cpu().clamp(-1.0, 1.0)
        pixels = pixels if len(pixels) == 3 else pixels[:1].expand(3, -1, -1)
        place = (
            slice(tile.top * patch, tile.bottom * patch),
            slice(tile.left * patch, tile.right * patch),
        )
        if len(tiles) == 1:
            total, weight = pixels, torch.ones_like(weight)
            break
        fade = _fade(tile.top, tile.bottom, rows, patch)[:, None] * _fade(
            tile.left, tile.right, columns, patch
        )
        total[:, *place] += pixels * fade
        weight[place] += fade
    picture = total / weight
    if not bool(torch.isfinite(picture).all()):
        raise NonFiniteError("the tokenizer gave no finite picture; try float32 precision")
    return picture if size is None else picture[:, : size[1], : size[0]]


def check_codes(tokenizer: TokenizerModel, codes: Tensor) -> None:
    """Raise :class:`DataError` unless ``codes`` (rows, columns[, stages]) are codes of ``tokenizer``."""
    wanted = 2 if tokenizer.stages == 1 else 3
    if codes.ndim != wanted or (wanted == 3 and codes.shape[2] != tokenizer.stages):
        raise DataError(
            f"codes of shape {tuple(codes.shape)} are not those of {tokenizer.name}, which has "
            f"{tokenizer.stages} at a place"
        )
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= tokenizer.codes:
        raise DataError(
            f"codes from {low} to {high} do not fit {tokenizer.name}, which has 0 to {tokenizer.codes - 1}"
        )


class _Tile(NamedTuple):
    """In codes: the part that a tile answers for, and the larger part that it sees."""

    row: int
    last_row: int
    column: int
    last_column: int
    top: int
    bottom: int
    left: int
    right: int


def _tiles(tokenizer: TokenizerModel, rows: int, columns: int) -> Iterator[_Tile]:
    if rows * columns * tokenizer.patch**2 <= WHOLE:
        yield _Tile(0, rows, 0, columns, 0, rows, 0, columns)
        return
    side = max(1, TILE // tokenizer.patch)
    for row in range(0, rows, side):
        for column in range(0, columns, side):
            last_row, last_column = min(row + side, rows), min(column + side, columns)
            yield _Tile(
                row,
                last_row,
                column,
                last_column,
                max(row - MARGIN, 0),
                min(last_row + MARGIN, rows),
                max(column - MARGIN, 0),
                min(last_column + MARGIN, columns),
            )


def _fade(start: int, end: int, count: int, patch: int) -> Tensor:
    """Weights (pixels,) of a tile from code ``start`` to ``end``: rising over the overlap, 1 between."""
    weights = torch.ones((end - start) * patch)
    overlap = min(2 * MARGIN * patch, len(weights))
    ramp = (torch.arange(overlap) + 0.5) / overlap
    if start > 0:
        weights[:overlap] *= ramp
    if end < count:
        weights[-overlap:] *= ramp.flip(0)
    return weights
