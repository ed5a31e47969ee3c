"""What stands before the codes of a picture: places, or the codes of another picture.

Token models of taming-transformers follow a second picture (depth, labels, a smaller copy) or know where in
the picture each code lies. Both are a map of codes in the places of those that are drawn, so a window that
slides over a large picture cuts it, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from vitrail.diffusion_fields import ControlUse
from vitrail.errors import InputError
from vitrail.files import shown
from vitrail.images import to_tensor
from vitrail.recipe.priors import TokenTransformerConfig
from vitrail.tasks.loading import TokenModel
from vitrail.tasks.reconstruct import open_picture

__all__ = ["CONDITION", "codes_before", "place_codes"]

CONDITION = "condition"
"""What the picture that a model follows is called, as a control of the request."""


def place_codes(rows: int, columns: int, patch: int, codes: int) -> Tensor:
    """Codes (rows, columns) of where each place of a picture lies, of ``patch`` x ``patch`` pixels each.

    A pixel's place is its number in raster order over the count of pixels; a code is the mean of its pixels'
    places times ``codes``, rounded (taming-transformers' CoordStage, taming/modules/misc/coord.py).
    """
    middle = (patch - 1) / 2
    down = torch.arange(rows, dtype=torch.float64)[:, None] * patch + middle
    across = torch.arange(columns, dtype=torch.float64)[None] * patch + middle
    share = (down * (columns * patch) + across) / (rows * columns * patch**2)
    return (share * codes).round().long()


def codes_before(model: TokenModel, controls: Sequence[ControlUse], grid: tuple[int, int]) -> Tensor | None:
    """Return the codes (rows, columns) that stand before a picture of ``grid`` codes; None where none do.

    Raises :class:`InputError` where a picture to follow is missing, or given to a model that follows none.
    """
    config = model.network.config
    if model.condition is None:
        if controls:
            raise InputError(f"control is not for model {model.name}, which follows no picture; leave it out")
        return _places(config, model, grid) if config.places else None
    if len(controls) != 1 or controls[0].name != CONDITION:
        given = ", ".join(shown(use.name, 40) for use in controls) or "none"
        raise InputError(
            f"model {model.name} draws after another picture; give it as the one control {CONDITION} "
            f"(--control {CONDITION}=PICTURE); given: {given}"
        )
    if controls[0].strength != 1.0:
        raise InputError(f"control {CONDITION} has no strength; leave :{controls[0].strength} out")
    return _picture_codes(model, controls[0], grid)


def _places(config: TokenTransformerConfig, model: TokenModel, grid: tuple[int, int]) -> Tensor:
    return place_codes(*grid, model.patch, config.prefix_codes or config.codes).to(
        model.network.position.device
    )


def _picture_codes(model: TokenModel, use: ControlUse, grid: tuple[int, int]) -> Tensor:
    """The codes of the picture to follow, read at the size that gives as many as the network knows."""
    config, reader = model.network.config, model.condition
    assert reader is not None
    channels = reader.config.network.in_channels
    if channels not in (1, 3):
        raise InputError(
            f"model {model.name} follows maps of {channels} channels, which no picture holds; "
            "its codes can be drawn from Python alone"
        )
    size = grid
    if config.prefix != config.count:  # read smaller or larger than what is drawn
        side = round(config.prefix**0.5)
        if side**2 != config.prefix or grid != (config.rows, config.columns):
            raise InputError(
                f"model {model.name} follows {config.prefix} codes, which stand for a whole picture of "
                f"{model.size[0]}x{model.size[1]}; leave width and height out"
            )
        size = (side, side)
    factor = reader.latent.downsample
    picture = open_picture(use.picture)
    wanted = (size[1] * factor, size[0] * factor)
    if picture.size != wanted:
        picture = picture.resize(wanted, Image.Resampling.LANCZOS)
    pixels = to_tensor([picture]).to(model.network.position.device)
    if channels == 1:
        pixels = pixels.mean(1, keepdim=True)
    latent = reader.encode(pixels)
    assert latent.codes is not None
    return latent.codes[0]
