"""DiffAugment: what a discriminator sees goes through random changes that a gradient can pass.

Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training", arXiv:2006.10738, section 3.2:
the changes are applied to real and generated pictures alike, in both players' steps, so the discriminator
cannot learn its few pictures by heart and the generator does not learn the changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["CHANGES", "diff_augment", "draw_augmentation"]

#: Pictures -> changed pictures of the same shape; a fixed, differentiable function.
Augmentation: TypeAlias = Callable[[Tensor], Tensor]

TRANSLATION = 0.125  #: largest move, as a share of the side
CUTOUT = 0.5  #: side of the square set to 0, as a share of the side


def draw_augmentation(
    changes: Sequence[str],
    count: int,
    side: tuple[int, int],
    generator: torch.Generator,
    device: torch.device,
) -> Augmentation:
    """Draw the changes of ``count`` pictures of (height, width) ``side``; the returned function may be
    applied to any batch of that count, so that a picture and its reconstruction get the same change.

    ``changes``: any of :data:`CHANGES`, applied in the order colour, translation, cutout.
    """
    steps = [make(count, side, generator, device) for name, make in CHANGES.items() if name in changes]

    def apply(pictures: Tensor) -> Tensor:
        for step in steps:
            pictures = step(pictures)
        return pictures

    return apply


def diff_augment(pictures: Tensor, changes: Sequence[str], generator: torch.Generator) -> Tensor:
    """Change pictures (B, C, H, W) at random, each by itself; differentiable."""
    height, width = pictures.shape[2:]
    return draw_augmentation(changes, len(pictures), (height, width), generator, pictures.device)(pictures)


def _rand(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.rand((count, 1, 1, 1), generator=generator, device=generator.device).to(device)


def _colour(
    count: int, side: tuple[int, int], generator: torch.Generator, device: torch.device
) -> Augmentation:
    """Brightness + U(-0.5, 0.5), saturation x U(0, 2), contrast x U(0.5, 1.5), as in the paper's code."""
    brightness = _rand(count, generator, device) - 0.5
    saturation = _rand(count, generator, device) * 2.0
    contrast = _rand(count, generator, device) + 0.5

    def apply(x: Tensor) -> Tensor:
        x = x + brightness
        grey = x.mean(dim=1, keepdim=True)
        x = (x - grey) * saturation + grey
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        return (x - mean) * contrast + mean

    return apply


def _translation(
    count: int, side: tuple[int, int], generator: torch.Generator, device: torch.device
) -> Augmentation:
    """Moved by whole pixels, up to an eighth of each side; what comes in is 0."""
    reach = [max(1, int(length * TRANSLATION + 0.5)) for length in side]
    moves = [
        torch.randint(-far, far + 1, (count, 1), generator=generator, device=generator.device).to(device)
        for far in reach
    ]
    sources = []
    for length, far, move in zip(side, reach, moves, strict=True):
        # Index into the picture padded by ``far`` on both sides: one gather an axis.
        sources.append(torch.arange(length, device=device)[None] + far + move)

    def apply(x: Tensor) -> Tensor:
        down, across = reach
        padded = functional.pad(x, (across, across, down, down))
        rows, columns = sources[0][:, None, :, None], sources[1][:, None, None, :]
        which = torch.arange(count, device=x.device)[:, None, None, None]
        channel = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
        return padded[which, channel, rows, columns]

    return apply


def _cutout(
    count: int, side: tuple[int, int], generator: torch.Generator, device: torch.device
) -> Augmentation:
    """A square of half the side, its centre anywhere in the picture, set to 0."""
    masks = []
    for length in side:
        half = int(length * CUTOUT + 0.5) // 2
        centre = torch.randint(0, length, (count, 1), generator=generator, device=generator.device).to(device)
        place = torch.arange(length, device=device)[None]
        masks.append((place >= centre - half) & (place < centre + half))
    kept = 1.0 - (masks[0][:, None, :, None] & masks[1][:, None, None, :]).float()

    def apply(x: Tensor) -> Tensor:
        return x * kept

    return apply


#: Name of a change -> (count, side, generator, device) -> the change.
CHANGES: dict[str, Callable[[int, tuple[int, int], torch.Generator, torch.device], Augmentation]] = {
    "colour": _colour,
    "translation": _translation,
    "cutout": _cutout,
}
