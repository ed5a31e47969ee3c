"""A composed picture as data, and how it is drawn.

A :class:`Spec` holds everything that a picture depends on, so that :func:`render` is a plain function: the
training stream renders specs as it draws them, and the measuring side renders the very same specs as
references.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.data.emoji_bank import EmojiBank
from vitrail.data.object_index import COLOURS, ObjectIndex
from vitrail.data.pixels import area_resize, hsv_to_rgb, line_drawing, over, rgb_to_hsv
from vitrail.data.scenes import paint_scene

__all__ = [
    "HELD_OUT_SHARE",
    "Item",
    "Rendition",
    "Spec",
    "Task",
    "colour_key",
    "held_out",
    "relation_key",
    "render",
    "scene_key",
]

HELD_OUT_SHARE = 0.10
PIXEL_ART_BLOCKS = 16
Rendition = Literal["", "line", "silhouette", "grey", "pixel"]
Task = Literal["recolour", "background", "count", "pair", "size", "rendition", "scene"]


@dataclass(frozen=True)
class Item:
    """One object in a scene.

    index: record in the bank.  x, y: centre, and extent: longer side of its drawing, in units of the canvas.
    flip: mirrored.  colour: name in COLOURS to paint it in, "" for its own.
    """

    index: int
    x: float = 0.5
    y: float = 0.5
    extent: float = 0.9
    flip: bool = False
    colour: str = ""


@dataclass(frozen=True)
class Spec:
    """A composed picture: what kind of composition, its caption, the objects from back to front, and the
    rest.

    background, background_end: RGB 0..255 at the top and at the bottom.  style: style index for the model, 0
    where the objects come from two houses.  key: the combination that can be held out, "" if there is none.
    scene: name in SCENES painted instead of the background, with chance from `seed`.
    """

    task: Task
    caption: str
    items: tuple[Item, ...]
    background: tuple[int, int, int] = (255, 255, 255)
    background_end: tuple[int, int, int] = (255, 255, 255)
    rendition: Rendition = ""
    style: int = 0
    key: str = ""
    scene: str = ""
    seed: int = 0


@lru_cache(maxsize=65536)
def held_out(key: str) -> bool:
    """Whether a combination belongs to the tenth that training never sees; depends on the key alone."""
    digest = hashlib.blake2b(f"composition 1 {key}".encode(), digest_size=7).digest()
    return int.from_bytes(digest) / 2**56 < HELD_OUT_SHARE


def colour_key(concept: str, colour: str) -> str:
    """Key of (object, colour)."""
    return f"{concept} {colour}"


def scene_key(concept: str, scene: str) -> str:
    """Key of (object, scene)."""
    return f"{concept} in {scene}"


def relation_key(first: str, relation: str, second: str) -> str:
    """Key of (A, relation, B); "B right of A" is "A left of B", and "below" turns into "above" likewise."""
    if relation in ("right", "below"):
        first, second, relation = second, first, {"right": "left", "below": "above"}[relation]
    return f"{first} {relation} {second}"


# --- drawing a spec -------------------------------------------------------------------------------


def render(bank: EmojiBank, index: ObjectIndex, spec: Spec, size: int = 64) -> NDArray[np.uint8]:
    """Draw a spec: uint8 RGB (size, size, 3). The bank must hold pictures of that size."""
    if spec.scene:
        canvas = paint_scene(spec.scene, size, spec.seed)
    else:
        canvas = np.empty((size, size, 3), np.float32)
        top, bottom = np.array(spec.background, np.float32), np.array(spec.background_end, np.float32)
        canvas[:] = top + (bottom - top) * np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    fine = 2 * size if spec.rendition == "line" and 2 * size in bank.arrays else size
    if fine != size:
        canvas = canvas.repeat(2, axis=0).repeat(2, axis=1)
    for item in spec.items:
        picture = _drawn(bank, index, item, fine, spec.rendition)
        height, width = picture.shape[:2]
        step = fine // PIXEL_ART_BLOCKS if spec.rendition == "pixel" else 1  # pixel art keeps to one grid
        top, left = (
            round((at * fine - side / 2) / step) * step for at, side in ((item.y, height), (item.x, width))
        )
        over(canvas, picture, top, left)
    if spec.rendition == "line":
        canvas = line_drawing(canvas, fine // size)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _drawn(
    bank: EmojiBank, index: ObjectIndex, item: Item, size: int, rendition: Rendition
) -> NDArray[np.float32]:
    """One object cut to its drawing, scaled, painted: float32 (h, w, 4), premultiplied, 0..255 and alpha
    0..1.
    """
    factor = size / 64
    y0, y1, x0, x1 = (round(float(edge) * factor) for edge in index.boxes[item.index])
    cut = bank.pictures(size)[item.index, y0:y1, x0:x1].astype(np.float32)
    cut[..., 3] /= 255
    if item.colour:
        cut[..., :3] = _painted(cut[..., :3], index, item)
    if rendition == "silhouette":
        cut[..., :3] = 18
        cut[..., 3] = np.clip(cut[..., 3] * 1.5, 0, 1)
    elif rendition == "grey":
        cut[..., :3] = (cut[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    cut[..., :3] *= cut[..., 3:]
    scale = item.extent * size / max(cut.shape[:2])
    if rendition == "pixel":
        return _blocks(cut, size, scale)
    height, width = (max(2, round(side * scale)) for side in cut.shape[:2])
    if (height, width) != cut.shape[:2]:
        cut = area_resize(cut, height, width)
    return cut[:, ::-1] if item.flip else cut


def _blocks(cut: NDArray[np.float32], size: int, scale: float) -> NDArray[np.float32]:
    """Pixel art: the drawing on 16 blocks a side, hard edges, few shades."""
    block = size // PIXEL_ART_BLOCKS
    height, width = (max(2, round(side * scale / block)) for side in cut.shape[:2])
    small = area_resize(cut, height, width)
    alpha = small[..., 3:]
    colour = np.rint(small[..., :3] / np.maximum(alpha, 1e-3) / 24) * 24
    solid = (alpha > 0.45).astype(np.float32)
    small = np.concatenate([np.clip(colour, 0, 255) * solid, solid], axis=2)
    return small.repeat(block, axis=0).repeat(block, axis=1)


def _painted(rgb: NDArray[np.float32], index: ObjectIndex, item: Item) -> NDArray[np.float32]:
    """The pixels of the object's own hue in the named colour, their shading kept; the rest as it was."""
    hue, saturation, value = COLOURS[item.colour].hsv
    own_hue, own_saturation, own_value = index.hsv[item.index]
    hsv = rgb_to_hsv(rgb)
    distance = np.abs((hsv[..., 0] - own_hue + 0.5) % 1 - 0.5)
    part = (np.clip((0.16 - distance) / 0.05, 0, 1) * np.clip((hsv[..., 1] - 0.08) / 0.12, 0, 1))[..., None]
    painted = np.empty_like(hsv)
    painted[..., 0] = hue
    painted[..., 1] = np.clip(hsv[..., 1] * (saturation / max(own_saturation, 0.2)), 0, 1)
    contrast = 1.0 if value > 0.4 else 0.5
    painted[..., 2] = np.clip(value + (hsv[..., 2] - own_value) * contrast, 0, 1)
    result: NDArray[np.float32] = rgb + (hsv_to_rgb(painted) - rgb) * part
    return result
