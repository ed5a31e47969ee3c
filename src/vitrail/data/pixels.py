"""Small picture operations on numpy arrays that the composed training pictures are made with."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["area_resize", "hsv_to_rgb", "line_drawing", "over", "resize_matrix", "rgb_to_hsv"]


@lru_cache(maxsize=8192)
def resize_matrix(source: int, target: int) -> NDArray[np.float32]:
    """Weights (target, source) of a triangle filter as wide as the reduction; each row sums to 1."""
    scale = max(source / target, 1.0)
    centres = (np.arange(target) + 0.5) * source / target - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(source)[None] - centres[:, None]) / scale)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.ascontiguousarray(weights, np.float32)


def area_resize(picture: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize (h, w, c) with the triangle filter; colours must be premultiplied by alpha."""
    h, w, c = picture.shape
    rows = resize_matrix(h, height) @ picture.reshape(h, w * c)
    result: NDArray[np.float32] = np.matmul(resize_matrix(w, width)[None], rows.reshape(height, w, c))
    return result


def over(canvas: NDArray[np.float32], picture: NDArray[np.float32], top: int, left: int) -> None:
    """Lay a premultiplied (h, w, 4) picture, alpha 0..1, over an opaque (H, W, 3) canvas in place; parts
    outside are cut.
    """
    height, width = picture.shape[:2]
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + height, canvas.shape[0]), min(left + width, canvas.shape[1])
    if y0 >= y1 or x0 >= x1:
        return
    part = picture[y0 - top : y1 - top, x0 - left : x1 - left]
    ground = canvas[y0:y1, x0:x1]
    ground *= 1 - part[..., 3:]
    ground += part[..., :3]


def rgb_to_hsv(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """RGB 0..255 (..., 3) to hue, saturation, value in 0..1 (hexcone model, Smith 1978)."""
    rgb = rgb / np.float32(255)
    high, low = rgb.max(axis=-1), rgb.min(axis=-1)
    span = high - low
    safe = np.where(span > 0, span, 1)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    hue = np.where(
        high == red,
        (green - blue) / safe % 6,
        np.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    hsv = np.empty_like(rgb)
    hsv[..., 0] = np.where(span > 0, hue / 6, 0)
    hsv[..., 1] = np.where(high > 0, span / np.where(high > 0, high, 1), 0)
    hsv[..., 2] = high
    return hsv


def hsv_to_rgb(hsv: NDArray[np.float32]) -> NDArray[np.float32]:
    """Hue, saturation, value in 0..1 to RGB 0..255."""
    hue, saturation, value = hsv[..., 0:1] * 6, hsv[..., 1:2], hsv[..., 2:3]
    shift = (np.array([5, 3, 1], np.float32) + hue) % 6
    part = np.clip(np.minimum(shift, 4 - shift), 0, 1)
    result: NDArray[np.float32] = (255 * (value - value * saturation * part)).astype(np.float32)
    return result


def line_drawing(canvas: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Dark lines on white where colours of an opaque (H, W, 3) picture change, reduced by `factor`."""
    padded = np.pad(canvas, ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = np.abs(padded[1:-1, 2:] - padded[1:-1, :-2]).max(axis=2)
    down = np.abs(padded[2:, 1:-1] - padded[:-2, 1:-1]).max(axis=2)
    ink = np.clip((np.maximum(across, down) - 28) / 60, 0, 1)
    if factor > 1:
        side = ink.shape[0] // factor
        ink = ink.reshape(side, factor, side, factor).mean(axis=(1, 3))
        ink = np.clip(ink * 1.35, 0, 1)
    result: NDArray[np.float32] = np.repeat((255 - 235 * ink)[..., None], 3, axis=2).astype(np.float32)
    return result
