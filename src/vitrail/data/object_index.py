"""What the composer knows of each picture: where its drawing lies, its colours, and what may be done with
it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitrail.data.captions import names, plural
from vitrail.data.emoji_bank import STYLES, EmojiBank, EmojiRecord
from vitrail.data.pixels import hsv_to_rgb, rgb_to_hsv

__all__ = ["COLOURS", "Colour", "ObjectIndex", "colour_name", "flip_safe"]


class Colour(NamedTuple):
    """A named colour: hsv in 0..1 to paint objects in, rgb 0..255 for grounds."""

    hsv: tuple[float, float, float]
    rgb: tuple[int, int, int]


def _colour(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = (
        round(float(c)) for c in hsv_to_rgb(np.array([hue / 360, saturation, value], np.float32))
    )
    return Colour((hue / 360, saturation, value), (red, green, blue))


COLOURS: dict[str, Colour] = {
    "red": _colour(2, 0.85, 0.88),
    "orange": _colour(28, 0.9, 0.98),
    "yellow": _colour(50, 0.8, 0.99),
    "green": _colour(130, 0.7, 0.7),
    "turquoise": _colour(178, 0.7, 0.82),
    "blue": _colour(218, 0.8, 0.88),
    "purple": _colour(275, 0.62, 0.75),
    "pink": _colour(335, 0.45, 0.98),
    "brown": _colour(22, 0.62, 0.5),
    "black": _colour(0, 0.03, 0.16),
    "grey": _colour(0, 0.02, 0.6),
    "white": _colour(0, 0.02, 0.96),
}
"""The twelve colours that captions name."""

_DIRECTED = re.compile(
    r"\b(left|right|leftwards|rightwards|facing|tilted|arrow|clock|watch|keyboard|newspaper|calendar|memo|map|"
    r"globe|book|page|banknote|sign|button|number|letter|input|station|atm|dna|chart|hour|musical|note|"
    r"record|score|receipt|card|thermometer|love-you|ring buoy|japanese|mahjong|medal|envelope|e-mail|t-rex|"
    r"pool|taxi|police|ambulance|bus|hotel|hospital|school|bank|store|vs|zzz|hundred|moon|dvd|video|television|ruler|"
    r"label|ticket|money|coin|postbox|identification|jersey|shirt|speech|battery|floppy|abacus)\b",
    re.IGNORECASE,
)


def flip_safe(record: EmojiRecord) -> bool:
    """Whether a mirrored picture still shows the same thing: no flags, symbols, directions, writing or
    dials.
    """
    return record.kind == "object" and not _DIRECTED.search(record.name_en)


def colour_name(hsv: NDArray[np.float32]) -> str:
    """The nearest of the twelve names for a dominant hue, or "" when it lies between two.

    hsv: (3,). Only clear cases count: a caption must not call an orange thing red.
    """
    hue, saturation, value = (float(v) for v in hsv)
    degrees = hue * 360
    if saturation < 0.45 or value < 0.45:
        return ""
    bands = {"red": (-12, 10), "orange": (20, 38), "yellow": (44, 58), "green": (80, 150), "blue": (200, 232)}
    for name, (low, high) in bands.items():
        if low <= (degrees + 90) % 360 - 90 <= high and (name != "orange" or value > 0.8):
            return name
    return "purple" if 262 <= degrees <= 292 else ""


@dataclass(frozen=True)
class ObjectIndex:
    """Per picture, N of them, in the order of the bank.

    boxes: int (N, 4) y0, y1, x0, x1 of the drawing on 64 pixels.  mean_rgb: float32 (N, 3), 0..255.
    hsv: float32 (N, 3), median of the pixels of the dominant hue.  hue_share: (N,) share of the drawing's
    area that is of that hue.  filled: (N,) share of the box that is drawn.  flippable: bool (N,).
    """

    records: tuple[EmojiRecord, ...]
    boxes: NDArray[np.int64]
    mean_rgb: NDArray[np.float32]
    hsv: NDArray[np.float32]
    hue_share: NDArray[np.float32]
    hue_purity: NDArray[np.float32]
    filled: NDArray[np.float32]
    flippable: NDArray[np.bool_]

    @staticmethod
    def of(bank: EmojiBank) -> ObjectIndex:
        """Measure every picture of a bank; about three seconds for ten thousand."""
        pictures = bank.pictures(64)
        count = len(bank)
        boxes = np.zeros((count, 4), np.int64)
        mean_rgb, hsv = np.zeros((count, 3), np.float32), np.zeros((count, 3), np.float32)
        share, purity, filled = (np.zeros(count, np.float32) for _ in range(3))
        for i in range(count):
            picture = pictures[i]
            alpha = picture[..., 3]
            rows, columns = np.flatnonzero(alpha.max(axis=1) > 24), np.flatnonzero(alpha.max(axis=0) > 24)
            if not rows.size or not columns.size:
                boxes[i] = 0, 64, 0, 64
                continue
            box = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
            boxes[i] = box
            solid = picture[box[0] : box[1] : 2, box[2] : box[3] : 2]
            solid = solid[solid[..., 3] > 127][:, :3].astype(np.float32)
            filled[i] = (alpha > 127).sum() / ((box[1] - box[0]) * (box[3] - box[2]))
            if len(solid) < 8:
                continue
            mean_rgb[i] = solid.mean(axis=0)
            hsv[i], share[i], purity[i] = _dominant(rgb_to_hsv(solid))
        flippable = np.array([flip_safe(record) for record in bank.records], bool)
        return ObjectIndex(tuple(bank.records), boxes, mean_rgb, hsv, share, purity, filled, flippable)

    @cached_property
    def objects(self) -> NDArray[np.int64]:
        """Train pictures of things that can stand in a scene."""
        return np.flatnonzero(
            [record.split == "train" and record.kind == "object" for record in self.records]
        )

    @cached_property
    def countable(self) -> NDArray[np.int64]:
        """Train pictures of things with a plural and a short name, not of faces, gestures or whole scenes."""
        return np.array(
            [i for i in self.objects if is_thing(self.records[i]) and self.filled[i] < 0.97], dtype=np.int64
        )

    @cached_property
    def on_ground(self) -> NDArray[np.int64]:
        """Train pictures that leave enough of the ground to be seen."""
        pool: NDArray[np.int64] = self.objects[self.filled[self.objects] < 0.92]
        return pool

    @cached_property
    def train_of(self) -> dict[tuple[str, int], int]:
        """(concept, style index) -> train picture."""
        return {(r.concept, r.style_index): i for i, r in enumerate(self.records) if r.split == "train"}

    @cached_property
    def is_one_hue(self) -> NDArray[np.bool_]:
        """Pictures that are mostly of one saturated hue, so that "a red ..." is true after painting that
        hue.
        """
        people = np.array([record.group == "People & Body" for record in self.records])
        one: NDArray[np.bool_] = (
            (self.hue_share > 0.5) & (self.hue_purity > 0.8) & (self.hsv[:, 1] > 0.3) & ~people
        )
        return one

    @cached_property
    def one_hue(self) -> NDArray[np.int64]:
        """Train pictures that may be painted in another colour."""
        return np.array([i for i in self.countable if self.is_one_hue[i]], dtype=np.int64)

    @cached_property
    def countable_of_style(self) -> dict[int, NDArray[np.int64]]:
        """`countable` by style index."""
        styles = np.array([record.style_index for record in self.records])
        return {s: self.countable[styles[self.countable] == s] for s in range(1, len(STYLES) + 1)}

    def pick(self, pool: NDArray[np.int64], rng: np.random.Generator) -> int:
        """One index of a pool, each picture as likely as any other."""
        return int(pool[int(rng.integers(len(pool)))])


def is_thing(record: EmojiRecord) -> bool:
    """Whether several of these make sense in one scene: "three cats", "a cat to the left of a tree"."""
    name = names(record.name_en)[0]
    if record.kind != "object" or plural(name) is None or len(name.split()) > 3:
        return False
    if re.search(
        r"\b(face|speech|thought|sun|at night|at dusk|symbol|suit|showing|without|done|arrival|departure|"
        r"rail|metro|restroom)\b",
        name,
    ):
        return False
    if record.group == "People & Body":
        if re.match(r"1f46[89]-200d|.*-200d-264[02]", record.concept):
            return False  # one of the three gendered forms of an activity is enough
        return len(name.split()) <= 2 and not re.search(
            r"hand|finger|fist|index|thumb|gesture|lip|palm", name
        )
    return True


def _dominant(hsv: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, float]:
    """Median colour of the largest hue cluster (within 25 degrees), its share of all pixels and of the
    saturated ones.
    """
    vivid = hsv[(hsv[:, 1] > 0.25) & (hsv[:, 2] > 0.2)]
    if len(vivid) < 8:
        return np.zeros(3, np.float32), 0.0, 0.0
    counts = np.bincount((vivid[:, 0] * 36).astype(np.int64) % 36, minlength=36)
    smooth = counts + np.roll(counts, 1) + np.roll(counts, -1)
    centre = (int(smooth.argmax()) + 0.5) / 36
    near = vivid[np.abs((vivid[:, 0] - centre + 0.5) % 1 - 0.5) < 25 / 360]
    offset = (near[:, 0] - centre + 0.5) % 1 - 0.5
    colour = np.array([(centre + float(np.median(offset))) % 1, *np.median(near[:, 1:], axis=0)], np.float32)
    return colour, len(near) / len(hsv), len(near) / len(vivid)
