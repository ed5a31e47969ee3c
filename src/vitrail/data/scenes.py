"""Simple grounds for scenes ("in a garden", "at night"), painted by rule so that their captions are exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCENES", "Scene", "paint_scene"]

Rgb = tuple[int, int, int]
Canvas = NDArray[np.float32]


class Scene(NamedTuple):
    """A place: phrases that name it, its ground colour, where the ground begins, and what else is in it.

    phrases follow a noun phrase.  floor: height of the horizon from the top, 0..1 (1 = no ground, objects
    float). around: what an object stands before, RGB, to keep enough contrast.  furniture: concepts drawn
    small on the ground.
    """

    phrases: tuple[str, ...]
    sky: tuple[Rgb, Rgb]
    ground: tuple[Rgb, Rgb]
    floor: float
    around: Rgb
    extra: str = ""
    furniture: tuple[str, ...] = ()


FLOWERS = ("1f337", "1f339", "1f33c", "1f33b", "1f33a")
SCENES: dict[str, Scene] = {
    "garden": Scene(
        ("in a garden", "in the garden", "in a flower garden"),
        ((150, 210, 250), (205, 235, 252)),
        ((120, 195, 80), (85, 165, 60)),
        0.5,
        (140, 195, 120),
        furniture=FLOWERS,
    ),
    "grass": Scene(
        ("on the grass", "on green grass", "in a meadow", "on a lawn", "in a field"),
        ((140, 205, 250), (200, 232, 252)),
        ((115, 190, 75), (80, 160, 55)),
        0.55,
        (140, 195, 120),
    ),
    "forest": Scene(
        ("in a forest", "in the forest", "in the woods"),
        ((160, 200, 170), (120, 170, 130)),
        ((75, 130, 60), (55, 100, 45)),
        0.6,
        (90, 140, 90),
        furniture=("1f332", "1f333"),
    ),
    "snow": Scene(
        ("in the snow", "on snow", "in a snowy landscape"),
        ((170, 195, 225), (205, 220, 238)),
        ((248, 250, 255), (228, 236, 248)),
        0.55,
        (225, 232, 245),
        "flakes",
    ),
    "beach": Scene(
        ("on the beach", "on a beach", "at the beach", "by the sea"),
        ((110, 195, 250), (190, 230, 252)),
        ((245, 222, 160), (232, 200, 130)),
        0.6,
        (235, 215, 165),
        "sea",
    ),
    "desert": Scene(
        ("in the desert", "in a desert"),
        ((255, 190, 110), (255, 225, 165)),
        ((235, 185, 100), (215, 155, 70)),
        0.58,
        (240, 190, 110),
    ),
    "sea": Scene(
        ("in the sea", "in the water", "in the ocean", "under water"),
        ((70, 165, 225), (35, 115, 190)),
        ((35, 115, 190), (20, 80, 150)),
        1.0,
        (45, 125, 195),
        "bubbles",
    ),
    "sky": Scene(
        ("in the sky", "in the clouds", "among the clouds"),
        ((95, 175, 245), (185, 225, 252)),
        ((185, 225, 252), (185, 225, 252)),
        1.0,
        (140, 200, 250),
        "clouds",
    ),
    "night": Scene(
        ("at night", "under the stars", "in the night", "under a starry sky"),
        ((15, 20, 60), (40, 45, 100)),
        ((35, 55, 60), (25, 40, 45)),
        0.72,
        (30, 38, 80),
        "stars",
    ),
    "rain": Scene(
        ("in the rain", "on a rainy day"),
        ((120, 135, 155), (160, 172, 188)),
        ((110, 120, 125), (90, 100, 108)),
        0.7,
        (130, 142, 158),
        "drops",
    ),
    "space": Scene(
        ("in space", "in outer space"),
        ((8, 6, 25), (28, 16, 58)),
        ((28, 16, 58), (28, 16, 58)),
        1.0,
        (18, 10, 40),
        "stars",
    ),
}


def paint_scene(name: str, size: int, seed: int) -> Canvas:
    """Paint the ground of a scene: float32 RGB (size, size, 3), 0..255; the same picture at any size."""
    scene = SCENES[name]
    rng = np.random.default_rng([seed, 11])
    shade = rng.uniform(-10, 10, 3)
    y = ((np.arange(size) + 0.5) / size)[:, None]
    horizon = scene.floor + float(rng.uniform(-0.04, 0.04)) if scene.floor < 1 else 1.0
    sky, ground = (np.array(pair, np.float64) + shade for pair in (scene.sky, scene.ground))
    upper = sky[0] + (sky[1] - sky[0]) * np.clip(y / max(horizon, 1e-3), 0, 1)
    lower = ground[0] + (ground[1] - ground[0]) * np.clip((y - horizon) / max(1 - horizon, 1e-3), 0, 1)
    edge = np.clip((y - horizon) * size + 0.5, 0, 1)
    canvas: Canvas = np.repeat((upper + (lower - upper) * edge)[:, None], size, axis=1).astype(np.float32)
    if scene.extra:
        _EXTRAS[scene.extra](canvas, rng, horizon)
    return np.clip(canvas, 0, 255)


def _spot(canvas: Canvas, x: float, y: float, rx: float, ry: float, rgb: Rgb, strength: float = 1.0) -> None:
    """A soft-edged ellipse, in units of the canvas."""
    size = canvas.shape[0]
    rx, ry = max(rx * size, 0.5), max(ry * size, 0.5)
    top, bottom = max(int(y * size - ry) - 1, 0), min(int(y * size + ry) + 2, size)
    left, right = max(int(x * size - rx) - 1, 0), min(int(x * size + rx) + 2, size)
    dy = (np.arange(top, bottom) + 0.5 - y * size)[:, None] / ry
    dx = (np.arange(left, right) + 0.5 - x * size)[None] / rx
    cover = (np.clip((1 - np.sqrt(dx * dx + dy * dy)) * min(rx, ry) + 0.5, 0, 1) * strength)[..., None]
    part = canvas[top:bottom, left:right]
    part += (np.array(rgb, np.float32) - part) * cover.astype(np.float32)


def _stars(canvas: Canvas, rng: np.random.Generator, horizon: float) -> None:
    for x, y, r in rng.random((22, 3)):
        _spot(canvas, x, y * horizon * 0.97, 0.006 + 0.01 * r, 0.006 + 0.01 * r, (255, 250, 215))


def _flakes(canvas: Canvas, rng: np.random.Generator, horizon: float) -> None:
    for x, y, r in rng.random((26, 3)):
        _spot(canvas, x, y * 0.95, 0.01 + 0.012 * r, 0.01 + 0.012 * r, (255, 255, 255))


def _drops(canvas: Canvas, rng: np.random.Generator, horizon: float) -> None:
    for x, y, r in rng.random((30, 3)):
        _spot(canvas, x, y, 0.008, 0.03 + 0.02 * r, (205, 225, 245), 0.8)


def _bubbles(canvas: Canvas, rng: np.random.Generator, horizon: float) -> None:
    for x, y, r in rng.random((10, 3)):
        _spot(canvas, x, y, 0.012 + 0.02 * r, 0.012 + 0.02 * r, (190, 230, 250), 0.6)


def _clouds(canvas: Canvas, rng: np.random.Generator, horizon: float) -> None:
    for x, y, r in rng.random((5, 3)):
        for dx, dy, w in ((-0.09, 0.02, 0.08), (0.0, -0.02, 0.1), (0.09, 0.02, 0.08)):
            _spot(canvas, x + dx, y + dy, w * (0.8 + 0.5 * r), 0.05 + 0.03 * r, (255, 255, 255), 0.92)


def _sea(canvas: Canvas, rng: np.random.Generator, horizon: float) -> None:
    size = canvas.shape[0]
    top, bottom = round((horizon - 0.22) * size), round(horizon * size)
    canvas[top:bottom] = np.linspace((45, 135, 205), (80, 185, 225), bottom - top, dtype=np.float32)[:, None]


_EXTRAS: dict[str, Callable[[Canvas, np.random.Generator, float], None]] = {
    "stars": _stars,
    "flakes": _flakes,
    "drops": _drops,
    "bubbles": _bubbles,
    "clouds": _clouds,
    "sea": _sea,
}
