"""The shipped kind of model, which draws pixels, as a :class:`~vitrail.backends.model.DiffusionModel`.

Its network knows one size; what is larger is drawn there and enlarged by the upsampler. So that pictures go
in as well as out, the canvas reduces them to that size (:mod:`vitrail.tasks.canvas`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitrail.backends.model import Conditioning, Control, KnownPicture
from vitrail.errors import InputError
from vitrail.models.canvas import Sketch
from vitrail.models.latent import Autoencoder, LatentSpec
from vitrail.runtime import Precision, autocast
from vitrail.samplers.paths import NoisePath
from vitrail.schema import SamplingDefaults
from vitrail.tasks.loading import TextToImageModel
from vitrail.tasks.reading import Reading, read_prompt

__all__ = ["PixelAutoencoder", "PixelModel"]


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


@dataclass
class PixelBound:
    """A pixel-space network with its words bound; see :class:`vitrail.backends.model.Bound`."""

    model: TextToImageModel
    reading: Reading
    precision: Precision
    step: int = 0
    steps: int = 1
    _sketches: dict[tuple[int, int], Sketch | None] = field(default_factory=dict)

    def cond(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return x0 for the prompt."""
        return self._network(x, sigma, slice(0, 1))

    def pair(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return x0 for the prompt and for the negative prompt, from one batch."""
        wanted, unwanted = self._network(x, sigma, slice(0, 2)).chunk(2)
        return wanted, unwanted

    def _network(self, x: Tensor, sigma: Tensor, rows: slice) -> Tensor:
        """Run the rows of the reading (wanted, unwanted) over the state x (B, ...) in one batch."""
        count, copies = len(x), rows.stop - rows.start
        states, mask, ids = (
            tensor[rows].repeat_interleave(count, dim=0)
            for tensor in (self.reading.states, self.reading.mask, self.reading.ids)
        )
        # The unwanted side keeps the style: guidance strengthens the words, and a style without words was
        # seen in training far more often than neither.
        styles = torch.full((count * copies,), self.reading.style, device=x.device)
        x, sigma = x.repeat(copies, 1, 1, 1), sigma.repeat(copies)
        path = self.model.path
        network, key = self.model.network, (copies, count)
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
        return PixelBound(self.inner, conditioning.payload, precision)

    def enlarge(self, pixels: Tensor, factor: int, precision: Precision) -> Tensor:
        """Return pictures (B, 3, H, W) ``factor`` times larger; a factor that :attr:`sizes` allows."""
        upsampler = self.inner.upsampler
        while factor > 1 and upsampler is not None:
            with autocast(pixels.device, precision):
                pixels = upsampler(pixels.clamp(-1.0, 1.0)).float()
            factor //= upsampler.config.scale
        return pixels
