"""What the judge of the emoji set learns from and is asked about: training cells, held-out cells, concepts.

Only the ``train`` split is learned from. A batch of single pictures is half random and half crowded: an
anchor concept with the concepts nearest to it in words, because half of every question's wrong captions are
such neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.data.captions import english, simple
from vitrail.data.emoji_bank import EmojiBank, EmojiRecord, Split
from vitrail.data.emoji_names import family_of
from vitrail.data.object_index import flip_safe
from vitrail.errors import DataError
from vitrail.evaluation.matcher_training import MatcherBatch
from vitrail.evaluation.prompt_hits import Concept, Question, concept_question, nearest_concepts, seeded

__all__ = ["ConceptQuestions", "concepts_of", "on_background", "pictures_of", "single_pictures"]

NEIGHBOURS_A_CONCEPT = 24


def on_background(rgba: NDArray[np.uint8], colours: NDArray[np.float32] | float = 255.0) -> Tensor:
    """Lay straight-alpha pictures (N, S, S, 4) over ``colours`` (N, 3) or one grey.

    Returns (N, 3, S, S) in [-1, 1].
    """
    pictures = rgba.astype(np.float32)
    alpha = pictures[..., 3:] / 255
    under = colours if isinstance(colours, float) else colours[:, None, None, :]
    return torch.from_numpy(pictures[..., :3] * alpha + under * (1 - alpha)).permute(0, 3, 1, 2) / 127.5 - 1


def pictures_of(bank: EmojiBank, rows: NDArray[np.int64], size: int) -> Tensor:
    """Return the pictures of ``rows`` on white, (N, 3, size, size) in [-1, 1]."""
    return on_background(np.asarray(bank.pictures(size)[rows]))


def concepts_of(bank: EmojiBank) -> list[Concept]:
    """Return every concept that some house has in the training split, in the order of first appearance.

    The caption is the plainest one ("a cat"). Two concepts of one English name are one concept here: no
    picture could tell their captions apart.
    """
    found: dict[str, Concept] = {}
    for record in bank.records:
        if record.split == "train":
            family = family_of(record.concept)
            found.setdefault(
                simple(record).lower(),
                Concept(record.concept, simple(record), record.keywords_en, record.group, family),
            )
    return list(found.values())


def single_pictures(bank: EmojiBank, size: int, batch: int, seed: int) -> Iterator[MatcherBatch]:
    """Yield endless batches of ``batch`` training pictures, a pure function of the seed.

    What may be mirrored is, half of the time. Three captions in five are the plain one that questions use,
    the others the bare name or a sentence with synonyms and keywords; the label is the plain caption. One
    picture in ten lies on a random plain ground, the others on white.
    """
    draw = np.random.default_rng([seed, 1])
    concepts = concepts_of(bank)
    nearest = nearest_concepts(concepts, NEIGHBOURS_A_CONCEPT)
    number_of = {concept.caption.lower(): number for number, concept in enumerate(concepts)}
    rows_of: list[list[int]] = [[] for _ in concepts]
    train = [int(row) for row in bank.indices("train")]
    for row in train:
        rows_of[number_of[simple(bank.records[row]).lower()]].append(row)
    pictures = bank.pictures(size)
    queue: list[int] = []
    while True:
        rows: list[int] = []
        while len(rows) < batch // 2:
            anchor = int(draw.integers(len(concepts)))
            crowd = [anchor, *draw.choice(nearest[concepts[anchor].key], 7, replace=False)]
            rows += [rows_of[number][draw.integers(len(rows_of[number]))] for number in crowd]
        rows = rows[: batch // 2]
        while len(rows) < batch:
            if not queue:
                queue = [train[i] for i in draw.permutation(len(train))]
            rows.append(queue.pop())
        records = [bank.records[row] for row in rows]
        colours = np.full((batch, 3), 255, np.float32)
        coloured = draw.random(batch) < 0.1
        colours[coloured] = draw.uniform(0, 255, (int(coloured.sum()), 3))
        cut = np.array(pictures[rows])
        mirrored = draw.random(batch) < 0.5
        for number, record in enumerate(records):
            if mirrored[number] and flip_safe(record):
                cut[number] = cut[number, :, ::-1].copy()
        pixels = on_background(cut, colours)
        yield MatcherBatch(
            pixels, [_caption(record, draw) for record in records], [simple(r).lower() for r in records]
        )


def _caption(record: EmojiRecord, draw: np.random.Generator) -> str:
    chance = draw.random()
    if chance < 0.6:
        return simple(record)
    return record.name_en if chance < 0.75 else english(record, draw, styled=0.0)


class ConceptQuestions:
    """Questions about single concepts of a built set; draws depend on names alone, not on the model."""

    def __init__(self, bank: EmojiBank) -> None:
        self.bank = bank
        self.concepts = concepts_of(bank)
        self._by_name = {concept.caption.lower(): concept for concept in self.concepts}
        self._nearest = nearest_concepts(self.concepts)

    def ask(self, split: Split, count: int | None = None, *, chinese: bool = False) -> list[Question]:
        """Return questions about ``count`` (default: all) pictures of ``split``, one each, in a fixed order.

        A concept is asked at most once while there are others, so that the questions are independent. With
        ``chinese`` the same questions come with the Chinese name as the prompt. The tag is the record's kind.
        Raises :class:`DataError` where the split holds fewer pictures.
        """
        rows = [int(row) for row in self.bank.indices(split) if self._name(int(row)) in self._by_name]
        rows = seeded(f"order of {split}").sample(rows, len(rows))
        again: dict[str, int] = {}
        turns = []
        for row in rows:
            again[self._name(row)] = again.get(self._name(row), -1) + 1
            turns.append(again[self._name(row)])
        rows = [row for _, _, row in sorted(zip(turns, range(len(rows)), rows, strict=True))]
        if count is not None and len(rows) < count:
            raise DataError(
                f"the split {split!r} holds {len(rows)} pictures to ask about, {count} were asked for"
            )
        return [self._question(row, chinese) for row in rows[:count]]

    def _name(self, row: int) -> str:
        return simple(self.bank.records[row]).lower()

    def _question(self, row: int, chinese: bool) -> Question:
        record = self.bank.records[row]
        return concept_question(
            record.id,
            self._by_name[self._name(row)],
            self.concepts,
            self._nearest,
            prompt=record.name_zh if chinese else None,
            style=record.style,
            tag=record.kind,
            source=row,
        )
