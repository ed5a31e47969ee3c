"""Words to pictures: resolve the request, read the prompt, sample, enlarge.

Picture ``i`` of a request draws all its random numbers from its own generator, seeded ``seed + i``, so it
does not depend on how many others are made beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from vitrail.backends.model import Conditioning, Control, DiffusionModel
from vitrail.errors import InputError
from vitrail.files import shown
from vitrail.images import to_pil
from vitrail.runtime import Precision, autocast
from vitrail.schema import Done, Event, ResolvedTextToImage, TextToImageRequest
from vitrail.tasks import gan_generation
from vitrail.tasks.additions import controls_of, public_names, refuse_additions
from vitrail.tasks.between import Enlarge, enlarger
from vitrail.tasks.canvas import Canvas, nearest_size, plan_canvas
from vitrail.tasks.codes_before import codes_before
from vitrail.tasks.context import Context
from vitrail.tasks.diffusion import (
    Draws,
    check_sampling,
    denoise,
    first_state,
    noise_levels,
    precision_of,
    steps_taken,
)
from vitrail.tasks.loading import Loader, TokenModel
from vitrail.tasks.opening import open_model
from vitrail.tasks.pictures import Order, Piece, batch_size, drawn, pieces_of, told
from vitrail.tasks.progress import StepCounter
from vitrail.tasks.reading import read_prompt
from vitrail.tasks.token_generation import code_grid, passes, sample_tokens

__all__ = ["Job", "plan_job", "text_to_image"]

#: Settings that say nothing to a kind of model, with the value that asks for nothing.
_FOR_DIFFUSION = {"cfg_rescale": 0.0, "shift": 1.0}
_FOR_CODES = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "choice_temperature": 0.0}
_FOR_GANS = {"truncation": 0.0, "noise_strength": 1.0, "noise": 0.0}
_FOR_DIFFUSION_ALONE = (
    *("tile", "seamless", "panorama", "subseed", "subseed_strength"),
    *("hires_scale", "hires_strength", "hires_steps", "hires_upscaler"),
)


def text_to_image(request: TextToImageRequest, loader: Loader, context: Context) -> Iterator[Event]:
    """Make the pictures of ``request``; see :data:`vitrail.tasks.core.Task`.

    Yields a :class:`PictureDone` for each picture, in order, then :class:`Done`; reports :class:`Progress`
    after every step and :class:`Preview` where the context asks for them. Raises :class:`InputError` for a
    style, size or sampler that the model does not have, :class:`ArtifactError` for a model that cannot be
    loaded, :class:`NonFiniteError` where float32 too gives no numbers, :class:`CancelledError` after a
    cancel.
    """
    context.check()
    if loader.kind(request.model) in gan_generation.KINDS:
        what = f"model {shown(request.model, 80)}, which draws in one pass"
        refuse_additions(request, what, _FOR_DIFFUSION_ALONE)
        yield from gan_generation.gan_generation(request, loader, context)
        return
    with context.timed("load"):
        model = open_model(loader, request, context)
    if isinstance(model, TokenModel):
        yield from _from_codes(request, model, context)
    else:
        yield from _from_noise(request, model, context)


def _from_noise(request: TextToImageRequest, model: DiffusionModel, context: Context) -> Iterator[Event]:
    """Make the pictures with a diffusion model."""
    started = time.monotonic()
    resolved, canvas, larger, enlarge = plan_job(request, model, context)
    with torch.inference_mode():
        with context.timed("text"):
            conditioning = model.read(resolved.prompt, resolved.negative_prompt, resolved.style)
        job = Job(resolved, request, model, canvas, larger, enlarge, lambda _: conditioning, context)
        progress = StepCounter(job.steps * resolved.n, context)
        order = Order(resolved, context, progress, model, conditioning.understood_as, conditioning.hints)
        for _, event in drawn(
            pieces_of(order), batch_size(context), precision_of(context), job.draw, job.finish
        ):
            yield event
    yield Done(seconds=time.monotonic() - started, hints=conditioning.hints)


def plan_job(
    request: TextToImageRequest, model: DiffusionModel, context: Context
) -> tuple[ResolvedTextToImage, Canvas, Canvas | None, Enlarge]:
    """Return what of a request does not hang on its words: settings, canvases, what enlarges between them.

    Raises :class:`InputError` for what the model does not have.
    """
    _refuse(request, model.name, "draws pixels", _FOR_CODES | _FOR_GANS)
    check_sampling(request, model.name, model.path)
    # What is recorded tells nobody where the model lies on this machine.
    resolved = public_names(request.resolve(model.defaults), request.model, model.name)
    canvas = plan_canvas(
        model, resolved.width, resolved.height, tile=resolved.tile, seamless=resolved.seamless
    )
    larger = _larger(resolved, model)
    return resolved, canvas, larger, enlarger(request.hires_upscaler if larger is not None else None, context)


@dataclass(frozen=True)
class Job:
    """What the batches of a request share; ``request`` holds the contents of files, ``resolved`` does not.

    ``words``: what the model is told for a batch. Of several requests with the same settings ``resolved`` and
    ``request`` are any one.
    """

    resolved: ResolvedTextToImage
    request: TextToImageRequest
    model: DiffusionModel
    canvas: Canvas
    larger: Canvas | None
    enlarge: Enlarge
    words: Callable[[Sequence[Piece]], Conditioning]
    context: Context

    @property
    def steps(self) -> int:
        """Steps of one picture."""
        return self.resolved.steps + (0 if self.larger is None else _second(self.resolved)[1])

    def draw(self, pieces: Sequence[Piece], precision: Precision) -> Tensor:
        """Return the states of ``pieces``, of the second pass where there is one."""
        return _drawn(self, pieces, precision)

    def finish(self, state: Tensor, precision: Precision) -> list[Image.Image]:
        """Return the pictures of states."""
        return to_pil((self.larger or self.canvas).decode(state, precision, self.context.check))


def _drawn(job: Job, pieces: Sequence[Piece], precision: Precision) -> Tensor:
    resolved, request, model, context = job.resolved, job.request, job.model, job.context
    canvas, larger = job.canvas, job.larger
    conditioning = job.words(pieces)
    draws = Draws(
        [piece.seed for piece in pieces],
        canvas.shape,
        [(getattr(piece.order.request, "subseed", None) or 0) + piece.index for piece in pieces],
        resolved.subseed_strength,
    )
    sigmas = noise_levels(resolved, model.path)
    start = first_state(resolved, model.path, draws.first(context.device), float(sigmas[0]))
    bound = canvas.bind(
        conditioning,
        precision,
        context.check,
        known=canvas.nothing_known(context.device),
        controls=_controls(request, canvas, context),
    )
    listen = told(pieces, canvas.glance if resolved.fast else canvas.look)
    with canvas.seams_closed():
        state = denoise(model, bound, start, sigmas, resolved, noise=draws, context=context, told=listen)
    if larger is None:
        return state
    settings, _ = _second(resolved)
    pixels = canvas.decode(state, precision, context.check).clamp(-1.0, 1.0)
    pixels = job.enlarge(pixels, (larger.width, larger.height))
    known = larger.encode(pixels.clamp(-1.0, 1.0))
    draws.shape = larger.shape
    sigmas = noise_levels(settings, model.path, resolved.hires_strength)
    if len(sigmas) < 2:
        return known
    bound = larger.bind(
        conditioning,
        precision,
        context.check,
        known=larger.nothing_known(context.device),
        controls=_controls(request, larger, context),
    )
    look = larger.glance if resolved.fast else larger.look
    listen = told(pieces, look, before=resolved.steps)
    start = model.path.noised(known, draws(known), float(sigmas[0]))
    with larger.seams_closed():
        return denoise(model, bound, start, sigmas, settings, noise=draws, context=context, told=listen)


def _controls(request: TextToImageRequest, canvas: Canvas, context: Context) -> list[Control]:
    return controls_of(request.control, (canvas.width, canvas.height), context.device)


def _second(request: ResolvedTextToImage) -> tuple[ResolvedTextToImage, int]:
    """The settings of the second pass, and how many steps it takes."""
    steps = request.hires_steps or request.steps
    return request.model_copy(update={"steps": steps}), steps_taken(steps, request.hires_strength)


def _larger(request: ResolvedTextToImage, model: DiffusionModel) -> Canvas | None:
    """The canvas of the second pass, in tiles where the model cannot draw it whole; None without one."""
    if request.hires_scale == 1.0:
        return None
    width, height = round(request.width * request.hires_scale), round(request.height * request.hires_scale)
    width, height = nearest_size(model, width, height)
    try:
        return plan_canvas(model, width, height, tile=request.tile, seamless=request.seamless)
    except InputError:
        return plan_canvas(model, width, height, tile=True, seamless=request.seamless)


# -- models that draw codes ----------------------------------------------------------------------------------


def _from_codes(request: TextToImageRequest, model: TokenModel, context: Context) -> Iterator[Event]:
    """Make the pictures with a token model."""
    started = time.monotonic()
    what = f"model {model.name}, which draws codes"
    # The picture that some of these models follow is given as a control.
    refuse_additions(request.model_copy(update={"control": ()}), what, _FOR_DIFFUSION_ALONE)
    causal = model.sampler == "autoregressive"
    foreign = _FOR_DIFFUSION | _FOR_GANS | ({"steps": 1, "choice_temperature": 0.0} if causal else {})
    _refuse(request, model.name, "draws code after code" if causal else "draws codes", foreign)
    for name, own in (("sampler", model.sampler), ("schedule", model.defaults.schedule)):
        if getattr(request, name) not in (None, own):
            raise InputError(
                f"{name} {getattr(request, name)} is not for model {model.name}; use one of {own}"
            )
    resolved = public_names(request.resolve(model.defaults), request.model, model.name)
    square = resolved.width == resolved.height and resolved.width in model.sizes
    # Any other size in whole codes; code_grid says which are possible.
    factor = resolved.width // model.sizes[0] if square else 1
    grid = code_grid(resolved, model, factor)
    # One code at a time is no work for bfloat16: its weights would be converted again for every code.
    wanted: Precision = "float32" if causal else precision_of(context)
    with torch.inference_mode():
        with context.timed("text"):
            reading = read_prompt(resolved, model.name, model.text, model.styles)
            before = codes_before(model, request.control, grid)
        progress = StepCounter(passes(resolved, model, grid) * resolved.n, context)
        order = Order(resolved, context, progress, model, reading.understood_as, reading.hints)

        def draw(pieces: Sequence[Piece], precision: Precision) -> Tensor:
            indices = [piece.index for piece in pieces]
            return sample_tokens(
                resolved, model, reading, indices, grid, precision, context, progress, before
            )

        def finish(pixels: Tensor, precision: Precision) -> list[Image.Image]:
            return to_pil(_enlarged(pixels, model, factor, precision, context.check))

        for _, event in drawn(pieces_of(order), batch_size(context), wanted, draw, finish):
            yield event
    yield Done(seconds=time.monotonic() - started, hints=reading.hints)


def _enlarged(
    pixels: Tensor, model: TokenModel, factor: int, precision: Precision, check: Callable[[], None]
) -> Tensor:
    while factor > 1 and model.upsampler is not None:
        check()
        with autocast(pixels.device, precision):
            pixels = model.upsampler(pixels.clamp(-1.0, 1.0)).float()
        factor //= model.upsampler.config.scale
    return pixels


def _refuse(request: TextToImageRequest, model: str, kind: str, foreign: dict[str, float]) -> None:
    """Raise :class:`InputError` for a setting that was given and is not for this kind of model."""
    for name, neutral in foreign.items():
        if getattr(request, name) not in (None, neutral):
            raise InputError(f"{name} is not for model {model}, which {kind}; leave it out")
