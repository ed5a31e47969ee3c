"""Questions: which wrong captions stand beside the right one, and what counts as a hit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitrail.data.emoji_bank import STYLES, EmojiBank, EmojiRecord
from vitrail.errors import DataError, InputError
from vitrail.evaluation.judge_data import (
    ConceptQuestions,
    concepts_of,
    on_background,
    pictures_of,
    single_pictures,
)
from vitrail.evaluation.matcher import Matcher, MatcherNetwork, MatcherSettings, Vocabulary
from vitrail.evaluation.prompt_hits import (
    OPTIONS,
    Concept,
    Question,
    answer,
    concept_question,
    nearest_concepts,
)

PETS = [Concept(f"pet{i}", f"pet number {i}", ("animal", "tame"), "Animals", f"pet{i}") for i in range(15)]
TOOLS = [Concept(f"tool{i}", f"tool number {i}", ("work",), "Objects", f"tool{i}") for i in range(30)]
COOKS = [
    Concept(f"cook{i}", name, ("kitchen",), "People", "cook") for i, name in enumerate(("cook", "woman cook"))
]
CONCEPTS = [*PETS, *TOOLS, *COOKS]


def bank(concepts: int = 30) -> EmojiBank:
    """A set in memory: plain discs, colour by concept; of every fifth the third style is held out."""
    records, pictures = [], []
    y, x = np.mgrid[:64, :64]
    disc = (y - 32) ** 2 + (x - 32) ** 2 < 600
    for number in range(concepts):
        for position, style in enumerate(STYLES[:3]):
            split = "concept" if number == 3 else "cell" if number % 5 == 0 and position == 2 else "train"
            records.append(
                EmojiRecord(
                    id=f"{style}/{0x1F400 + number:x}",
                    concept=f"{0x1F400 + number:x}",
                    style=style,
                    name_en=f"Thing {number}",
                    name_zh=f"东西{number}",
                    keywords_en=("thing", f"kind {number % 4}", "round"),
                    keywords_zh=(),
                    split=split,  # type: ignore[arg-type]
                    kind="object",
                    group="Objects" if number % 2 else "Activities",
                    package="none@0",
                    license="CC0-1.0",
                )
            )
            picture = np.zeros((64, 64, 4), np.uint8)
            picture[disc] = (number * 8, 255 - number * 8, position * 100, 255)
            pictures.append(picture)
    return EmojiBank(records, {64: np.stack(pictures)}, {})


def test_wrong_captions_are_half_hard_half_random_and_never_of_the_family() -> None:
    nearest = nearest_concepts(CONCEPTS)
    question = concept_question("q", PETS[0], CONCEPTS, nearest)
    assert len(question.wrong) == OPTIONS - 1
    assert question.caption == question.prompt == "pet number 0"
    assert question.caption not in question.wrong
    assert sum(caption.startswith("pet") for caption in question.wrong) >= 10
    cook = concept_question("q", COOKS[0], CONCEPTS, nearest)
    assert "woman cook" not in cook.wrong
    assert 45 not in nearest["cook0"]
    assert 46 not in nearest["cook0"]


def test_nearest_concepts_share_most_words() -> None:
    concepts = [
        Concept("cat", "cat", ("pet", "animal")),
        Concept("dog", "dog", ("pet", "animal")),
        Concept("cow", "cow", ("animal", "farm")),
        Concept("car", "a car", ("vehicle",)),
        Concept("same", "Cat", ("pet", "animal")),
    ]
    assert nearest_concepts(concepts, 2)["cat"] == [1, 2]  # not number 4, whose caption is equal


def test_questions_are_the_same_every_time_and_differ_by_name() -> None:
    nearest = nearest_concepts(CONCEPTS)
    one = concept_question("a", TOOLS[3], CONCEPTS, nearest)
    assert one == concept_question("a", TOOLS[3], CONCEPTS, nearest)
    assert one.wrong != concept_question("b", TOOLS[3], CONCEPTS, nearest).wrong


def test_too_few_concepts_and_double_captions_are_refused() -> None:
    few = CONCEPTS[:12]
    with pytest.raises(InputError, match="too few"):
        concept_question("q", few[0], few, nearest_concepts(few))
    with pytest.raises(InputError, match="19 different captions"):
        Question("q", "p", "", "x", tuple(["x", *(f"w{i}" for i in range(18))]))


class Fixed(Matcher):
    """A judge whose vectors are given: caption "k" is the axis k, a picture's vector is its first pixels."""

    def __init__(self) -> None:
        settings = MatcherSettings(image_size=16, widths=(8, 8, 8), blocks=(1, 1, 1), embedding=32)
        super().__init__(settings, Vocabulary([]), MatcherNetwork(settings, 2), "fixed")

    def embed_pictures(self, pixels: torch.Tensor, batch: int = 256) -> torch.Tensor:
        return pixels.flatten(1)[:, :32]

    def embed_captions(self, captions: object, batch: int = 1024) -> torch.Tensor:
        return torch.eye(32)[[int(caption) for caption in captions]]  # type: ignore[attr-defined]


def test_hits_ranks_and_ties() -> None:
    pixels = torch.zeros(4, 3, 16, 16)
    pixels.flatten(1)[0, 0] = 1.0  # right
    pixels.flatten(1)[1, [0, 5]] = torch.tensor([0.5, 0.9])  # one wrong caption above
    pixels.flatten(1)[2, [0, 5]] = torch.tensor([0.7, 0.7])  # a tie is no hit
    # the fourth is blank: all captions tie
    question = Question("q", "0", "", "0", tuple(str(i) for i in range(1, OPTIONS)))
    found = answer(Fixed(), pixels, [question] * 4)
    assert found.hits.tolist() == [True, False, False, False]
    assert found.ranks.tolist() == [0, 1, 1, OPTIONS - 1]
    assert found.rate.value == 0.25
    assert found.confidence[3].item() == pytest.approx(1 / OPTIONS)
    assert found.confidence[0] > found.confidence[1] > found.confidence[3]
    with pytest.raises(InputError, match="one each"):
        answer(Fixed(), pixels, [question])


def test_concepts_of_a_set_are_those_with_a_training_picture() -> None:
    captions = [concept.caption for concept in concepts_of(bank())]
    assert "Thing 3" not in captions
    assert len(captions) == 29


def test_questions_of_a_set() -> None:
    questions = ConceptQuestions(bank())
    cells = questions.ask("cell")
    assert {question.name for question in cells} == {f"twemoji/{0x1F400 + n:x}" for n in range(0, 30, 5)}
    assert all("Thing 3" not in question.wrong for question in cells)
    seen = questions.ask("train", 29)
    assert len({question.caption for question in seen}) == 29  # a concept comes twice only when all came once
    assert [q.name for q in questions.ask("train", 10)] == [q.name for q in seen[:10]]
    chinese = questions.ask("train", 10, chinese=True)
    assert [q.prompt for q in chinese] == [q.caption.replace("a Thing ", "东西") for q in seen[:10]]
    assert [q.wrong for q in chinese] == [q.wrong for q in seen[:10]]
    assert [q.style for q in seen] == [questions.bank.records[q.source or 0].style for q in seen]
    with pytest.raises(DataError, match="holds 6 pictures"):
        questions.ask("cell", 7)


def test_training_pictures_are_only_of_the_training_split() -> None:
    made = bank()
    held = {(f"a thing {n}", 2) for n in range(0, 30, 5)}
    stream = single_pictures(made, 64, 32, seed=1)
    seen: set[tuple[str, int]] = set()
    for _ in range(40):
        batch = next(stream)
        assert batch.pixels.shape == (32, 3, 64, 64)
        for pixels, caption, label in zip(batch.pixels, batch.captions, batch.labels, strict=True):
            blue = round((float(pixels[2, 32, 32]) + 1) * 127.5)  # names the style, see bank()
            seen.add((label, blue // 100))
            red = round((float(pixels[0, 32, 32]) + 1) * 127.5)  # names the concept
            assert label == f"a thing {red // 8}"
            assert any(word in caption.lower() for word in ("thing", "round", "kind"))
    assert len(seen) == 29 * 3 - 6
    assert not seen & held
    assert not any(name == "a thing 3" for name, _ in seen)


def test_training_pictures_are_a_function_of_the_seed() -> None:
    one, again, other = (next(single_pictures(bank(), 64, 16, seed=s)) for s in (1, 1, 2))
    assert torch.equal(one.pixels, again.pixels)
    assert one.captions == again.captions
    assert not torch.equal(one.pixels, other.pixels)


def test_backgrounds() -> None:
    rgba = np.zeros((2, 4, 4, 4), np.uint8)
    rgba[:, 0, 0] = (255, 0, 0, 255)
    rgba[:, 0, 1] = (0, 0, 0, 51)
    white = on_background(rgba)
    assert white[0, :, 0, 0].tolist() == [1, -1, -1]
    assert white[0, :, 3, 3].tolist() == [1, 1, 1]
    assert white[0, 0, 0, 1].item() == pytest.approx(0.8 * 2 - 1)
    blue = on_background(rgba, np.array([[0, 0, 255], [255, 255, 255]], np.float32))
    assert blue[0, :, 3, 3].tolist() == [-1, -1, 1]
    assert torch.equal(blue[1], white[1])
    assert pictures_of(bank(), np.array([0, 1]), 64).shape == (2, 3, 64, 64)
