"""The shipped kind of model, which draws pixels, as a :class:`~vitrail.backends.model.DiffusionModel`.

Its network knows one size; what is larger is drawn there and enlarged by the upsampler. So that pictures go
in as well as out, the canvas reduces them to that size (:mod:`vitrail.tasks.canvas`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from vitrail.backends.model import Conditioning, Control, KnownPicture
from vitrail.errors import InputError
from vitrail.models.canvas import Sketch
from vitrail.models.latent import Autoencoder, LatentSpec
from vitrail.runtime import Precision, autocast
from vitrail.samplers.paths import NoisePath
from vitrail.schema import SamplingDefaults
from vitrail.tasks.loading import TextToImageModel
from vitrail.tasks.reading import Reading, read_prompt

__all__ = ["PixelAutoencoder", "PixelModel", "room"]


@dataclass(frozen=True)
class Pixels:
    """Pictures that are their own latents."""

    z: Tensor


class PixelAutoencoder:
    """Pictures (B, 3, H, W) as they are: the latent space of a model that draws pixels."""

    latent = LatentSpec(channels=3, downsample=1)

    def encode(self, x: Tensor) -> Pixels:
        """Return ``x``."""
        return Pixels(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return ``z``."""
        return z


@dataclass(frozen=True)
class _Asked:
    prompt: str
    negative_prompt: str
    style: str | None


STEP = 8
"""Prompts are given room for whole multiples of so many words."""


def room(reading: Reading) -> int:
    """Return how many words the network is given for a prompt, those that are not there included."""
    return -(-reading.ids.shape[1] // STEP) * STEP


def _all() -> None:
    """Say that every picture is still wanted."""


@dataclass(frozen=True)
class Words:
    """What the network is told: prompt and negative prompt of each of P pictures, or, for P = 1, of all.

    ``states`` (2, P, T, width), ``mask`` and ``ids`` (2, P, T), ``styles`` (P,). ``present``: asked before
    every pass, says which of the P pictures are still wanted; None for all of them.
    """

    states: Tensor
    mask: Tensor
    ids: Tensor
    styles: Tensor
    present: Callable[[], list[int] | None] = _all

    @classmethod
    def of(cls, readings: Sequence[Reading], present: Callable[[], list[int] | None] = _all) -> Words:
        """The words of one prompt, or of each of several pictures.

        They are filled up to full steps of :data:`STEP` with words that are not there. How many words there
        are decides the order in which attention adds up; of prompts with the same :func:`room`, each gets the
        same to the bit beside others as alone.
        """
        longest = max(room(reading) for reading in readings)

        def filled(tensors: list[Tensor]) -> Tensor:
            margins = [(0, 0) * (tensor.ndim - 2) + (0, longest - tensor.shape[1]) for tensor in tensors]
            return torch.stack([functional.pad(*pair) for pair in zip(tensors, margins, strict=True)], 1)

        return cls(
            filled([reading.states for reading in readings]),
            filled([reading.mask for reading in readings]),
            filled([reading.ids for reading in readings]),
            torch.tensor([reading.style for reading in readings], device=readings[0].states.device),
            present,
        )


@dataclass
class PixelBound:
    """A pixel-space network with its words bound; see :class:`vitrail.backends.model.Bound`."""

    model: TextToImageModel
    words: Words
    precision: Precision
    step: int = 0
    steps: int = 1
    _sketches: dict[tuple[int, ...], Sketch | None] = field(default_factory=dict)

    def cond(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return x0 for the prompt."""
        return self._answers(x, sigma, 1)[0]

    def pair(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return x0 for the prompt and for the negative prompt, from one batch."""
        wanted, unwanted = self._answers(x, sigma, 2)
        return wanted, unwanted

    def _answers(self, x: Tensor, sigma: Tensor, copies: int) -> tuple[Tensor, ...]:
        """Return x0 (B, ...) for the prompts and, for two ``copies``, for the negative prompts.

        What is no longer wanted costs nothing and is grey.
        """
        rows = self.words.present()
        if rows is None or len(rows) == len(x):
            return self._network(x, sigma, copies, None).chunk(copies)
        if not rows:  # the others of the batch left since the step began
            return (torch.zeros_like(x),) * copies
        answers = self._network(x[rows], sigma[rows], copies, rows).chunk(copies)
        return tuple(torch.zeros_like(x).index_copy(0, torch.tensor(rows), answer) for answer in answers)

    def _network(self, x: Tensor, sigma: Tensor, copies: int, rows: list[int] | None) -> Tensor:
        """Run the network over the state x (B, ...), ``rows`` of all that have words, in one batch."""
        count, words = len(x), self.words

        def spread(tensor: Tensor) -> Tensor:
            each = tensor[:copies] if rows is None else tensor[:copies, rows]
            return each.expand(-1, count, *each.shape[2:]).flatten(0, 1)

        states, mask, ids = spread(words.states), spread(words.mask), spread(words.ids)
        # The unwanted side keeps the style: guidance strengthens the words, and a style without words was
        # seen in training far more often than neither.
        styles = spread(words.styles.expand(copies, -1))
        x, sigma = x.repeat(copies, 1, 1, 1), sigma.repeat(copies)
        path = self.model.path
        key = (copies, count, *(rows or ()))
        network = self.model.half_network if self.precision == "bfloat16" else self.model.network
        with autocast(x.device, self.precision):
            if key not in self._sketches:
                self._sketches[key] = network.sketch(states, mask, styles)
            output: Tensor = network(x, path.time(sigma), states, mask, ids, styles, self._sketches[key])
        return path.to_x0(output.to(x.dtype), x, sigma, "x0")


class PixelModel:
    """A :class:`TextToImageModel` as every task on diffusion models sees one."""

    def __init__(self, inner: TextToImageModel) -> None:
        self.inner = inner
        self.name: str = inner.name
        self.sha256: str = inner.sha256
        self.defaults: SamplingDefaults = inner.defaults
        self.path: NoisePath = inner.path
        self.styles: tuple[str, ...] = inner.styles
        self.autoencoder: Autoencoder = PixelAutoencoder()
        self.latent_channels = 3
        self.needs_known = False

    def latent_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the network's own size, for squares that the upsampler reaches from it."""
        if width == height and width in self.inner.sizes:
            return self.inner.native, self.inner.native
        allowed = ", ".join(f"{size}x{size}" for size in self.inner.sizes)
        raise InputError(f"size {width}x{height} is not possible; model {self.name} makes {allowed}")

    def read(self, prompt: str, negative_prompt: str, style: str | None) -> Conditioning:
        """Translate and encode the words; :class:`InputError` for a style that the model does not have."""
        asked = _Asked(prompt, negative_prompt, style)
        reading = read_prompt(asked, self.name, self.inner.text, self.styles)
        return Conditioning(reading, reading.understood_as, reading.hints)

    def together(
        self, conditionings: Sequence[Conditioning], present: Callable[[], list[int] | None]
    ) -> Conditioning:
        """Return the words of a batch whose pictures have each their own; see :class:`Words`."""
        return Conditioning(Words.of([each.payload for each in conditionings], present))

    def bind(
        self,
        conditioning: Conditioning,
        width: int,
        height: int,
        precision: Precision,
        *,
        known: KnownPicture | None = None,
        controls: Sequence[Control] = (),
    ) -> PixelBound:
        """Return the denoiser; :class:`InputError` for a ControlNet, which is for Stable Diffusion."""
        if controls:
            raise InputError(f"control is not for model {self.name}, which draws pixels; leave it out")
        payload = conditioning.payload
        return PixelBound(
            self.inner, payload if isinstance(payload, Words) else Words.of([payload]), precision
        )

    def enlarge(self, pixels: Tensor, factor: int, precision: Precision) -> Tensor:
        """Return pictures (B, 3, H, W) ``factor`` times larger; a factor that :attr:`sizes` allows."""
        upsampler = self.inner.half_upsampler if precision == "bfloat16" else self.inner.upsampler
        while factor > 1 and upsampler is not None:
            with autocast(pixels.device, precision):
                pixels = upsampler(pixels.clamp(-1.0, 1.0)).float()
            factor //= upsampler.config.scale
        return pixels
