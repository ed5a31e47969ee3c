"""Prompt hit rate: shown a picture, the judge picks its caption among 20.

A :class:`Question` is the right caption with 19 wrong ones, drawn once and for all from the question's own
name, so that every model is asked the same. The wrong captions of a concept are half hard (the concepts that
share most CLDR keywords, and others of the same Unicode group) and half random; those that a picture could
rightly carry (the same name, or another gender of the same activity) are never among them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.errors import InputError
from vitrail.evaluation.matcher import Matcher, words_of
from vitrail.evaluation.stats import Estimate, wilson

__all__ = [
    "OPTIONS",
    "Answers",
    "Concept",
    "Question",
    "answer",
    "by_tag",
    "concept_question",
    "nearest_concepts",
]

OPTIONS = 20
"""Captions a question offers, the right one included; chance is one in this many."""

_COMMON = frozenset(["a", "an", "and", "the", "of", "with", "in", "on", "to", "for", "s"])


@dataclass(frozen=True)
class Concept:
    """What concept questions need to know: a key, its caption, its keywords, its group, its family.

    Concepts of one ``family`` (a cook, a woman cook, a man cook) are never wrong answers for each other.
    """

    key: str
    caption: str
    keywords: tuple[str, ...] = ()
    group: str = ""
    family: str = ""

    @property
    def words(self) -> frozenset[str]:
        """The content words of caption and keywords."""
        return frozenset(w for text in (self.caption, *self.keywords) for w in words_of(text)) - _COMMON


@dataclass(frozen=True)
class Question:
    """A picture to ask for and to judge.

    name: unique, seeds what is drawn. prompt, style: what the generator gets ("" for no style); the prompt
    may be Chinese. caption: the right answer, English. wrong: the 19 others. tag: the kind of thing, for
    tables by kind. source: index of the real picture that shows exactly this, or None.
    """

    name: str
    prompt: str
    style: str
    caption: str
    wrong: tuple[str, ...]
    tag: str = ""
    source: int | None = None

    def __post_init__(self) -> None:
        options = {self.caption, *self.wrong}
        if len(options) != OPTIONS or len(self.wrong) != OPTIONS - 1:
            raise InputError(
                f"question {self.name!r} has {len(options)} different captions; it needs {OPTIONS}"
            )


@dataclass(frozen=True)
class Answers:
    """What the judge said: hits (N,) bool, ranks (N,) of the right caption (0 = first), confidence (N,)."""

    hits: Tensor
    ranks: Tensor
    confidence: Tensor

    @property
    def rate(self) -> Estimate:
        """The share of hits with Wilson's 95 % interval."""
        return wilson(int(self.hits.sum()), len(self.hits))


def seeded(name: str) -> random.Random:
    """Return a random source that depends on ``name`` alone."""
    return random.Random(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()))


def nearest_concepts(concepts: Sequence[Concept], count: int = 12) -> dict[str, list[int]]:
    """Return for each concept's key the indices of the ``count`` concepts whose words overlap most (Jaccard
    index).

    Its own family is left out, as are captions equal to its own; ties go to the earlier concept.
    """
    words = sorted({w for c in concepts for w in c.words})
    index = {word: number for number, word in enumerate(words)}
    table = torch.zeros(len(concepts), len(words))
    for number, concept in enumerate(concepts):
        table[number, [index[w] for w in concept.words]] = 1
    shared = table @ table.T
    sizes = table.sum(1)
    overlap = shared / (sizes[:, None] + sizes[None, :] - shared).clamp_min(1)
    order = torch.argsort(overlap, dim=1, descending=True, stable=True).tolist()
    found: dict[str, list[int]] = {}
    for number, concept in enumerate(concepts):
        found[concept.key] = [j for j in order[number] if may_be_wrong(concept, concepts[j])][:count]
    return found


def may_be_wrong(right: Concept, other: Concept) -> bool:
    """Tell whether ``other``'s caption is surely wrong for a picture of ``right``."""
    if other.key == right.key or other.caption.lower() == right.caption.lower():
        return False
    return not right.family or right.family != other.family


def concept_question(
    name: str,
    right: Concept,
    concepts: Sequence[Concept],
    nearest: Mapping[str, Sequence[int]],
    *,
    prompt: str | None = None,
    style: str = "",
    tag: str = "",
    source: int | None = None,
) -> Question:
    """Ask for ``right`` among 19 others of ``concepts``: 5 nearest by words, 5 of the same group, 9 at
    random.

    ``nearest`` comes from :func:`nearest_concepts` over the same ``concepts``. Raises :class:`InputError`
    where there are not 19 others.
    """
    draw = seeded(f"{name}/{right.key}")
    wrong: list[str] = []

    def take(candidates: Sequence[int], count: int) -> None:
        for number in candidates:
            if count == 0:
                return
            caption = concepts[number].caption
            if may_be_wrong(right, concepts[number]) and caption not in wrong:
                wrong.append(caption)
                count -= 1

    take(nearest[right.key], 5)
    same = [number for number, other in enumerate(concepts) if other.group == right.group]
    take(draw.sample(same, len(same)), 10 - len(wrong))
    take(draw.sample(range(len(concepts)), len(concepts)), OPTIONS - 1 - len(wrong))
    if len(wrong) < OPTIONS - 1:
        raise InputError(f"{len(concepts)} concepts are too few for a question among {OPTIONS}")
    return Question(name, prompt or right.caption, style, right.caption, tuple(wrong), tag, source)


def answer(matcher: Matcher, pixels: Tensor, questions: Sequence[Question]) -> Answers:
    """Ask the judge ``questions`` (N) about ``pixels`` (N, 3, H, W) in [-1, 1], one each.

    A tie between the right caption and a wrong one counts as wrong. Raises :class:`InputError` where the
    numbers of pictures and questions differ.
    """
    if len(pixels) != len(questions) or not questions:
        raise InputError(
            f"{len(pixels)} pictures for {len(questions)} questions; there must be one each, at least one"
        )
    captions = list(dict.fromkeys(c for q in questions for c in (q.caption, *q.wrong)))
    row = {caption: number for number, caption in enumerate(captions)}
    vectors = matcher.embed_captions(captions)
    pictures = matcher.embed_pictures(pixels)
    options = torch.tensor([[row[c] for c in (q.caption, *q.wrong)] for q in questions])
    scores = (vectors[options] @ pictures[:, :, None]).squeeze(2)
    ranks = (scores[:, 1:] >= scores[:, :1]).sum(1)
    with torch.no_grad():
        confidence = (scores * matcher.network.scale).softmax(1).max(1).values
    return Answers(ranks == 0, ranks, confidence)


def by_tag(answers: Answers, questions: Sequence[Question]) -> dict[str, Estimate]:
    """Return the hit rate of each tag among ``questions``, in alphabetical order."""
    tags = sorted({q.tag for q in questions})
    members = {tag: torch.tensor([q.tag == tag for q in questions]) for tag in tags}
    return {tag: wilson(int(answers.hits[rows].sum()), int(rows.sum())) for tag, rows in members.items()}
