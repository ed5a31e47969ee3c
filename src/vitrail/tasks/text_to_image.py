"""Words to pictures: resolve the request, read the prompt, sample, enlarge.

Picture ``i`` of a request draws all its random numbers from its own generator, seeded ``seed + i``, so it
does not depend on how many others are made beside it.
"""

from __future__ import annotations

import difflib
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata

import torch
from torch import Tensor

from vitrail.errors import InputError, NonFiniteError
from vitrail.images import to_pil
from vitrail.models.lexicon import translate
from vitrail.models.prompt_hints import hint
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
    Progress,
    ResolvedTextToImage,
    TextToImageRequest,
)
from vitrail.tasks.context import Context
from vitrail.tasks.loading import Loader, TextToImageModel

__all__ = ["text_to_image"]

#: Longest translation that is recorded; the text encoder reads far less of it.
MAX_UNDERSTOOD = 1000


@dataclass(frozen=True)
class _Reading:
    """What the model is given of the prompt: English words, token states, and what the person should know."""

    english: str
    hints: tuple[str, ...]
    states: Tensor  # (2, T, width): the prompt, then the negative prompt
    mask: Tensor
    ids: Tensor
    style: int


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
    with context.timed("load"):
        model = loader.text_to_image(request.model)
    resolved = request.resolve(model.defaults)
    factor = _enlargement(resolved, model)
    _check_sampler(resolved, model)
    with torch.inference_mode():
        with context.timed("text"):
            reading = _read(resolved, model)
        batch = context.batch_size or (1 if context.device.type == "cpu" else 16)
        progress = _Progress(resolved, context)
        for start in range(0, resolved.n, batch):
            indices = range(start, min(start + batch, resolved.n))
            yield from _chunk(resolved, model, reading, indices, factor, context, progress)
    yield Done(seconds=time.monotonic() - started, hints=reading.hints)


def _chunk(
    request: ResolvedTextToImage,
    model: TextToImageModel,
    reading: _Reading,
    indices: Sequence[int],
    factor: int,
    context: Context,
    progress: _Progress,
) -> Iterator[Event]:
    """Make the pictures with ``indices`` in one batch; again in float32 if bfloat16 gave no numbers."""
    precision = _resolved_precision(context)
    with context.timed("denoise"):
        try:
            pixels = _sample(request, model, reading, indices, precision, context, progress)
        except NonFiniteError as error:
            if precision == "float32":
                raise _no_numbers(request) from error
            precision = "float32"
            progress.rewind()
            try:
                pixels = _sample(request, model, reading, indices, precision, context, progress)
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
            versions=_versions(),
            device=context.device.type,
            precision=precision,
            created=datetime.now(UTC),
            understood_as=_understood(request.prompt, reading.english),
            hints=reading.hints,
        )
        yield PictureDone(index=index, record=record, picture=picture)


def _sample(
    request: ResolvedTextToImage,
    model: TextToImageModel,
    reading: _Reading,
    indices: Sequence[int],
    precision: Precision,
    context: Context,
    progress: _Progress,
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
    pixels: Tensor, model: TextToImageModel, factor: int, precision: Precision, context: Context
) -> Tensor:
    while factor > 1 and model.upsampler is not None:
        context.check()
        with autocast(context.device, precision):
            pixels = model.upsampler(pixels.clamp(-1.0, 1.0)).float()
        factor //= model.upsampler.config.scale
    return pixels


def _read(request: ResolvedTextToImage, model: TextToImageModel) -> _Reading:
    """Translate, look at the prompt with honest eyes, and encode it beside the negative prompt."""
    wanted, unwanted = translate(request.prompt), translate(request.negative_prompt)
    states = model.text([wanted.english, unwanted.english])
    found = hint(request.prompt, translation=wanted, truncated=states.truncated[0])
    hints = [item.chinese if wanted.chinese else item.english for item in found]
    return _Reading(
        english=wanted.english,
        hints=tuple(text[:200] for text in hints[:8]),
        states=states.states,
        mask=states.mask,
        ids=states.ids,
        style=_style_number(request.style, model),
    )


def _understood(prompt: str, english: str) -> str | None:
    """Return the words that the model was given if they are not the prompt's own, at a recordable length."""
    return None if english.split() == prompt.split() else english[:MAX_UNDERSTOOD]


def _style_number(style: str | None, model: TextToImageModel) -> int:
    if style is None or style.lower() == "none":
        return 0
    names = {name.lower(): number for number, name in enumerate(model.styles, start=1)}
    wanted = style.lower().replace(" ", "-").replace("_", "-")
    if wanted in names:
        return names[wanted]
    if not names:
        raise InputError(f"style {style!r} is unknown; model {model.name} has no styles, leave it out")
    near = difflib.get_close_matches(wanted, names, 1)
    ask = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"style {style!r} is unknown; {ask}allowed are {', '.join(model.styles)}")


def _enlargement(request: ResolvedTextToImage, model: TextToImageModel) -> int:
    if request.width != request.height or request.width not in model.sizes:
        allowed = ", ".join(f"{size}x{size}" for size in model.sizes)
        raise InputError(
            f"size {request.width}x{request.height} is not possible; model {model.name} makes {allowed}"
        )
    return request.width // model.native


def _check_sampler(request: ResolvedTextToImage, model: TextToImageModel) -> None:
    name = model.path.name
    if name not in SAMPLERS[request.sampler].paths:
        allowed = ", ".join(key for key, info in SAMPLERS.items() if name in info.paths)
        raise InputError(f"sampler {request.sampler} is not for model {model.name}; use one of {allowed}")


def _resolved_precision(context: Context) -> Precision:
    if context.precision != "auto":
        return context.precision
    return "bfloat16" if fast_bfloat16(context.device) else "float32"


def _no_numbers(request: ResolvedTextToImage) -> NonFiniteError:
    return NonFiniteError(
        f"the model gave no finite picture for seed {request.seed}, in float32 too; "
        f"try a cfg_scale below {request.cfg_scale:g}, more steps than {request.steps} or another sampler"
    )


@functools.cache
def _versions() -> dict[str, str]:
    try:
        own = metadata.version("vitrail")
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        own = "source"
    # A version such as 2.13.0+cpu is recorded without its local part: the record's words are plain.
    return {"vitrail": own.split("+")[0], "torch": str(torch.__version__).split("+")[0]}


class _Progress:
    """Counts steps over all pictures of a request and tells how long the rest will take."""

    def __init__(self, request: ResolvedTextToImage, context: Context) -> None:
        self.total = request.steps * request.n
        self.done = self.kept = self.first = 0
        self.context = context
        self.started: float | None = None

    def step(self, pictures: int, step: int, steps: int) -> None:
        """Count step ``step`` of ``steps`` of a batch of ``pictures``."""
        self.done = self.kept + pictures * step
        now = time.monotonic()
        if self.started is None:  # the first step warms up the machine: it says nothing of the others
            self.started, self.first = now, self.done
        measured = self.done - self.first
        eta = (now - self.started) / measured * (self.total - self.done) if measured > 0 else None
        self.context.report(Progress(step=self.done, steps=self.total, eta=eta))

    def keep(self) -> None:
        """The batch is finished."""
        self.kept = self.done

    def rewind(self) -> None:
        """Forget the steps of a batch that has to be made again."""
        self.done, self.started = self.kept, None
