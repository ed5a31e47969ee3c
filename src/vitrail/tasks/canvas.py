"""The canvas of a diffusion model: how large the picture and its state are, and the way between the two.

Three things may stand between a picture and the state that a network denoises: the model's autoencoder, an
upsampler (the shipped model draws small and is enlarged), and tiles, for a state larger than the network was
trained on. A task that has a :class:`Canvas` need not know which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from vitrail.backends.model import Bound, Conditioning, Control, DiffusionModel, KnownPicture
from vitrail.diffusion_fields import Wrap
from vitrail.errors import InputError, NonFiniteError
from vitrail.images import MAX_PIXELS
from vitrail.models.latent import Encoded
from vitrail.picture_headers import megapixels
from vitrail.runtime import Precision
from vitrail.tasks.pixel_model import PixelModel
from vitrail.tasks.windows import Tiled, Window, tent, windows_of
from vitrail.tasks.wrapping import circular, networks_of, wrap_pad

__all__ = ["Canvas", "canvas_around", "nearest_size", "plan_canvas", "working_size"]

#: Places beyond a wrapping edge that the upsampler is shown: as far as its convolutions see.
MARGIN = 8


@dataclass(frozen=True)
class Canvas:
    """What a model draws on.

    width, height: of the picture in pixels. rows, columns: of the state. cell: pixels of the picture, a side,
    that one place of the state stands for. window: (rows, columns) of a tile, None where the network takes
    the state whole. wrap_x, wrap_y: edges that meet.
    """

    model: DiffusionModel
    width: int
    height: int
    rows: int
    columns: int
    cell: int
    window: tuple[int, int] | None = None
    wrap_x: bool = False
    wrap_y: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, rows, columns) of one picture's state."""
        return self.model.latent_channels, self.rows, self.columns

    def windows(self) -> list[Window]:
        """The tiles; one of the whole state where there are none."""
        size = (self.rows, self.columns)
        turns = isinstance(self.model, PixelModel)
        return windows_of(size, self.window or size, (self.wrap_y, self.wrap_x), turns=turns)

    def bind(
        self,
        conditioning: Conditioning,
        precision: Precision,
        check: Callable[[], None],
        *,
        known: KnownPicture | None = None,
        controls: Sequence[Control] = (),
    ) -> Bound:
        """Bind the words to the model on this canvas; ``check`` is called before every tile."""
        if self.window is None:
            return self.model.bind(
                conditioning, self.width, self.height, precision, known=known, controls=controls
            )
        windows = self.windows()
        high, wide = (count * self.cell for count in self.window)
        bounds = [
            self.model.bind(
                conditioning,
                wide,
                high,
                precision,
                known=None
                if known is None
                else KnownPicture(window.cut(known.mask), window.cut(known.latent)),
                controls=[
                    replace(control, picture=_pixels_of(window, self.cell).cut(control.picture))
                    for control in controls
                ],
            )
            for window in (windows if known is not None or controls else windows[:1])
        ]
        return Tiled(bounds, windows, check)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the state (B, C, rows, columns) of pictures (B, 3, height, width) in [-1, 1]: its mean."""
        return self.encoded(pixels).z.float()

    def encoded(self, pixels: Tensor) -> Encoded:
        """Encode pictures (B, 3, height, width); in tiles, where there are some, to the mean alone."""
        autoencoder, downsample = self.model.autoencoder, self.model.autoencoder.latent.downsample
        high, wide = self.rows * downsample, self.columns * downsample
        if (high, wide) != (pixels.shape[2], pixels.shape[3]):
            pixels = functional.adaptive_avg_pool2d(pixels, (high, wide))
        if self.window is None or downsample == 1:
            with self._closed(autoencoder):
                return autoencoder.encode(pixels)
        # In tiles too, so that memory does not grow with the picture; each sees its surroundings.
        weight = tent(*self.window).to(pixels.device)
        z = pixels.new_zeros(len(pixels), *self.shape)
        total = pixels.new_zeros(1, 1, self.rows, self.columns)
        with self._closed(autoencoder):
            for part in self.windows():
                seen = _pixels_of(part, downsample).cut(pixels)
                part.add(z, autoencoder.encode(seen).z.float() * weight)
                part.add(total, weight)
        return _Mean(z / total)

    def nothing_known(self, device: torch.device) -> KnownPicture | None:
        """Return what a network that was trained to inpaint is told where everything is to be made: a grey
        picture under a mask of the whole; None for other networks."""
        if not self.model.needs_known:
            return None
        grey = torch.zeros(1, 3, self.height, self.width, device=device)
        return KnownPicture(torch.ones(1, 1, self.rows, self.columns, device=device), self.encode(grey))

    def decode(self, z: Tensor, precision: Precision, check: Callable[[], None] = lambda: None) -> Tensor:
        """Return the pictures (B, 3, height, width) of states (B, C, rows, columns), not clamped.

        Raises :class:`NonFiniteError` where the autoencoder gives no numbers.
        """
        if isinstance(self.model, PixelModel):
            pixels = self._enlarged(self.model, z, precision, check)
        else:
            pixels = self._decoded(z, check).float()
        if not bool(torch.isfinite(pixels).all()):
            # That of Stable Diffusion runs in float32 whatever is asked for: another one may help.
            remedy = "--precision float32" if isinstance(self.model, PixelModel) else "another with --vae"
            raise NonFiniteError(f"the autoencoder gave NaN or infinite values; try {remedy}")
        return pixels

    def look(self, z: Tensor) -> Tensor:
        """Return small rough pictures of states, for previews."""
        return self.model.autoencoder.decode(z).float()

    def glance(self, z: Tensor) -> Tensor:
        """As :meth:`look`, without the autoencoder's work where the model has a way around it."""
        preview = getattr(self.model, "preview", None)
        if preview is None:
            return self.look(z)
        small: Tensor = preview()(z.cpu())
        return functional.interpolate(small, scale_factor=4.0, mode="bilinear").clamp(-1.0, 1.0)

    def seams_closed(self) -> AbstractContextManager[None]:
        """Let the network see around the edges that wrap, for a block."""
        return self._closed(self.model)

    @contextmanager
    def _closed(self, holder: object) -> Iterator[None]:
        """Let the convolutions of the networks of ``holder`` go around the edges that wrap, for the block."""
        whole = self.window or (self.rows, self.columns)
        # A tile's own edges do not meet; where tiles run around the edge they close the seam.
        x = self.wrap_x and whole[1] == self.columns
        y = self.wrap_y and whole[0] == self.rows
        if isinstance(self.model, PixelModel) or not (x or y):
            yield
            return
        with circular(networks_of(holder), x=x, y=y):
            yield

    def _enlarged(
        self, model: PixelModel, z: Tensor, precision: Precision, check: Callable[[], None]
    ) -> Tensor:
        """Enlarge what a model of pixels drew; the upsampler is shown what lies beyond edges that wrap."""
        if self.cell == 1:
            return z.float()
        check()
        margin = min(MARGIN, self.rows, self.columns)
        seen = wrap_pad(z, margin, x=self.wrap_x, y=self.wrap_y)
        pixels = model.enlarge(seen, self.cell, precision)
        edge = margin * self.cell
        if self.wrap_x:
            pixels = pixels[..., edge:-edge]
        return pixels[..., edge:-edge, :] if self.wrap_y else pixels

    def _decoded(self, z: Tensor, check: Callable[[], None]) -> Tensor:
        autoencoder, downsample = self.model.autoencoder, self.model.autoencoder.latent.downsample
        with self._closed(autoencoder):
            if self.window is None:
                return autoencoder.decode(z)
            weight = tent(self.window[0] * downsample, self.window[1] * downsample).to(z.device)
            pixels = z.new_zeros(len(z), 3, self.rows * downsample, self.columns * downsample)
            total = z.new_zeros(1, 1, *pixels.shape[2:])
            for part in self.windows():
                check()
                place = _pixels_of(part, downsample)
                place.add(pixels, autoencoder.decode(part.cut(z)).float() * weight)
                place.add(total, weight)
        return pixels / total


@dataclass(frozen=True)
class _Mean:
    """A latent without its spread."""

    z: Tensor


def plan_canvas(
    model: DiffusionModel, width: int, height: int, *, tile: bool = False, seamless: Wrap = "none"
) -> Canvas:
    """Return the canvas for a picture of ``width`` x ``height`` pixels.

    Without ``tile`` the sizes are those that the model itself draws. Raises :class:`InputError` for a size
    that is not possible, naming what is.
    """
    if width * height > MAX_PIXELS:
        raise InputError(
            f"a picture of {width}x{height} pixels ({megapixels(width * height)}) is too large; "
            f"allowed are {megapixels(MAX_PIXELS)}"
        )
    wraps = {"wrap_x": "x" in seamless, "wrap_y": "y" in seamless}
    turning = isinstance(model, PixelModel) and seamless != "none"
    if not tile and not turning:
        rows, columns = model.latent_size(width, height)
        return Canvas(model, width, height, rows, columns, width // columns, None, **wraps)
    native = model.latent_size(model.defaults.width, model.defaults.height)
    cell = _cell(model, width, height, native)
    rows, columns = height // cell, width // cell
    window = (min(native[0], rows), min(native[1], columns))
    whole = window == (rows, columns) and not turning
    return Canvas(model, width, height, rows, columns, cell, None if whole else window, **wraps)


def nearest_size(model: DiffusionModel, width: int, height: int) -> tuple[int, int]:
    """Return the size in pixels, whole or in tiles, that is nearest to ``width`` x ``height``."""
    if isinstance(model, PixelModel):
        least, cell = _squares(model, width, height)
        return max(least, round(width / cell) * cell), max(least, round(height / cell) * cell)
    step = 8 * model.autoencoder.latent.downsample
    return max(step, round(width / step) * step), max(step, round(height / step) * step)


def working_size(
    model: DiffusionModel, width: int, height: int, *, tile: bool = False, area: bool = False
) -> tuple[int, int]:
    """Return the size at which a picture of ``width`` x ``height`` is drawn over.

    Its own, where the model draws about as large (from a quarter to twice and a quarter of its pixels) or it
    is done in tiles; else, and always for an ``area`` of a larger picture, scaled to the model's.
    """
    if isinstance(model, PixelModel):
        least, _ = _squares(model, width, height)
        if tile and min(width, height) >= least:
            return width, height
        share = least / min(width, height)
        return max(least, round(width * share)), max(least, round(height * share))
    native = model.defaults.width * model.defaults.height
    share = (native / (width * height)) ** 0.5
    if (not area and (tile or 1.0 / 2.25 <= share**2 <= 4.0)) or share == 1.0:
        return width, height
    return max(8, round(width * share)), max(8, round(height * share))


def canvas_around(
    model: DiffusionModel, width: int, height: int, *, tile: bool = False, seamless: Wrap = "none"
) -> Canvas:
    """Return the smallest canvas that holds ``width`` x ``height`` pixels; in tiles where it must be."""
    if isinstance(model, PixelModel):
        _, cell = _squares(model, width, height)
        steps: tuple[int, ...] = (cell,)
    else:
        downsample = model.autoencoder.latent.downsample
        steps = (downsample, 8 * downsample)
    for tiled in (False, True) if not tile else (True,):
        for step in steps:
            wide, high = -(-width // step) * step, -(-height // step) * step
            try:
                return plan_canvas(model, wide, high, tile=tiled, seamless=seamless)
            except InputError:
                if tiled and step == steps[-1]:
                    raise
    raise AssertionError("unreachable")


def _squares(model: PixelModel, width: int, height: int) -> tuple[int, int]:
    """The model's own side in pixels nearest to the shorter side, and the pixels a place that it means."""
    native, most = model.inner.native, model.defaults.width
    sides = [side for side in model.inner.sizes if side <= most]
    least = min(sides, key=lambda side: abs(side - min(width, height)))
    return least, least // native


def _cell(model: DiffusionModel, width: int, height: int, native: tuple[int, int]) -> int:
    """Pixels a place of the state, for a canvas in tiles."""
    if not isinstance(model, PixelModel):
        cell = model.autoencoder.latent.downsample
        if width % cell or height % cell:
            raise InputError(f"size {width}x{height} is not possible; sides are multiples of {cell}")
        return cell
    sides = [side // model.inner.native for side in model.inner.sizes]
    most = model.defaults.width // native[1]
    for cell in reversed([side for side in sides if side <= most]):
        fits = min(width, height) >= model.inner.native * cell
        if fits and width % cell == 0 and height % cell == 0:
            return cell
    raise InputError(
        f"size {width}x{height} is not possible in tiles; model {model.name} needs sides of "
        f"{model.inner.native} or more, in multiples of {most} from {model.defaults.width} on"
    )


def _pixels_of(window: Window, cell: int) -> Window:
    """The same window on a picture that is ``cell`` times larger than the state."""

    def spread(places: Tensor) -> Tensor:
        return (places[:, None] * cell + torch.arange(cell)).flatten()

    return Window(spread(window.rows), spread(window.columns))
