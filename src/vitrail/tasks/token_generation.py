"""Pictures by codes: the part of text to image that belongs to token models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitrail.errors import InputError
from vitrail.images import to_pil
from vitrail.models.token_readers import CachedReader, MaskedReader
from vitrail.models.token_transformer import Conditions
from vitrail.runtime import Precision, autocast, cpu_generator
from vitrail.samplers.tokens import UNKNOWN, sample_autoregressive, sample_maskgit, windowed
from vitrail.schema import Preview, ResolvedTextToImage
from vitrail.tasks.context import Context
from vitrail.tasks.loading import TokenModel
from vitrail.tasks.progress import StepCounter
from vitrail.tasks.reading import Reading

__all__ = ["MAX_DRAWN_CODES", "code_grid", "conditions_of", "passes", "sample_tokens"]

MAX_DRAWN_CODES = 1 << 14
"""Most codes of one picture."""


def code_grid(request: ResolvedTextToImage, model: TokenModel, factor: int) -> tuple[int, int]:
    """Return (rows, columns) of codes of the picture that is asked for, ``factor`` times enlarged afterwards.

    Raises :class:`InputError` for a size that the model cannot draw.
    """
    patch, (width, height) = model.patch, model.size
    rows, columns = request.height // (patch * factor), request.width // (patch * factor)
    whole = request.width % (patch * factor) == 0 and request.height % (patch * factor) == 0
    config = model.network.config
    if whole and rows >= config.rows and columns >= config.columns and rows * columns <= MAX_DRAWN_CODES:
        return rows, columns
    squares = "".join(f", {side}x{side}" for side in model.sizes[1:])
    raise InputError(
        f"size {request.width}x{request.height} is not possible; model {model.name} makes {width}x{height}"
        f"{squares}, or larger pictures of whole {patch} px, {MAX_DRAWN_CODES} codes at most"
    )


def passes(request: ResolvedTextToImage, model: TokenModel, grid: tuple[int, int]) -> int:
    """Steps of one picture of ``grid`` codes."""
    count = grid[0] * grid[1]
    return min(request.steps, count) if model.sampler == "maskgit" else count


def conditions_of(model: TokenModel, reading: Reading, count: int, *, guided: bool) -> Conditions:
    """Return the conditions of ``count`` pictures of one prompt; twice as many rows if ``guided``, the wanted
    ones first.

    The unwanted side keeps the style, as in diffusion: guidance strengthens the words.
    """
    device = model.network.position.device
    copies = 2 if guided else 1
    styles = torch.full((count * copies,), reading.style, device=device)
    if model.text is None:
        return Conditions(styles=styles)
    words = Conditions(reading.states[:copies], reading.mask[:copies], reading.ids[:copies])
    return words.repeat(count)._replace(styles=styles)


def sample_tokens(
    request: ResolvedTextToImage,
    model: TokenModel,
    reading: Reading,
    indices: Sequence[int],
    grid: tuple[int, int],
    precision: Precision,
    context: Context,
    progress: StepCounter,
    before: Tensor | None = None,
) -> Tensor:
    """Draw the codes of the pictures with ``indices``; return the pictures (B, 3, H, W).

    ``before``: the codes (rows, columns) that stand before each picture, see
    :func:`vitrail.tasks.codes_before.codes_before`. Raises :class:`InputError` where guidance is asked of a
    model without words, :class:`~vitrail.errors.NonFiniteError` where a step gave no numbers.
    """
    guided = request.cfg_scale != 1.0
    if guided and model.text is None:
        raise InputError(
            f"model {model.name} reads no words, so guidance has nothing to follow; set cfg_scale to 1"
        )
    device = context.device
    generators = [cpu_generator(request.seed + index) for index in indices]
    known = torch.full((len(indices), *grid), UNKNOWN, device=device)
    conditions = conditions_of(model, reading, len(indices), guided=guided)
    prefix = None if before is None else before.expand(len(indices), *before.shape)
    if prefix is not None and prefix[0].numel() != known[0].numel():  # no map of the same places
        conditions, prefix = conditions._replace(prefix=prefix.flatten(1)), None

    def decoded(codes: Tensor) -> Tensor:
        with autocast(device, precision):
            return model.tokenizer.decode_codes(codes).float()

    def after_step(step: int, steps: int, codes: Tensor) -> None:
        context.check()
        progress.step(len(indices), step, steps)
        if context.previews(step):
            blank = codes == UNKNOWN
            pixels = decoded(codes.clamp_min(0))
            grey = blank.repeat_interleave(model.patch, 1).repeat_interleave(model.patch, 2)
            pixels = pixels.masked_fill(grey[:, None], 0.0)
            for index, picture in zip(indices, to_pil(pixels), strict=True):
                context.report(Preview(index=index, step=step, picture=picture))

    if model.sampler == "maskgit":
        config = model.network.config
        read = windowed(MaskedReader(model.network, conditions), config.rows, config.columns)

        def network(codes: Tensor) -> Tensor:
            context.check()
            with autocast(device, precision):
                return read(codes)

        codes = sample_maskgit(
            network,
            known,
            generators,
            steps=request.steps,
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            choice_temperature=request.choice_temperature,
            guidance=request.cfg_scale,
            interval=request.guidance_interval,
            callback=after_step,
        )
    else:
        codes = sample_autoregressive(
            CachedReader(model.network, conditions),
            known,
            generators,
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            guidance=request.cfg_scale,
            prefix=prefix,
            callback=after_step,
        )
    return decoded(codes)
