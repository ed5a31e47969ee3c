"""Masks: how much may change where, and how what was made is put back into the picture.

White is painted anew, black stays, grey changes in part: the strength of a place is the request's times the
mask's, and a place is held to the picture until the walk has come down to its own noise level ("differential
diffusion", Levin and Fried 2023, arXiv:2306.00950). A mask of black and white is plain inpainting.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vitrail.errors import DataError, InputError
from vitrail.files import shown
from vitrail.images import open_image
from vitrail.request_fields import FileRef
from vitrail.samplers.denoisers import Denoiser
from vitrail.samplers.paths import spread
from vitrail.tasks.diffusion import steps_taken

__all__ = ["blended", "box_around", "filled", "held", "read_mask", "release_levels"]

NEVER = -1.0
"""Release level of a place that stays as it is."""


def read_mask(file: FileRef, size: tuple[int, int], name: str = "mask") -> tuple[Tensor, tuple[str, ...]]:
    """Return a mask (H, W) in [0, 1] for a picture of ``size`` (width, height), and hints.

    Of a picture with transparency, its opaque part is the mask; else brightness counts. One of another size
    but the same shape is resized, with a hint. Raises :class:`InputError` for another shape,
    :class:`DataError` for a damaged file.
    """
    if not file.data:
        raise InputError(f"the content of {file.name} is not in the request; give the file again")
    try:
        drawing = open_image(file.data, keep_alpha=True)
    except DataError as error:  # which calls content without a path "the picture"
        raise DataError(str(error).replace("the picture", shown(file.name), 1)) from error
    transparent = drawing.mode == "RGBA" and np.asarray(drawing)[..., 3].min() < 255
    grey = drawing.getchannel("A") if transparent else drawing.convert("L")
    hints: tuple[str, ...] = ()
    if grey.size != size:
        ratio = grey.width * size[1] / (grey.height * size[0])
        if not 0.98 < ratio < 1.02:
            raise InputError(
                f"the {name} has {grey.width}x{grey.height} pixels and the picture {size[0]}x{size[1]}; "
                f"make the {name} of the picture's shape"
            )
        hints = (f"the {name} was resized from {grey.width}x{grey.height} to the picture's size",)
        grey = grey.resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(grey, dtype=np.float32) / 255.0), hints


def box_around(mask: Tensor, padding: int) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) around what is not 0 in ``mask`` (H, W), and ``padding`` pixels."""
    rows, columns = torch.nonzero(mask.amax(1) > 0).flatten(), torch.nonzero(mask.amax(0) > 0).flatten()
    height, width = mask.shape
    return (
        max(0, int(columns[0]) - padding),
        max(0, int(rows[0]) - padding),
        min(width, int(columns[-1]) + 1 + padding),
        min(height, int(rows[-1]) + 1 + padding),
    )


def release_levels(
    mask: Tensor, size: tuple[int, int], levels: Tensor, steps: int, strength: float
) -> Tensor:
    """Return the noise level from which on a place of the state is free, (1, 1, rows, columns).

    mask: (H, W) in [0, 1] over the whole canvas. size: (rows, columns). levels: the sigmas of the full walk
    of ``steps``. A place that holds anything of the mask has the strength of its most masked pixel;
    :data:`NEVER` where there is nothing of it.
    """
    strengths = functional.adaptive_max_pool2d(mask[None, None], size)[0, 0] * strength
    table = torch.full((steps + 1,), NEVER, device=mask.device)
    table[1:] = levels[:steps].flip(0).to(mask.device)
    # As steps_taken does, on numbers that come from 255 greys.
    taken = (strengths * steps + 1e-4).floor().clamp(1, steps)
    taken = torch.where(strengths > 0, taken, torch.zeros_like(taken)).long()
    assert int(taken.max()) <= max(1, steps_taken(steps, strength))
    return table[taken][None, None]


def held(
    inner: Denoiser, known: Tensor, release: Tensor, fresh: tuple[float, Tensor] | None = None
) -> Denoiser:
    """Return a denoiser whose answer is ``known`` where the noise level is still above ``release``.

    known: (1 or B, C, h, w). release: (1, 1, h, w), of :func:`release_levels`. The solver then carries those
    places along their exact path, noised by what noise they began with. fresh: (level, state); at this level
    the network is shown that state in the held places, as pipelines that begin with noise alone do.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        # Levels come back from a solver in the state's precision; a step's own level counts as reached.
        still = spread(sigma, x) > release.to(x) * (1.0 + 1e-5)
        if fresh is not None and float(sigma[0]) >= fresh[0] * (1.0 - 1e-5):
            x0 = inner(torch.where(still, fresh[1].to(x), x), sigma)
        else:
            x0 = inner(x, sigma)
        return torch.where(still, known.to(x0), x0)

    return denoise


def blended(original: Tensor, painted: Tensor, mask: Tensor, feather: int) -> Tensor:
    """Put ``painted`` (3, H, W) into ``original`` where ``mask`` (H, W) is not 0; the rest stays to the bit.

    Colours meet at the seam: what the painted picture differs by just outside the mask, smoothed over
    ``feather`` pixels, is spread into it (a membrane, as in Pérez et al. 2003, "Poisson image editing");
    feather 0 does none of this. Grey masks fade in over their lowest quarter.
    """
    inside = mask > 0
    if bool(inside.all()) or not bool(inside.any()):
        return painted if bool(inside.all()) else original
    outside = (~inside)[None, None].float()
    difference = (original - painted)[None] * outside
    radius = max(1, feather)
    kernel = {"kernel_size": 2 * radius + 1, "stride": 1, "padding": radius}
    weight = functional.avg_pool2d(outside, **kernel)  # type: ignore[arg-type]
    smooth = functional.avg_pool2d(difference, **kernel) / weight.clamp_min(1e-6)  # type: ignore[arg-type]
    correction = filled(smooth[0], inside) if feather else torch.zeros_like(original)
    alpha = (4.0 * mask).clamp(0.0, 1.0)
    result = torch.lerp(original, painted + correction, alpha)
    return torch.where(inside, result, original)


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
