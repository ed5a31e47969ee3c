"""What every solver does around its formula: check arguments, call the denoiser, watch for NaN, report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from vitrail.errors import InputError, NonFiniteError
from vitrail.samplers.denoisers import Denoiser
from vitrail.samplers.paths import NoisePath

__all__ = ["Callback", "Noise", "Sampler", "Walk"]

Noise = Callable[[Tensor], Tensor]
"""Returns fresh standard normal noise shaped like its argument."""

Callback = Callable[[int, int, Tensor], None]
"""Called after every step with (index of the step from 0, number of steps, the step's predicted x0).

It may raise, for instance :class:`vitrail.errors.CancelledError`: the solver stops there.
"""


class Sampler(Protocol):
    """A solver.

    denoiser: ``(x (B, ...), sigma (B,)) -> x0 (B, ...)``.
    x: state (B, ...) at ``sigmas[0]``, as :meth:`NoisePath.start` or :meth:`NoisePath.noised` make it.
        float32 or float64 is computed with as it is, lower precision is raised to float32. Not modified.
    sigmas: (steps + 1,), strictly falling, at least 0; usually ends in 0, where the state is the picture.
    path: the noise path of ``x``.
    noise: source of standard normal noise; deterministic solvers ignore it.
    callback: see :data:`Callback`.

    Returns the state at ``sigmas[-1]``, (B, ...), in float32 or float64. Records gradients where they are
    enabled; wrap a plain generation in ``torch.inference_mode()``.

    Raises :class:`InputError` for arguments that do not fit, :class:`NonFiniteError` naming the step at
    which the denoiser or the state stopped being finite, and whatever the callback raises.
    """

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigmas: Tensor,
        *,
        path: NoisePath,
        noise: Noise | None = None,
        callback: Callback | None = None,
    ) -> Tensor: ...


class Walk:
    """One run of a solver down its sigmas; iterating gives (sigma, next sigma) in float64, step by step."""

    def __init__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigmas: Tensor,
        path: NoisePath,
        noise: Noise | None,
        callback: Callback | None,
        *,
        stochastic: bool = False,
    ) -> None:
        if not x.is_floating_point() or x.ndim < 2:
            raise InputError(
                f"the state is {x.dtype} of shape {tuple(x.shape)}; floats of shape (B, ...) are needed"
            )
        if stochastic and noise is None:
            raise InputError("a stochastic sampler needs a noise source; give noise=")
        self.denoiser, self.noise, self.callback = denoiser, noise, callback
        self.levels = _checked(sigmas, path)
        self.steps = len(self.levels) - 1
        self.step = 0
        self.start = x if x.dtype in (torch.float32, torch.float64) else x.float()
        self._finite(self.start, "the starting state")

    def __iter__(self) -> Iterator[tuple[float, float]]:
        for step, (sigma, after) in enumerate(itertools.pairwise(self.levels)):
            self.step = step
            yield sigma, after

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """Return the denoiser's x0 in the state's precision; raises if not finite or of another shape."""
        x0 = self.denoiser(x, torch.full((len(x),), sigma, dtype=x.dtype, device=x.device))
        if x0.shape != x.shape:
            raise InputError(f"the denoiser returned {tuple(x0.shape)} for a state of {tuple(x.shape)}")
        x0 = x0.to(x.dtype)
        self._finite(x0, "the denoiser's answer")
        return x0

    def draw(self, x: Tensor) -> Tensor:
        """Return standard normal noise shaped like ``x``."""
        if self.noise is None:
            raise InputError("a stochastic sampler needs a noise source; give noise=")
        eps = self.noise(x)
        if eps.shape != x.shape:
            raise InputError(f"the noise source returned {tuple(eps.shape)} for a state of {tuple(x.shape)}")
        return eps.to(x)

    def finish(self, x: Tensor, x0: Tensor) -> None:
        """End a step that reached ``x`` with the prediction ``x0``: check it, then call the callback."""
        self._finite(x, "the state")
        if self.callback is not None:
            self.callback(self.step, self.steps, x0)

    def _finite(self, x: Tensor, what: str) -> None:
        if not bool(torch.isfinite(x).all()):
            raise NonFiniteError(
                f"step {self.step + 1} of {self.steps} (sigma {self.levels[self.step]:.4g}): "
                f"{what} is not finite; try float32, a lower guidance scale, more steps or another sampler"
            )


def _checked(sigmas: Tensor, path: NoisePath) -> list[float]:
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise InputError(
            f"sigmas have shape {tuple(sigmas.shape)}; (steps + 1,) with at least one step is needed"
        )
    levels = [float(level) for level in sigmas.detach().double().cpu().tolist()]
    falling = all(high > low for high, low in itertools.pairwise(levels))
    if not falling or levels[-1] < 0 or not math.isfinite(levels[0]):
        raise InputError("sigmas must be finite and strictly falling to 0 or above")
    if levels[0] > path.sigma_limit:
        raise InputError(
            f"sigmas start at {levels[0]:g}; on path {path.name} they are at most {path.sigma_limit:g}"
        )
    return levels
