"""Words to pictures: resolve the request, read the prompt, sample, enlarge.

Picture ``i`` of a request draws all its random numbers from its own generator, seeded ``seed + i``, so it
does not depend on how many others are made beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import torch
from torch import Tensor

from vitrail.errors import InputError, NonFiniteError
from vitrail.images import to_pil
from vitrail.runtime import Precision, autocast, cpu_generator, fast_bfloat16
from vitrail.samplers.denoisers import with_paired_guidance
from vitrail.samplers.schedules import SCHEDULES, flow_shift
from vitrail.samplers.solvers import SAMPLERS
from vitrail.schema import (
    Done,
    Event,
    ImageRecord,
    PictureDone,
    Preview,
    ResolvedTextToImage,
    TextToImageRequest,
)
from vitrail.store import artifacts
from vitrail.tasks import gan_generation
from vitrail.tasks.context import Context
from vitrail.tasks.loading import Loader, TextToImageModel, TokenModel
from vitrail.tasks.progress import StepCounter
from vitrail.tasks.reading import Reading, read_prompt
from vitrail.tasks.records import versions
from vitrail.tasks.token_generation import code_grid, passes, sample_tokens

__all__ = ["text_to_image"]


def text_to_image(request: TextToImageRequest, loader: Loader, context: Context) -> Iterator[Event]:
    """Make the pictures of ``request``; see :data:`vitrail.tasks.core.Task`.

    Yields a :class:`PictureDone` for each picture, in order, then :class:`Done`; reports :class:`Progress`
    after every step and :class:`Preview` where the context asks for them. Raises :class:`InputError` for a
    style, size or sampler that the model does not have, :class:`ArtifactError` for a model that cannot be
    loaded, :class:`NonFiniteError` where float32 too gives no numbers, :class:`CancelledError` after a
    cancel.
    """
    started = time.monotonic()
    context.check()
    if loader.kind(request.model) in gan_generation.KINDS:
        yield from gan_generation.gan_generation(request, loader, context)
        return
    with context.timed("load"):
        model = loader.text_to_image(request.model)
    _check_settings(request, model)
    resolved = request.resolve(model.defaults)
    # What is recorded tells nobody where the model lies on this machine.
    resolved = resolved.model_copy(update={"model": artifacts.public_name(request.model, model.name)})
    factor = _enlargement(resolved, model)
    with torch.inference_mode():
        with context.timed("text"):
            reading = read_prompt(resolved, model.name, model.text, model.styles)
        batch = context.batch_size or (1 if context.device.type == "cpu" else 16)
        progress = StepCounter(_passes(resolved, model, factor) * resolved.n, context)
        for start in range(0, resolved.n, batch):
            indices = range(start, min(start + batch, resolved.n))
            yield from _chunk(resolved, model, reading, indices, factor, context, progress)
    yield Done(seconds=time.monotonic() - started, hints=reading.hints)


def _chunk(
    request: ResolvedTextToImage,
    model: TextToImageModel | TokenModel,
    reading: Reading,
    indices: Sequence[int],
    factor: int,
    context: Context,
    progress: StepCounter,
) -> Iterator[Event]:
    """Make the pictures with ``indices`` in one batch; again in float32 if bfloat16 gave no numbers."""
    precision = _resolved_precision(context, model)

    def sample(precision: Precision) -> Tensor:
        if isinstance(model, TokenModel):
            grid = code_grid(request, model, factor)
            return sample_tokens(request, model, reading, indices, grid, precision, context, progress)
        return _sample(request, model, reading, indices, precision, context, progress)

    with context.timed("denoise"):
        try:
            pixels = sample(precision)
        except NonFiniteError as error:
            if precision == "float32":
                raise _no_numbers(request) from error
            precision = "float32"
            progress.rewind()
            try:
                pixels = sample(precision)
            except NonFiniteError as again:
                raise _no_numbers(request) from again
    progress.keep()
    with context.timed("decode"):
        pixels = _enlarge(pixels, model, factor, precision, context)
        pictures = to_pil(pixels)
    for index, picture in zip(indices, pictures, strict=True):
        record = ImageRecord(
            request=request,
            index=index,
            seed=request.seed + index,
            model_name=model.name,
            model_sha256=model.sha256,
            versions=versions(),
            device=context.device.type,
            precision=precision,
            created=datetime.now(UTC),
            understood_as=reading.understood_as,
            hints=reading.hints,
        )
        yield PictureDone(index=index, record=record, picture=picture)


def _sample(
    request: ResolvedTextToImage,
    model: TextToImageModel,
    reading: Reading,
    indices: Sequence[int],
    precision: Precision,
    context: Context,
    progress: StepCounter,
) -> Tensor:
    """Return the pictures (B, 3, native, native); NonFiniteError where a step gave no numbers."""
    generators = [cpu_generator(request.seed + index) for index in indices]
    shape = (3, model.native, model.native)

    def noise(like: Tensor) -> Tensor:
        drawn = [torch.randn(shape, generator=generator) for generator in generators]
        return torch.stack(drawn).to(like)

    def network(x: Tensor, sigma: Tensor, rows: slice) -> Tensor:
        """Run the rows of the reading (wanted, unwanted) over the state x (B, ...) in one batch."""
        context.check()
        count, copies = len(x), rows.stop - rows.start
        states, mask, ids = (
            tensor[rows].repeat_interleave(count, dim=0)
            for tensor in (reading.states, reading.mask, reading.ids)
        )
        # The unwanted side keeps the style: guidance strengthens the words, and a style without words was
        # seen in training far more often than neither.
        styles = torch.full((count * copies,), reading.style, device=x.device)
        x, sigma = x.repeat(copies, 1, 1, 1), sigma.repeat(copies)
        with autocast(context.device, precision):
            output: Tensor = model.network(x, model.path.time(sigma), states, mask, ids, styles)
        return model.path.to_x0(output.to(x.dtype), x, sigma, "x0")

    def wanted(x: Tensor, sigma: Tensor) -> Tensor:
        return network(x, sigma, slice(0, 1))

    def both(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        first, second = network(x, sigma, slice(0, 2)).chunk(2)
        return first, second

    def after_step(step: int, steps: int, x0: Tensor) -> None:
        context.check()
        progress.step(len(indices), step + 1, steps)
        if context.preview_every and (step + 1) % context.preview_every == 0:
            for index, picture in zip(indices, to_pil(x0), strict=True):
                context.report(Preview(index=index, step=step + 1, picture=picture))

    denoiser = with_paired_guidance(
        both,
        wanted,
        request.cfg_scale,
        request.guidance_interval,
        request.cfg_rescale,
        path=model.path,
    )
    sigmas = flow_shift(SCHEDULES[request.schedule](request.steps, model.path), request.shift)
    start = model.path.start(noise(torch.empty(0, device=context.device)), float(sigmas[0]))
    solver = SAMPLERS[request.sampler].function
    return solver(denoiser, start, sigmas, path=model.path, noise=noise, callback=after_step)


def _enlarge(
    pixels: Tensor, model: TextToImageModel | TokenModel, factor: int, precision: Precision, context: Context
) -> Tensor:
    while factor > 1 and model.upsampler is not None:
        context.check()
        with autocast(context.device, precision):
            pixels = model.upsampler(pixels.clamp(-1.0, 1.0)).float()
        factor //= model.upsampler.config.scale
    return pixels


def _enlargement(request: ResolvedTextToImage, model: TextToImageModel | TokenModel) -> int:
    """How many times larger the picture is than what the network draws."""
    if request.width == request.height and request.width in model.sizes:
        return request.width // model.sizes[0]
    if isinstance(model, TokenModel):
        return 1  # any size in whole codes; code_grid says which are possible
    allowed = ", ".join(f"{size}x{size}" for size in model.sizes)
    raise InputError(
        f"size {request.width}x{request.height} is not possible; model {model.name} makes {allowed}"
    )


def _passes(request: ResolvedTextToImage, model: TextToImageModel | TokenModel, factor: int) -> int:
    """Steps of one picture."""
    if isinstance(model, TokenModel):
        return passes(request, model, code_grid(request, model, factor))
    return request.steps


#: Settings that say nothing to a kind of model, with the value that asks for nothing.
_FOR_DIFFUSION = {"cfg_rescale": 0.0, "shift": 1.0}
_FOR_CODES = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "choice_temperature": 0.0}


def _check_settings(request: TextToImageRequest, model: TextToImageModel | TokenModel) -> None:
    """Raise :class:`InputError` for a setting that was given and is not for this kind of model."""
    tokens = isinstance(model, TokenModel)
    causal = isinstance(model, TokenModel) and model.sampler == "autoregressive"
    foreign: dict[str, float] = dict(_FOR_DIFFUSION if tokens else _FOR_CODES)
    if causal:
        foreign |= {"steps": 1, "choice_temperature": 0.0}
    foreign |= {"truncation": 0.0, "noise_strength": 1.0, "noise": 0.0}  # a GAN's
    for name, neutral in foreign.items():
        if getattr(request, name) not in (None, neutral):
            kind = "draws code after code" if causal else "draws codes" if tokens else "draws pixels"
            raise InputError(f"{name} is not for model {model.name}, which {kind}; leave it out")
    own = _samplers(model)
    if request.sampler is not None and request.sampler not in own:
        raise InputError(
            f"sampler {request.sampler} is not for model {model.name}; use one of {', '.join(own)}"
        )
    schedules = (model.defaults.schedule,) if isinstance(model, TokenModel) else tuple(SCHEDULES)
    if request.schedule is not None and request.schedule not in schedules:
        raise InputError(
            f"schedule {request.schedule} is not for model {model.name}; use one of {', '.join(schedules)}"
        )


def _samplers(model: TextToImageModel | TokenModel) -> tuple[str, ...]:
    if isinstance(model, TokenModel):
        return (model.sampler,)
    return tuple(name for name, info in SAMPLERS.items() if model.path.name in info.paths)


def _resolved_precision(context: Context, model: TextToImageModel | TokenModel) -> Precision:
    # One code at a time is no work for bfloat16: its weights would be converted again for every code.
    if isinstance(model, TokenModel) and model.sampler == "autoregressive":
        return "float32"
    if context.precision != "auto":
        return context.precision
    return "bfloat16" if fast_bfloat16(context.device) else "float32"


def _no_numbers(request: ResolvedTextToImage) -> NonFiniteError:
    return NonFiniteError(
        f"the model gave no finite picture for seed {request.seed}, in float32 too; "
        f"try a cfg_scale below {request.cfg_scale:g}, more steps than {request.steps} or another sampler"
    )
