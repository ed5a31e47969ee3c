"""Noise paths: how a picture and noise are mixed, and what a network's output says about the picture.

Every path is written in one noise coordinate ``sigma``, which falls to 0 as a picture is made::

    x(sigma) = alpha(sigma) * x0 + sigma * eps            eps ~ N(0, 1)

========  =================  ==================  ==========================================================
path      alpha(sigma)       sigma runs in       meaning
========  =================  ==================  ==========================================================
``VP``    1                  [0, sigma_max]      variance-preserving (DDPM) networks in the coordinate of
                                                 Karras et al. 2022, arXiv:2206.00364: x is the DDPM state
                                                 times sqrt(1 + sigma^2)
``Flow``  1 - sigma          [0, 1]              rectified flow, arXiv:2209.03003; sigma is the time t
========  =================  ==================  ==========================================================

On both, the probability-flow ODE reads dx/dsigma = (x - x0(x, sigma)) / sigma, so deterministic solvers
carry over unchanged. What differs is alpha, and with it everything that adds noise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitrail.errors import InputError

__all__ = ["VP", "Flow", "NoisePath", "Predicts", "spread"]

Predicts = Literal["x0", "eps", "v", "flow"]
"""What a network was trained to output, at x = alpha * x0 + sigma * eps:

``x0``   the picture;
``eps``  the noise;
``v``    (alpha * eps - sigma * x0) / sqrt(alpha^2 + sigma^2): Salimans and Ho 2022, arXiv:2202.00512, on any
path;
``flow`` eps - x0: the velocity of rectified flow.
"""

S = TypeVar("S", float, Tensor)


class NoisePath(Protocol):
    """What a solver, an adapter or a training objective needs to know about a noise path.

    ``sigma`` is a float or a tensor (B,); pictures are (B, ...).
    """

    @property
    def name(self) -> str:
        """``vp`` or ``flow``: the word in :attr:`SamplerInfo.paths`."""
        ...

    @property
    def sigma_min(self) -> float:
        """Smallest sigma above 0 that a schedule visits."""
        ...

    @property
    def sigma_max(self) -> float:
        """Sigma at which generation starts."""
        ...

    @property
    def sigma_limit(self) -> float:
        """Largest sigma that has a meaning on this path (infinity on VP)."""
        ...

    def alpha(self, sigma: S) -> S:
        """Weight of the picture at ``sigma``."""
        ...

    def log_snr(self, sigma: float) -> float:
        """Return lambda = log(alpha / sigma), half the log signal-to-noise ratio.

        Infinite at sigma 0, minus infinity where alpha is 0.
        """
        ...

    def sigma_at(self, log_snr: float) -> float:
        """Return the sigma at which :meth:`log_snr` is ``log_snr``."""
        ...

    def noised(self, x0: Tensor, eps: Tensor, sigma: float | Tensor) -> Tensor:
        """Return alpha * x0 + sigma * eps."""
        ...

    def start(self, eps: Tensor, sigma: float | None = None) -> Tensor:
        """Return the state that generation from nothing starts with, from standard normal noise ``eps``."""
        ...

    def target(self, x0: Tensor, eps: Tensor, sigma: float | Tensor, predicts: Predicts) -> Tensor:
        """Return what a network that predicts ``predicts`` should output."""
        ...

    def to_x0(self, output: Tensor, x: Tensor, sigma: float | Tensor, predicts: Predicts) -> Tensor:
        """Return the picture that ``output`` stands for at state ``x``."""
        ...

    def network_input(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Return ``x`` in the scale that networks of this path are trained with."""
        ...

    def time(self, sigma: Tensor) -> Tensor:
        """Return the time that networks of this path are conditioned on, (B,)."""
        ...

    def uniform(self, remaining: Sequence[float], *, discrete: bool) -> list[float]:
        """Return the sigmas at shares ``remaining`` (1 = all noise, 0 = none) of the training times."""
        ...


def spread(sigma: float | Tensor, like: Tensor) -> Tensor:
    """Return ``sigma`` as a tensor that multiplies ``like``: a number as (), (B,) as (B, 1, ...)."""
    level = torch.as_tensor(sigma, dtype=like.dtype, device=like.device)
    return level if level.ndim == 0 else level.reshape(-1, *([1] * (like.ndim - 1)))


class _Mixing(ABC):
    """The algebra that is the same on every path, given ``alpha``."""

    @abstractmethod
    def alpha(self, sigma: S) -> S:
        """Return the picture's share at ``sigma``."""

    def noised(self, x0: Tensor, eps: Tensor, sigma: float | Tensor) -> Tensor:
        """Return alpha * x0 + sigma * eps, shaped like ``x0``; sigma is a float or (B,)."""
        level = spread(sigma, x0)
        return self.alpha(level) * x0 + level * eps

    def target(self, x0: Tensor, eps: Tensor, sigma: float | Tensor, predicts: Predicts) -> Tensor:
        """Return what a network that predicts ``predicts`` should output; see :data:`Predicts`."""
        level = spread(sigma, x0)
        of_x0, of_eps = _weights(self.alpha(level), level, predicts)
        return of_x0 * x0 + of_eps * eps

    def to_x0(self, output: Tensor, x: Tensor, sigma: float | Tensor, predicts: Predicts) -> Tensor:
        """Return the picture (B, ...) that the network's ``output`` stands for at state ``x``.

        With output = p * x0 + q * eps and x = alpha * x0 + sigma * eps this is
        x0 = (q * x - sigma * output) / (alpha * q - sigma * p).

        Raises :class:`InputError` where the output does not determine the picture: ``eps`` at alpha 0.
        """
        if predicts == "x0":
            return output
        level = spread(sigma, x)
        alpha = self.alpha(level)
        of_x0, of_eps = _weights(alpha, level, predicts)
        determinant = alpha * of_eps - level * of_x0
        if predicts == "eps" and bool((determinant == 0).any()):
            raise InputError(
                "a noise prediction says nothing of the picture where there is only noise (flow, sigma 1); "
                "start below sigma 1 or use a network that predicts x0, v or flow"
            )
        return (of_eps * x - level * output) / determinant


def _weights(alpha: Tensor, sigma: Tensor, predicts: Predicts) -> tuple[Tensor | float, Tensor | float]:
    """Return (p, q) such that the target is p * x0 + q * eps."""
    if predicts == "x0":
        return 1.0, 0.0
    if predicts == "eps":
        return 0.0, 1.0
    if predicts == "flow":
        return -1.0, 1.0
    if predicts == "v":
        norm = (alpha**2 + sigma**2) ** 0.5
        return -sigma / norm, alpha / norm
    raise InputError(f"prediction {predicts!r} is unknown; use one of {', '.join(get_args(Predicts))}")


@dataclass(frozen=True)
class VP(_Mixing):
    """The variance-preserving path of DDPM networks: x = x0 + sigma * eps.

    The table of sigmas is that of a DDPM trained with ``train_steps`` betas; the defaults are Stable
    Diffusion's. The network itself sees x / sqrt(1 + sigma^2) and a time in [0, train_steps - 1]: see
    :meth:`network_input` and :meth:`time`. Raises :class:`InputError` for betas outside (0, 1) or an unknown
    ``beta_schedule``.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    train_steps: int = 1000
    beta_schedule: Literal["linear", "scaled_linear"] = "scaled_linear"

    def __post_init__(self) -> None:
        if not (0.0 < self.beta_start <= self.beta_end < 1.0):
            raise InputError(
                f"betas {self.beta_start} to {self.beta_end} are not allowed; they must rise within (0, 1)"
            )
        if self.train_steps < 2:
            raise InputError(f"train_steps is {self.train_steps}; at least 2 are needed")
        if self.beta_schedule not in ("linear", "scaled_linear"):
            raise InputError(f"beta_schedule {self.beta_schedule!r} is unknown; use linear or scaled_linear")

    @property
    def name(self) -> str:
        """``vp``."""
        return "vp"

    @cached_property
    def table(self) -> npt.NDArray[np.float64]:
        """Sigma of every training time, (train_steps,), rising: sqrt((1 - abar) / abar)."""
        if self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, self.train_steps)
        else:
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.train_steps) ** 2
        kept = np.cumprod(1.0 - betas)
        return np.sqrt((1.0 - kept) / kept)

    @property
    def sigma_min(self) -> float:
        """Sigma of the first training time (0.0292 for Stable Diffusion)."""
        return float(self.table[0])

    @property
    def sigma_max(self) -> float:
        """Sigma of the last training time (14.61 for Stable Diffusion)."""
        return float(self.table[-1])

    @property
    def sigma_limit(self) -> float:
        """No limit."""
        return math.inf

    def alpha(self, sigma: S) -> S:
        """Return 1, shaped like ``sigma``."""
        return torch.ones_like(sigma) if isinstance(sigma, Tensor) else 1.0

    def log_snr(self, sigma: float) -> float:
        """Return -log(sigma); infinite at 0."""
        return -math.log(sigma) if sigma > 0 else math.inf

    def sigma_at(self, log_snr: float) -> float:
        """Return exp(-log_snr)."""
        return math.exp(-log_snr)

    def start(self, eps: Tensor, sigma: float | None = None) -> Tensor:
        """Return sqrt(1 + sigma^2) * eps (``sigma`` defaults to ``sigma_max``): unit variance for the
        network.

        That is the spread of noised pictures of unit variance, and what DDIM-style schedulers start with; a
        start of sigma * eps differs by 0.2 % at sigma 14.6.
        """
        level = self.sigma_max if sigma is None else sigma
        return eps * math.sqrt(1.0 + level**2)

    def network_input(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Return x / sqrt(1 + sigma^2), the DDPM state."""
        return x / (1.0 + spread(sigma, x) ** 2) ** 0.5

    def time(self, sigma: Tensor) -> Tensor:
        """Return the training time in [0, train_steps - 1]: fractional, linear in log sigma between two."""
        levels = np.maximum(sigma.detach().double().cpu().numpy(), 1e-10)
        times = np.interp(np.log(levels), np.log(self.table), np.arange(self.train_steps, dtype=np.float64))
        return torch.from_numpy(np.asarray(times)).to(device=sigma.device, dtype=sigma.dtype)

    def uniform(self, remaining: Sequence[float], *, discrete: bool) -> list[float]:
        """Return the sigmas at shares ``remaining`` of the training times.

        ``discrete``: share r is the whole training time round(r * train_steps) - 1, so that only times which
        the
        network was trained with are visited; else time r * (train_steps - 1), linear in log sigma between
        two.
        """
        shares = np.asarray(remaining, dtype=np.float64)
        if discrete:
            indices = np.maximum(np.round(shares * self.train_steps).astype(np.int64) - 1, 0)
            return [float(sigma) for sigma in self.table[indices]]
        times = np.interp(shares * (self.train_steps - 1), np.arange(self.train_steps), np.log(self.table))
        return [float(sigma) for sigma in np.exp(times)]


@dataclass(frozen=True)
class Flow(_Mixing):
    """The straight path of rectified flow: x = (1 - sigma) * x0 + sigma * eps, where sigma is the time t.

    ``smallest`` is the last sigma above 0 of schedules that need one (Karras, exponential, sgm-uniform).
    """

    smallest: float = 0.001

    def __post_init__(self) -> None:
        if not 0.0 < self.smallest < 1.0:
            raise InputError(f"smallest sigma {self.smallest} is not allowed; it lies in (0, 1)")

    @property
    def name(self) -> str:
        """``flow``."""
        return "flow"

    @property
    def sigma_min(self) -> float:
        """``smallest``."""
        return self.smallest

    @property
    def sigma_max(self) -> float:
        """1."""
        return 1.0

    @property
    def sigma_limit(self) -> float:
        """1."""
        return 1.0

    def alpha(self, sigma: S) -> S:
        """Return 1 - sigma."""
        return 1.0 - sigma

    def log_snr(self, sigma: float) -> float:
        """Return log((1 - sigma) / sigma): infinite at 0, minus infinity at 1."""
        if sigma <= 0:
            return math.inf
        return math.log((1.0 - sigma) / sigma) if sigma < 1 else -math.inf

    def sigma_at(self, log_snr: float) -> float:
        """Return 1 / (1 + exp(log_snr))."""
        return 1.0 / (1.0 + math.exp(log_snr))

    def start(self, eps: Tensor, sigma: float | None = None) -> Tensor:
        """Return sigma * eps (``sigma`` defaults to 1, where this is exact)."""
        return eps * (self.sigma_max if sigma is None else sigma)

    def network_input(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Return ``x``: flow networks take the state as it is."""
        return x

    def time(self, sigma: Tensor) -> Tensor:
        """Return sigma: it is the time."""
        return sigma

    def uniform(self, remaining: Sequence[float], *, discrete: bool) -> list[float]:
        """Return the times at shares ``remaining``: the shares themselves, or (not ``discrete``) between
        ``smallest`` at 0 and 1."""
        if discrete:
            return [float(share) for share in remaining]
        return [self.smallest + float(share) * (1.0 - self.smallest) for share in remaining]
