"""Pictures composed on the fly from the emoji set, with captions that say exactly what is in them.

A tenth of all (object, colour), (A, relation, B) and (object, scene) combinations is held out by hash:
training never draws them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vitrail.data.captions import names, number_of, plain_name, plural, with_article
from vitrail.data.composition import (
    HELD_OUT_SHARE,
    Item,
    Rendition,
    Spec,
    Task,
    colour_key,
    held_out,
    relation_key,
    render,
    scene_key,
)
from vitrail.data.emoji_bank import EmojiBank, EmojiRecord
from vitrail.data.object_index import COLOURS, ObjectIndex, colour_name
from vitrail.data.scenes import SCENES, Scene

__all__ = ["HELD_OUT_SHARE", "Item", "Spec", "Synthesiser", "held_out", "held_out_compositions", "render"]

NUMBER_WORDS = ("", "one", "two", "three", "four")
TASK_WEIGHTS: dict[Task, float] = {
    "recolour": 0.20,
    "background": 0.14,
    "count": 0.16,
    "pair": 0.21,
    "size": 0.07,
    "rendition": 0.09,
    "scene": 0.13,
}


HELD_OUT_TASKS: tuple[Task, ...] = ("recolour", "pair", "scene")


def _bare(record: EmojiRecord, rng: np.random.Generator) -> str:
    """A bare name, mostly CLDR's own."""
    choices = [name for name in names(record.name_en) if number_of(name) == "singular"]
    if len(choices) > 1 and rng.random() < 0.4:
        return choices[1 + int(rng.integers(len(choices) - 1))]
    return choices[0] if choices else plain_name(record.name_en)


_COLOUR_WORDS = re.compile(
    r"\b(light blue|red|orange|yellow|green|blue|purple|pink|brown|black|white|grey|golden|gold|silver|"
    r"colourful) (?=\w)"
)


def without_colour(name: str) -> str:
    """ "red apple" -> "apple"; a name that is a colour alone stays."""
    return _COLOUR_WORDS.sub("", name).strip() or name


class Synthesiser:
    """Draws specs for training from a bank, and held-out ones for measuring.

    Only pictures of the split "train" appear. All chance comes from the generator that is passed in.
    """

    def __init__(self, bank: EmojiBank, index: ObjectIndex | None = None) -> None:
        self.bank = bank
        self.index = index if index is not None else ObjectIndex.of(bank)
        self._makers: dict[Task, Callable[[np.random.Generator, bool], Spec | None]] = {
            "recolour": self._recolour,
            "background": self._background,
            "count": self._count,
            "pair": self._pair,
            "size": self._size,
            "rendition": self._rendition,
            "scene": self._scene,
        }
        self._tasks = [task for task in TASK_WEIGHTS if self.can_draw(task)]
        weights = np.array([TASK_WEIGHTS[task] for task in self._tasks])
        self._steps = np.cumsum(weights / weights.sum()) if self._tasks else weights

    @property
    def empty(self) -> bool:
        """True when the bank has nothing to compose (no plain train object)."""
        return not self._tasks

    def draw(self, rng: np.random.Generator) -> Spec:
        """A spec for training: never a held-out combination."""
        while True:
            position = min(int(np.searchsorted(self._steps, rng.random())), len(self._tasks) - 1)
            spec = self._makers[self._tasks[position]](rng, False)
            if spec is not None:
                return spec

    def draw_held_out(self, task: Task, rng: np.random.Generator) -> Spec | None:
        """A spec of a held-out combination (one of HELD_OUT_TASKS), or None when this draw hit none."""
        return self._makers[task](rng, True)

    def render(self, spec: Spec, size: int = 64) -> NDArray[np.uint8]:
        """Draw a spec: uint8 RGB (size, size, 3)."""
        return render(self.bank, self.index, spec, size)

    def can_draw(self, task: Task) -> bool:
        """Whether the bank has objects for a task."""
        return bool(self._pool(task).size)

    def _pool(self, task: Task) -> NDArray[np.int64]:
        if task == "recolour":
            return self.index.one_hue
        if task in ("count", "pair", "size", "scene"):
            return self.index.countable
        if task == "background":
            return self.index.on_ground
        return self.index.objects

    def _pick(self, task: Task, rng: np.random.Generator) -> int:
        return self.index.pick(self._pool(task), rng)

    def _spec(self, task: Task, caption: str, items: tuple[Item, ...], rng: np.random.Generator) -> Spec:
        styles = {self.bank.records[item.index].style_index for item in items}
        return Spec(task, caption, items, style=styles.pop() if len(styles) == 1 else 0)

    def _flip(self, i: int, rng: np.random.Generator) -> bool:
        return bool(self.index.flippable[i]) and rng.random() < 0.5

    def _recolour(self, rng: np.random.Generator, held: bool) -> Spec | None:
        i = self._pick("recolour", rng)
        record = self.bank.records[i]
        colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
        key = colour_key(record.concept, colour)
        if held_out(key) != held:
            return None
        name = f"{colour} {without_colour(_bare(record, rng))}"
        own = colour_name(self.index.hsv[i]) == colour
        item = Item(
            i, extent=float(rng.uniform(0.8, 0.95)), flip=self._flip(i, rng), colour="" if own else colour
        )
        spec = replace(self._spec("recolour", with_article(name), (item,), rng), key=key)
        if colour == "white" or rng.random() < 0.15:
            return self._on_background(spec, rng, COLOURS[colour].rgb)
        if rng.random() < 0.2:
            return replace(spec, caption=name)
        return spec

    def _on_background(
        self, spec: Spec, rng: np.random.Generator, *avoid: tuple[int, int, int]
    ) -> Spec | None:
        """The same scene on a coloured ground that its objects stand out from, or None after four tries."""
        for _ in range(4):
            ground = list(COLOURS)[int(rng.integers(len(COLOURS)))]
            if ground == "white":
                continue
            base = np.array(COLOURS[ground].rgb)
            if all(np.abs(base - np.array(colour)).sum() > 150 for colour in avoid):
                shade = np.clip(base + rng.uniform(-14, 14) + rng.uniform(-6, 6, 3), 0, 255)
                fade = np.clip(shade + rng.uniform(-30, 30), 0, 255) if rng.random() < 0.25 else shade
                red, green, blue = (round(float(c)) for c in shade)
                frame = (" on a {} background", " against a {} background", ", {} background")[
                    int(rng.integers(3))
                ]
                end = tuple(round(float(c)) for c in fade)
                return replace(
                    spec,
                    caption=spec.caption + frame.format(ground).replace(" a orange", " an orange"),
                    background=(red, green, blue),
                    background_end=(end[0], end[1], end[2]),
                )
        return None

    def _mean(self, i: int) -> tuple[int, int, int]:
        red, green, blue = (int(c) for c in self.index.mean_rgb[i])
        return red, green, blue

    def _background(self, rng: np.random.Generator, held: bool) -> Spec | None:
        i = self._pick("background", rng)
        item = Item(i, extent=float(rng.uniform(0.7, 0.9)), flip=self._flip(i, rng))
        caption = with_article(_bare(self.bank.records[i], rng))
        return self._on_background(self._spec("background", caption, (item,), rng), rng, self._mean(i))

    def _count(self, rng: np.random.Generator, held: bool) -> Spec | None:
        i = self._pick("count", rng)
        number = int(rng.integers(1, 5))
        name = _bare(self.bank.records[i], rng)
        many = plural(name)
        if many is None:
            return None
        colour = ""
        if self.index.is_one_hue[i] and rng.random() < 0.2:
            colour = [c for c in COLOURS if c != "white"][int(rng.integers(len(COLOURS) - 1))]
            if held_out(colour_key(self.bank.records[i].concept, colour)):
                return None
            name, many = f"{colour} {without_colour(name)}", f"{colour} {without_colour(many)}"
        noun = name if number == 1 else many
        layouts = _LAYOUTS[number]
        slots = layouts[int(rng.integers(len(layouts)))]
        extent = (0.0, 0.8, 0.46, 0.42, 0.42)[number] * float(rng.uniform(0.9, 1.0))
        jitter = 0.0 if number == 1 else 0.02
        flip = self._flip(i, rng)
        items = tuple(
            Item(
                i,
                x + float(rng.uniform(-jitter, jitter)),
                y + float(rng.uniform(-jitter, jitter)),
                extent,
                flip,
                colour,
            )
            for x, y in slots
        )
        spec = self._spec("count", f"{NUMBER_WORDS[number]} {noun}", items, rng)
        return self._on_background(spec, rng, self._mean(i)) if not colour and rng.random() < 0.1 else spec

    def _pair(self, rng: np.random.Generator, held: bool) -> Spec | None:
        i = self._pick("pair", rng)
        same_house = self.index.countable_of_style[self.bank.records[i].style_index]
        pool = same_house if rng.random() < 0.95 else self.index.countable
        j = self.index.pick(pool, rng)
        first, second = self.bank.records[i], self.bank.records[j]
        if first.concept == second.concept or first.name_en == second.name_en:
            return None
        relation = ("left", "right", "above", "below", "and")[int(rng.integers(5 if not held else 4))]
        place = relation if relation != "and" else ("left", "right")[int(rng.integers(2))]
        key = relation_key(first.concept, place, second.concept)
        if held_out(key) != held:
            return None
        (a, paint_a), (b, paint_b) = (self._perhaps_painted(k, rng) for k in (i, j))
        frames = _RELATIONS[relation]
        caption = frames[int(rng.integers(len(frames)))].format(a=a, b=b)
        extent = rng.uniform(0.4, 0.48, 2)
        near, far = 0.26 + rng.uniform(-0.02, 0.02), 0.74 + rng.uniform(-0.02, 0.02)
        off = rng.uniform(-0.05, 0.05, 2)
        at = {"left": (near, far), "right": (far, near), "above": (near, far), "below": (far, near)}[place]
        if place in ("left", "right"):
            spots = ((at[0], 0.5 + off[0]), (at[1], 0.5 + off[1]))
        else:
            spots = ((0.5 + off[0], at[0]), (0.5 + off[1], at[1]))
        items = tuple(
            Item(k, float(spot[0]), float(spot[1]), float(e), self._flip(k, rng), paint)
            for k, spot, e, paint in zip((i, j), spots, extent, (paint_a, paint_b), strict=True)
        )
        spec = replace(self._spec("pair", caption, items, rng), key=key)
        if not held and not (paint_a or paint_b) and rng.random() < 0.1:
            return self._on_background(spec, rng, self._mean(i), self._mean(j))
        return spec

    def _perhaps_painted(self, i: int, rng: np.random.Generator) -> tuple[str, str]:
        """Noun phrase of an object, and the colour it is to be painted in: "" mostly."""
        name = _bare(self.bank.records[i], rng)
        if self.index.is_one_hue[i] and rng.random() < 0.3:
            colour = [c for c in COLOURS if c != "white"][int(rng.integers(len(COLOURS) - 1))]
            if not held_out(colour_key(self.bank.records[i].concept, colour)):
                return with_article(f"{colour} {without_colour(name)}"), colour
        return with_article(name), ""

    def _scene(self, rng: np.random.Generator, held: bool) -> Spec | None:
        i = self._pick("scene", rng)
        record = self.bank.records[i]
        place = list(SCENES)[int(rng.integers(len(SCENES)))]
        scene, key = SCENES[place], scene_key(record.concept, place)
        contrast = np.abs(self.index.mean_rgb[i] - np.array(scene.around)).sum()
        if held_out(key) != held or contrast < 70:
            return None
        a, paint = self._perhaps_painted(i, rng) if not held else (with_article(_bare(record, rng)), "")
        verb = ""
        if record.group in ("Animals & Nature", "People & Body") and rng.random() < 0.4:
            verb = ("sitting ", "standing ", "")[int(rng.integers(3))] if scene.floor < 1 else ""
        extent = float(rng.uniform(0.48, 0.68))
        y0, y1, x0, x1 = (int(edge) for edge in self.index.boxes[i])
        height = extent * (y1 - y0) / max(y1 - y0, x1 - x0)
        centre = (
            float(rng.uniform(0.86, 0.94)) - height / 2 if scene.floor < 1 else float(rng.uniform(0.42, 0.58))
        )
        item = Item(i, float(rng.uniform(0.38, 0.62)), centre, extent, self._flip(i, rng), paint)
        caption = f"{a} {verb}{scene.phrases[int(rng.integers(len(scene.phrases)))]}"
        items = (*self._furniture(scene, i, rng), item)
        spec = self._spec("scene", caption, items, rng)
        return replace(spec, key=key, scene=place, seed=int(rng.integers(2**31)))

    def _furniture(self, scene: Scene, i: int, rng: np.random.Generator) -> list[Item]:
        """Flowers or trees of the same house, behind the object."""
        style = self.bank.records[i].style_index
        pool = [
            k for c in scene.furniture if (k := self.index.train_of.get((c, style))) is not None and k != i
        ]
        if not pool:
            return []
        trees = scene.furniture[0] == "1f332"
        columns = np.linspace(0.12, 0.88, 5) + rng.uniform(-0.06, 0.06, 5)
        items = []
        for x in columns:
            extent = float(rng.uniform(0.4, 0.6) if trees else rng.uniform(0.15, 0.24))
            base = scene.floor + float(rng.uniform(0.02, 0.12) if trees else rng.uniform(0.12, 0.42))
            items.append(Item(pool[int(rng.integers(len(pool)))], float(x), base - extent / 2, extent))
        return sorted(items, key=lambda item: item.y + item.extent / 2)

    def _size(self, rng: np.random.Generator, held: bool) -> Spec | None:
        i = self._pick("size", rng)
        name = _bare(self.bank.records[i], rng)
        if number_of(name) != "singular":
            return None
        small = rng.random() < 0.6
        word = (("small", "tiny", "little") if small else ("big", "large", "huge"))[int(rng.integers(3))]
        extent = {"small": 0.42, "little": 0.42, "tiny": 0.28}.get(word, 1.0)
        jitter = 0.12 if small else 0.0
        x, y = 0.5 + rng.uniform(-jitter, jitter, 2)
        item = Item(i, float(x), float(y), extent * float(rng.uniform(0.94, 1.0)), self._flip(i, rng))
        return self._spec("size", with_article(f"{word} {name}"), (item,), rng)

    def _rendition(self, rng: np.random.Generator, held: bool) -> Spec | None:
        i = self._pick("rendition", rng)
        rendition: Rendition = ("line", "silhouette", "grey", "pixel")[int(rng.integers(4))]
        if rendition == "silhouette" and self.index.filled[i] > 0.9:
            return None  # a picture that fills its frame has the silhouette of a box
        frames = _RENDITIONS[rendition]
        name = _bare(self.bank.records[i], rng)
        caption = frames[int(rng.integers(len(frames)))].format(a=with_article(name), name=name)
        item = Item(i, extent=0.875, flip=self._flip(i, rng))
        return replace(self._spec("rendition", caption, (item,), rng), rendition=rendition)


_LAYOUTS: dict[int, tuple[tuple[tuple[float, float], ...], ...]] = {
    1: (((0.5, 0.5),),),
    2: (((0.26, 0.5), (0.74, 0.5)), ((0.28, 0.3), (0.72, 0.7)), ((0.72, 0.3), (0.28, 0.7))),
    3: (((0.5, 0.26), (0.26, 0.72), (0.74, 0.72)), ((0.26, 0.28), (0.74, 0.28), (0.5, 0.73))),
    4: (((0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74)),),
}

_RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("{a} to the left of {b}", "{a} left of {b}", "{a} on the left and {b} on the right"),
    "right": ("{a} to the right of {b}", "{a} right of {b}", "{a} on the right and {b} on the left"),
    "above": ("{a} above {b}", "{a} over {b}", "{a} at the top and {b} at the bottom"),
    "below": ("{a} below {b}", "{a} under {b}", "{a} at the bottom and {b} at the top"),
    "and": ("{a} and {b}", "{a} next to {b}", "{a} beside {b}", "{a} with {b}"),
}

_RENDITIONS: dict[str, tuple[str, ...]] = {
    "line": ("a line drawing of {a}", "an outline drawing of {a}", "a pencil sketch of {a}", "{a}, line art"),
    "silhouette": ("a black silhouette of {a}", "the silhouette of {a}", "{a}, black silhouette"),
    "grey": ("a black and white drawing of {a}", "a black and white picture of {a}", "{a} in greyscale"),
    "pixel": ("pixel art of {a}", "a pixel art {name}", "{a}, pixel art"),
}


def held_out_compositions(bank: EmojiBank, n: int, seed: int, index: ObjectIndex | None = None) -> list[Spec]:
    """n specs of combinations that training never draws: colours, relations and scenes by turns, no key
    twice.

    The objects themselves are trained ones. Fewer than n come back when the bank has no more to give.
    """
    maker = Synthesiser(bank, index)
    rng = np.random.default_rng([seed, 7])
    found: dict[str, Spec] = {}
    tasks = [task for task in HELD_OUT_TASKS if maker.can_draw(task)]
    for _ in range(400 * n if tasks else 0):
        if len(found) == n:
            break
        spec = maker.draw_held_out(tasks[len(found) % len(tasks)], rng)
        if spec is not None:
            found.setdefault(spec.key, spec)
    return list(found.values())
