"""What the judge learns from and is asked about composed pictures: colours, relations, counts, places.

A :class:`Scene` is what a composed picture shows, in words that can be exchanged one at a time. Its wrong
captions are the attribute swaps (another colour, the relation turned round, another count), then the same
words for other objects. Combinations that the composer holds out are never used in the judge's training, not
even as wrong captions: it would learn that they are always wrong.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from vitrail.data.captions import names, plural, simple, with_article
from vitrail.data.composition import Spec, colour_key, held_out, relation_key, scene_key
from vitrail.data.emoji_bank import STYLES, EmojiBank, EmojiRecord
from vitrail.data.emoji_names import family_of
from vitrail.data.object_index import COLOURS
from vitrail.data.scenes import SCENES
from vitrail.data.synthesis import Synthesiser, held_out_compositions, without_colour
from vitrail.evaluation.matcher_training import MatcherBatch
from vitrail.evaluation.prompt_hits import OPTIONS, Question, seeded

__all__ = ["Scene", "SceneQuestions", "composed_pictures", "scene_of"]

RELATIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
COUNTS = ("one", "two", "three", "four")
_NEAR_PLACES = (("garden", "grass"), ("garden", "forest"), ("night", "space"))
_GROUND = re.compile(r"(?:on an?|against an?|,) (\w+) background$")


@dataclass(frozen=True)
class Scene:
    """The words of a composed picture.

    first, second: the things shown (second only with a relation). colour: of the first thing, "" for its own.
    relation: a key of RELATIONS. count: a word of COUNTS. ground: colour word of the background, "" for
    white. place: a key of ``vitrail.data.scenes.SCENES``, "" for none. key: the combination that can be held
    out, as the composer writes it.
    """

    first: EmojiRecord
    second: EmojiRecord | None = None
    colour: str = ""
    relation: str = ""
    count: str = ""
    ground: str = ""
    place: str = ""

    @property
    def caption(self) -> str:
        """The scene in one plain English line: "three red cups", "a cat above a dog on a blue background"."""
        name = names(self.first.name_en)[0]
        if self.colour:
            name = f"{self.colour} {without_colour(name)}"
        if self.count:
            many = plural(name)
            text = f"{self.count} {name if self.count == 'one' or many is None else many}"
        else:
            text = with_article(name)
        if self.second is not None:
            text = f"{text} {RELATIONS[self.relation]} {with_article(names(self.second.name_en)[0])}"
        if self.place:
            text = f"{text} {SCENES[self.place].phrases[0]}"
        if self.ground:
            text = f"{text} on {with_article(f'{self.ground} background')}"
        return text

    @property
    def key(self) -> str:
        """The combination that can be held out, "" where there is none; see ``vitrail.data.synthesis``."""
        if self.second is not None:
            return relation_key(self.first.concept, self.relation, self.second.concept)
        if self.place:
            return scene_key(self.first.concept, self.place)
        return colour_key(self.first.concept, self.colour) if self.colour else ""

    @property
    def task(self) -> str:
        """The kind of composition, for tables."""
        if self.second is not None:
            return "relation"
        if self.place:
            return "place"
        return "colour" if self.colour else "count" if self.count else "ground" if self.ground else "plain"


def scene_of(bank: EmojiBank, spec: Spec) -> Scene | None:
    """Return what a spec shows, or None for kinds that have no words to exchange (sizes, renditions)."""
    if spec.task in ("size", "rendition"):
        return None
    ground = _GROUND.search(spec.caption)
    if spec.task == "scene":
        return Scene(
            bank.records[spec.items[-1].index], place=spec.scene
        )  # what stands behind it is not named
    scene = Scene(bank.records[spec.items[0].index], ground=ground.group(1) if ground else "")
    if spec.task == "recolour":
        return replace(scene, colour=spec.key.split(" ")[1])
    if spec.task == "count":
        return replace(scene, count=COUNTS[len(spec.items) - 1], colour=spec.items[0].colour)
    if spec.task == "pair":
        one, two = spec.items
        dx, dy = two.x - one.x, two.y - one.y
        relation = ("left" if dx > 0 else "right") if abs(dx) > abs(dy) else ("above" if dy > 0 else "below")
        return replace(scene, second=bank.records[two.index], relation=relation)
    return scene


def _alike(one: EmojiRecord, other: EmojiRecord) -> bool:
    return (
        family_of(one.concept) == family_of(other.concept)
        or without_colour(names(one.name_en)[0]).lower() == without_colour(names(other.name_en)[0]).lower()
    )


def swaps(scene: Scene, draw: random.Random) -> list[Scene]:
    """Return scenes of the same objects with one attribute changed, in random order; each is wrong for
    ``scene``.

    For a relation also the same relation with the objects changed over.
    """
    found: list[Scene] = []
    if scene.second is not None:
        found += [replace(scene, relation=relation) for relation in RELATIONS if relation != scene.relation]
        turned = replace(scene, first=scene.second, second=scene.first)
        sideways = ("left", "right") if scene.relation in ("left", "right") else ("above", "below")
        across = ("above", "below") if sideways[0] == "left" else ("left", "right")
        found += [turned, replace(turned, relation=across[draw.randrange(2)])]
    elif scene.place:
        near = {scene.place, *(place for pair in _NEAR_PLACES if scene.place in pair for place in pair)}
        found += [replace(scene, place=place) for place in SCENES if place not in near]
    elif scene.colour and not scene.count:
        found += [replace(scene, colour=c) for c in COLOURS if c not in (scene.colour, scene.ground)]
    elif scene.count:
        found += [replace(scene, count=count) for count in COUNTS if count != scene.count]
        if scene.colour:
            found += [replace(scene, colour=c) for c in COLOURS if c not in (scene.colour, scene.ground)][:4]
    elif scene.ground:
        found += [replace(scene, ground=c) for c in COLOURS if c not in (scene.ground, "white")]
    return draw.sample(found, len(found))


def others(scene: Scene, things: Sequence[EmojiRecord], draw: random.Random, *, change: str) -> Scene:
    """Return ``scene`` with other objects out of ``things``: ``change`` is "first", "second" or "both"."""

    def other() -> EmojiRecord:
        while True:
            thing = things[draw.randrange(len(things))]
            if not any(_alike(thing, known) for known in (scene.first, scene.second) if known is not None):
                return thing

    first = other() if change in ("first", "both") or scene.second is None else scene.first
    second = scene.second
    if second is not None and change in ("second", "both"):
        second = other()
        while _alike(first, second):
            second = other()
    changed = replace(scene, first=first, second=second)
    if change == "both" and scene.second is None:
        different = swaps(changed, draw)
        return different[0] if different else changed
    return changed


def _things(bank: EmojiBank, rows: Sequence[int]) -> list[EmojiRecord]:
    """One record a concept, in the order of the bank."""
    found: dict[str, EmojiRecord] = {}
    for row in rows:
        found.setdefault(bank.records[row].concept, bank.records[row])
    return list(found.values())


def composed_pictures(
    bank: EmojiBank, composer: Synthesiser, size: int, batch: int, seed: int
) -> Iterator[MatcherBatch]:
    """Yield endless batches of composed training pictures with two wrong captions each, a function of the
    seed.

    Half of the captions are the composer's own, half the plain ones that questions use.
    """
    draw = np.random.default_rng([seed, 2])
    lots = seeded(f"composed {seed}")
    things = _things(bank, [int(row) for row in composer.index.countable])
    while True:
        specs = [composer.draw(draw) for _ in range(batch)]
        captions, labels, wrong = [], [], []
        for spec in specs:
            scene = scene_of(bank, spec)
            captions.append(spec.caption if scene is None or lots.random() < 0.5 else scene.caption)
            # One thing alone on white is what a single picture shows too.
            alone = scene is not None and scene.count == "one" and not (scene.colour or scene.ground)
            labels.append((simple(scene.first) if alone and scene is not None else spec.caption).lower())
            if scene is not None and len(things) >= 3:
                false = [*swaps(scene, lots)[:3], others(scene, things, lots, change="first")]
                false = [s for s in lots.sample(false, len(false)) if not (s.key and held_out(s.key))]
                wrong += [(s.caption, s.caption.lower()) for s in false[:2]]
        pixels = torch.from_numpy(np.stack([composer.render(spec, size) for spec in specs]))
        pixels = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        # A wrong caption of one picture may be the right one of another; both spellings of that carry its
        # label.
        label_of = dict(zip(captions, labels, strict=True))
        wrong = [(caption, label_of.get(caption, label)) for caption, label in wrong]
        yield MatcherBatch(pixels, captions, labels, wrong)


class SceneQuestions:
    """Questions about composed pictures; draws depend on names alone, not on the model.

    ``references`` holds a question's real render by its name, uint8 RGB (size, size, 3).
    """

    def __init__(self, bank: EmojiBank, composer: Synthesiser) -> None:
        self.bank = bank
        self.composer = composer
        self._things = _things(bank, [int(row) for row in composer.index.countable])
        self._coloured = _things(bank, [int(row) for row in composer.index.one_hue])

    def held_out(self, count: int, seed: int = 0) -> list[tuple[Question, Spec]]:
        """Return questions about ``count`` held-out colours, relations and places, each combination once."""
        found: list[tuple[Question, Spec]] = []
        for spec in held_out_compositions(self.bank, 2 * count, seed, self.composer.index):
            scene = scene_of(self.bank, spec)
            # The sentence says nothing of a ground, so there must be none to see.
            if scene is not None and not scene.ground and len(found) < count:
                found.append((self._question(scene, spec), spec))
        return found

    def trained(self, count: int, seed: int = 0) -> list[tuple[Question, Spec]]:
        """Return questions about ``count`` compositions of kinds that are not held out: counts, grounds."""
        draw = np.random.default_rng([seed, 8])
        found: dict[str, tuple[Question, Spec]] = {}
        for _ in range(400 * count):
            if len(found) == count:
                break
            spec = self.composer.draw(draw)
            scene = scene_of(self.bank, spec)
            if scene is not None and scene.task in ("count", "ground") and not (scene.count and scene.ground):
                found.setdefault(scene.caption, (self._question(scene, spec), spec))
        return list(found.values())

    def _question(self, scene: Scene, spec: Spec) -> Question:
        """Ask for ``scene``: up to 9 attribute swaps (5 of a relation), then other objects."""
        draw = seeded(f"scene {scene.caption}")
        things = self._coloured if scene.colour else self._things
        right = scene.caption
        wrong = [s.caption for s in swaps(scene, draw)[:9]]
        turn = 0
        while len(wrong) < OPTIONS - 1:
            changes = ("first", "second", "both") if scene.second is not None else ("first", "both")
            caption = others(scene, things, draw, change=changes[turn % len(changes)]).caption
            turn += 1
            if caption != right and caption not in wrong:
                wrong.append(caption)
        style = STYLES[spec.style - 1] if spec.style else ""
        return Question(f"scene {right}", right, style, right, tuple(wrong), scene.task)
