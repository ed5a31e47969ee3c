"""The one loop of diffusion: a bound denoiser is guided, wrapped and walked down its noise levels.

Every task that draws with a :class:`~vitrail.backends.model.DiffusionModel` comes through :func:`denoise`;
what differs between them (a known picture, tiles, a second pass) is the start, the noise levels and the
wrapper that they give it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from vitrail.backends.model import Bound, DiffusionModel
from vitrail.errors import InputError
from vitrail.models.gan_noise import Latents, slerp
from vitrail.runtime import Precision, cpu_generator, fast_bfloat16
from vitrail.samplers.denoisers import Denoiser, with_paired_guidance
from vitrail.samplers.paths import NoisePath
from vitrail.samplers.resampling import with_resampling
from vitrail.samplers.schedules import SCHEDULES, flow_shift
from vitrail.samplers.solvers import SAMPLERS
from vitrail.tasks.context import Context
from vitrail.tasks.pictures import Told

__all__ = [
    "Draws",
    "Sampling",
    "check_sampling",
    "denoise",
    "first_state",
    "noise_levels",
    "precision_of",
    "steps_taken",
]

Wrapper = Callable[[Denoiser], Denoiser]


class Sampling(Protocol):
    """The settings of a resolved request that the loop reads."""

    @property
    def steps(self) -> int: ...
    @property
    def cfg_scale(self) -> float: ...
    @property
    def cfg_rescale(self) -> float: ...
    @property
    def guidance_interval(self) -> tuple[float, float]: ...
    @property
    def sampler(self) -> str: ...
    @property
    def schedule(self) -> str: ...
    @property
    def shift(self) -> float: ...


def steps_taken(steps: int, strength: float) -> int:
    """How many of ``steps`` an edit of ``strength`` takes: rounded down, one at least; 0 for strength 0."""
    return min(steps, max(1, int(steps * strength))) if strength > 0 else 0


def noise_levels(settings: Sampling, path: NoisePath, strength: float = 1.0) -> Tensor:
    """The sigmas of a walk, falling to 0; for a strength below 1 the last ones of the full walk."""
    sigmas = SCHEDULES[settings.schedule](settings.steps, path)
    if path.name == "flow":
        sigmas = flow_shift(sigmas, settings.shift)
    return sigmas[settings.steps - steps_taken(settings.steps, strength) :]


def first_state(settings: Sampling, path: NoisePath, eps: Tensor, sigma: float) -> Tensor:
    """The state at ``sigma`` that a walk from nothing starts with, (B, C, h, w) as the noise ``eps``.

    See :attr:`vitrail.samplers.solvers.SamplerInfo.plain_start`.
    """
    if SAMPLERS[settings.sampler].plain_start and settings.schedule in ("linspace", "simple"):
        return eps * sigma
    return path.start(eps, sigma)


class Draws:
    """The random numbers of the pictures of one batch; each has its own CPU generator.

    Called as a solver's source of noise. ``subseeds`` with a ``strength`` turn the first draw towards that of
    another generator, along the arc between the two (variations).
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: tuple[int, ...],
        subseeds: Sequence[int] = (),
        strength: float = 0.0,
    ) -> None:
        self.shape = shape
        self.generators = [cpu_generator(seed) for seed in seeds]
        self._others = [cpu_generator(seed) for seed in subseeds] if strength > 0 else []
        self._strength = strength

    def __len__(self) -> int:
        return len(self.generators)

    def first(self, device: torch.device) -> Tensor:
        """The noise that a picture starts with, (B, *shape)."""
        start = self._drawn(self.generators)
        if self._others:
            other = Latents(self._drawn(self._others), ())
            start = slerp(Latents(start, ()), other, self._strength).z
        return start.to(device)

    def __call__(self, like: Tensor) -> Tensor:
        """Fresh noise (B, *shape) on the device and in the type of ``like``."""
        return self._drawn(self.generators).to(like)

    def _drawn(self, generators: Sequence[torch.Generator]) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=generator) for generator in generators])


def denoise(
    model: DiffusionModel,
    bound: Bound,
    start: Tensor,
    sigmas: Tensor,
    settings: Sampling,
    *,
    noise: Draws,
    context: Context,
    told: Told,
    wrap: Wrapper | None = None,
    repeats: int = 1,
) -> Tensor:
    """Walk ``start`` (B, C, h, w), a state at ``sigmas[0]``, down to ``sigmas[-1]``.

    ``wrap`` goes around the guided denoiser (a known region). ``told(step, steps, x0)`` hears of every step,
    counted from 1; every step is walked ``repeats`` times (RePaint). Raises
    :class:`~vitrail.errors.NonFiniteError` where a step gave no numbers,
    :class:`~vitrail.errors.CancelledError` before the next network pass after a cancel.
    """
    bound.step, bound.steps = 0, len(sigmas) - 1
    # A network that takes the scale as an input (LCM) answers guided, and its pair is the same twice.
    parts: Sequence[Any] = getattr(bound, "bounds", (bound,))
    for part in parts:
        if getattr(part, "guidance", None) is not None:
            part.guidance = settings.cfg_scale

    def cond(x: Tensor, sigma: Tensor) -> Tensor:
        context.check()
        return bound.cond(x, sigma)

    def pair(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        context.check()
        return bound.pair(x, sigma)

    def after_step(step: int, steps: int, x0: Tensor) -> None:
        context.check()
        bound.step = step + 1
        told(step + 1, steps, x0)

    denoiser = with_paired_guidance(
        pair,
        cond,
        settings.cfg_scale,
        settings.guidance_interval,
        settings.cfg_rescale,
        path=model.path,
    )
    if wrap is not None:
        denoiser = wrap(denoiser)
    solver = with_resampling(SAMPLERS[settings.sampler].function, repeats)
    with _hastened(model, bound, settings):
        return solver(denoiser, start, sigmas, path=model.path, noise=noise, callback=after_step)


def _hastened(model: DiffusionModel, bound: Bound, settings: Sampling) -> AbstractContextManager[object]:
    """What a ``fast`` request asks of the network itself, for one walk."""
    reusing: Callable[[], AbstractContextManager[object]] | None = getattr(model, "reusing", None)
    # Tiles take turns in the network: what one left behind is of no use to the next.
    if not getattr(settings, "fast", False) or reusing is None or hasattr(bound, "bounds"):
        return nullcontext()
    return reusing()


def precision_of(context: Context) -> Precision:
    """Return the precision to compute in: the context's, or bfloat16 where the device is fast with it."""
    if context.precision != "auto":
        return context.precision
    return "bfloat16" if fast_bfloat16(context.device) else "float32"


def check_sampling(request: object, name: str, path: NoisePath) -> None:
    """Raise :class:`InputError` for a sampler, schedule or shift that model ``name`` has no use for."""
    sampler, schedule, shift = (getattr(request, key, None) for key in ("sampler", "schedule", "shift"))
    own = tuple(key for key, info in SAMPLERS.items() if path.name in info.paths)
    if sampler is not None and sampler not in own:
        raise InputError(f"sampler {sampler} is not for model {name}; use one of {', '.join(own)}")
    if schedule is not None and schedule not in SCHEDULES:
        raise InputError(f"schedule {schedule} is not for model {name}; use one of {', '.join(SCHEDULES)}")
    if shift not in (None, 1.0) and path.name != "flow":
        raise InputError(f"shift is not for model {name}, whose noise is not a flow's; leave it out")
