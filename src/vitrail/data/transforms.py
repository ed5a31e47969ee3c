"""From a decoded picture to the pixels of a batch: cover a bucket, then vary.

Two steps. :func:`canvas` is the costly one and depends on the picture and the settings only, so it can be
cached; :func:`vary` applies one drawn :class:`Variation` to it. Both work on 8-bit RGB, and the result is
the same with and without a cache.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitrail.data.buckets import Bucket
from vitrail.errors import InputError
from vitrail.recipe.sections import MAX_CROP

__all__ = [
    "Augmentation",
    "Variation",
    "canvas",
    "canvas_size",
    "suggest_augmentation",
    "tells_sides",
    "vary",
]

Pixels = NDArray[np.uint8]

TINY_SET = 50
"""Below so many pictures :func:`suggest_augmentation` varies nothing."""

_SIDES = re.compile(
    r"\b(left|right|text|letters?|letterings?|words?|writing|written|numbers?|digits?|logos?|signs?|flags?|maps?|clocks?)\b"
    r"|[左右字旗]|数字|标志|地图|钟",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Augmentation:
    """How pictures are varied each time they are shown. The default varies nothing.

    flip: share of pictures mirrored left to right. A picture whose caption names a side, or something that is
        wrong when mirrored (text, flags, clocks), is never mirrored.
    crop: largest share of each side that is cut off, at a random place; 0 to 0.5 (`MAX_CROP`).
    jitter: how far brightness, contrast and saturation move, as a share; 0 to 0.5. A generator learns the
        moved colours as well as the true ones, so this is for tasks on top of pictures (judges, upsamplers).
    """

    flip: float = 0.0
    crop: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        for name, top in (("flip", 1.0), ("crop", MAX_CROP), ("jitter", 0.5)):
            value = getattr(self, name)
            if not 0.0 <= value <= top:
                raise InputError(
                    f"augmentation {name} {value} is not allowed; give a number from 0 to {top:g}"
                )

    def draw(self, unit: Sequence[float] | NDArray[np.float64], caption: str) -> Variation:
        """The variation that seven numbers in [0, 1) stand for."""
        shake = [1.0 + self.jitter * (2.0 * float(u) - 1.0) for u in unit[4:7]]
        return Variation(
            flip=bool(unit[0] < self.flip) and not tells_sides(caption),
            scale=1.0 - self.crop * float(unit[1]),
            left=float(unit[2]),
            top=float(unit[3]),
            brightness=shake[0],
            contrast=shake[1],
            saturation=shake[2],
        )


@dataclass(frozen=True)
class Variation:
    """One drawn variation. ``scale``: side of the window, as a share; ``left``, ``top``: where in the free
    room."""

    flip: bool = False
    scale: float = 1.0
    left: float = 0.5
    top: float = 0.5
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0


def tells_sides(caption: str) -> bool:
    """Whether mirroring could make a caption (English or Chinese) untrue."""
    return _SIDES.search(caption) is not None


def suggest_augmentation(count: int) -> tuple[Augmentation, str]:
    """What suits a set of ``count`` pictures, and why.

    Below 50 pictures: nothing. So few are shown hundreds of times each, a network then learns a mirrored or
    cropped version as one more picture, and a person who gives twenty pictures of a mascot wants that mascot.
    From 50 on: mirror half of them (it doubles what is seen and leaves no mark, except on text and sides,
    which are recognised by the caption) and cut off up to 6 % (it keeps the network from learning pixel
    positions by heart). Colour jitter never: a generator would reproduce it.
    """
    if count < TINY_SET:
        return (
            Augmentation(),
            f"{count} pictures are few: shown as they are, a varied copy would be learnt by heart",
        )
    return Augmentation(
        flip=0.5, crop=0.06
    ), "half of the pictures mirrored, up to 6 % cut off; colours as they are"


def canvas_size(bucket: Bucket, crop: float) -> tuple[int, int]:
    """(width, height) from which ``crop`` can be cut off without enlarging what is left."""
    return math.ceil(bucket.width / (1.0 - crop) - 1e-9), math.ceil(bucket.height / (1.0 - crop) - 1e-9)


def canvas(picture: Image.Image, bucket: Bucket, crop: float = 0.0) -> Pixels:
    """The middle of an RGB ``picture`` in the shape of ``bucket``, as uint8 (H, W, 3) of :func:`canvas_size`.

    Lanczos, antialiased; the whole shorter side is kept.
    """
    width, height = canvas_size(bucket, crop)
    if picture.mode != "RGB":
        raise InputError(f"a picture of mode {picture.mode} must be made RGB first (vitrail.images.flatten)")
    if picture.size == (width, height):
        return np.array(picture)
    share = min(picture.width / width, picture.height / height)
    left, top = (picture.width - share * width) / 2, (picture.height - share * height) / 2
    box = (left, top, min(left + share * width, picture.width), min(top + share * height, picture.height))
    # reducing_gap: whole-number averaging first where the picture is over three times too large; 5 times
    # faster.
    resized = picture.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return np.array(resized)


def vary(pixels: Pixels, bucket: Bucket, variation: Variation) -> Pixels:
    """Cut the window of ``variation`` out of a canvas, bring it to ``bucket``, mirror, move the colours."""
    height, width = pixels.shape[:2]
    if (width, height) != (bucket.width, bucket.height) or variation.scale < 1.0:
        w, h = width * variation.scale, height * variation.scale
        left, top = (width - w) * variation.left, (height - h) * variation.top
        box = (left, top, min(left + w, width), min(top + h, height))
        window = Image.fromarray(pixels).resize(
            (bucket.width, bucket.height), Image.Resampling.LANCZOS, box=box
        )
        pixels = np.asarray(window)
    if variation.flip:
        pixels = pixels[:, ::-1]
    if (variation.brightness, variation.contrast, variation.saturation) != (1.0, 1.0, 1.0):
        values = pixels.astype(np.float32) * np.float32(variation.brightness)
        red, green, blue = (values[..., i] * np.float32(w) for i, w in enumerate((0.299, 0.587, 0.114)))
        grey = red + green + blue  # ITU-R BT.601
        values = grey[..., None] + (values - grey[..., None]) * np.float32(variation.saturation)
        middle = grey.mean(dtype=np.float32)
        values = middle + (values - middle) * np.float32(variation.contrast)
        pixels = np.rint(values.clip(0, 255)).astype(np.uint8)
    return np.array(pixels, order="C")  # a copy: the canvas is kept and shown again
