"""What any diffusion model gives to the tasks: an autoencoder, a noise path, a denoiser with its words bound.

The shipped pixel-space model, a Stable Diffusion checkpoint and whatever comes later all look like this, so
that every editing task is written once. A task asks :meth:`DiffusionModel.latent_size` for the canvas,
:meth:`DiffusionModel.read` for the prompt, :meth:`DiffusionModel.bind` for the denoiser, and calls a sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from vitrail.models.latent import Autoencoder
from vitrail.runtime import Precision
from vitrail.samplers.paths import NoisePath
from vitrail.schema import SamplingDefaults

__all__ = ["Bound", "Conditioning", "Control", "DiffusionModel", "KnownPicture"]


@dataclass(frozen=True)
class Conditioning:
    """A prompt and a negative prompt as one model reads them.

    ``payload`` belongs to the model that made it. ``understood_as``: the words that it was given where they
    are not the prompt's own (a translation). ``hints``: what it cannot serve well.
    """

    payload: Any
    understood_as: str | None = None
    hints: tuple[str, ...] = ()


@dataclass(frozen=True)
class KnownPicture:
    """What a network that was trained to inpaint is shown beside the state (9 input channels).

    mask: (1 or B, 1, h, w), 1 where the picture is to be made. latent: (1 or B, C, h, w), the picture encoded
    with the masked part grey, scaled.
    """

    mask: Tensor
    latent: Tensor


@dataclass(frozen=True)
class Control:
    """A ControlNet at work: its name or folder, its picture (1, 3, H, W) in [0, 1], how much, and when.

    ``interval``: (start, end) as shares of the steps.
    """

    name: str
    picture: Tensor
    strength: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)


class Bound(Protocol):
    """A denoiser with its words bound. x: (B, C, h, w), sigma: (B,).

    The task sets ``step`` (counted from 0) and ``steps`` before the first and after every step of the
    sampler: prompts may change on the way (``[a:b:0.5]``, ``[a|b]``).
    """

    step: int
    steps: int

    def cond(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return x0 for the prompt."""
        ...

    def pair(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return x0 for the prompt and for the negative prompt, from one batch of 2 B."""
        ...


class DiffusionModel(Protocol):
    """A diffusion model on a device, ready to run.

    ``latent_channels``: channels of the state. ``needs_known``: the network was trained to inpaint and
    takes a :class:`KnownPicture` at every pass. ``styles``: names of house styles, number 1 first.
    """

    @property
    def name(self) -> str:
        """What records call it."""
        ...

    @property
    def sha256(self) -> str:
        """SHA-256 of its weights."""
        ...

    @property
    def defaults(self) -> SamplingDefaults:
        """Its own settings."""
        ...

    @property
    def path(self) -> NoisePath:
        """The noise path that it was trained on."""
        ...

    @property
    def autoencoder(self) -> Autoencoder:
        """Pictures to states and back."""
        ...

    @property
    def latent_channels(self) -> int:
        """Channels of the state."""
        ...

    @property
    def needs_known(self) -> bool:
        """Whether it takes a :class:`KnownPicture` at every pass."""
        ...

    @property
    def styles(self) -> tuple[str, ...]:
        """Names of house styles, number 1 first."""
        ...

    def latent_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (h, w) of the state for a picture of ``width`` x ``height``.

        Raises :class:`~vitrail.errors.InputError` for a size that the model cannot draw, naming what it can.
        """
        ...

    def read(self, prompt: str, negative_prompt: str, style: str | None) -> Conditioning:
        """Read a prompt; :class:`~vitrail.errors.InputError` for a style or a LoRA that is not there."""
        ...

    def bind(
        self,
        conditioning: Conditioning,
        width: int,
        height: int,
        precision: Precision,
        *,
        known: KnownPicture | None = None,
        controls: Sequence[Control] = (),
    ) -> Bound:
        """Return the denoiser; the sizes in pixels are what a size-conditioned model is told."""
        ...
