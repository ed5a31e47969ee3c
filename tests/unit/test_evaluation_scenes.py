"""Composed pictures: their words, the wrong captions beside them, what training leaves out."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vitrail.data.captions import names
from vitrail.data.composition import held_out
from vitrail.data.emoji_bank import STYLES, EmojiBank, EmojiRecord
from vitrail.data.object_index import COLOURS
from vitrail.data.synthesis import Synthesiser
from vitrail.errors import ArtifactError
from vitrail.evaluation.judge import data_hash, judge_captions, judge_stream, open_judge
from vitrail.evaluation.judge_scenes import (
    COUNTS,
    Scene,
    SceneQuestions,
    composed_pictures,
    others,
    scene_of,
    swaps,
)
from vitrail.evaluation.matcher import MatcherSettings, Vocabulary, words_of
from vitrail.evaluation.prompt_hits import OPTIONS

NAMES = words_of(
    "cat dog horse cow pig lion tiger bear rabbit frog bird fish car bus train boat rocket house tree "
    "flower apple pear lemon banana carrot cup spoon key bell book chair lamp hat shoe bag ring drum guitar "
    "kite ball"
)


def record(number: int, style: str = "noto") -> EmojiRecord:
    return EmojiRecord(
        id=f"{style}/{0x1F400 + number:x}",
        concept=f"{0x1F400 + number:x}",
        style=style,
        name_en=NAMES[number],
        name_zh="东西",
        keywords_en=("thing",),
        keywords_zh=(),
        split="train",
        kind="object",
        group="Objects",
        package="none@0",
        license="CC0-1.0",
    )


@pytest.fixture(scope="module")
def bank() -> EmojiBank:
    """Forty things in two styles: ellipses of one colour, their sides by concept."""
    records, pictures = [], []
    y, x = np.mgrid[:64, :64]
    for number in range(len(NAMES)):
        for style in STYLES[:2]:
            records.append(record(number, style))
            picture = np.zeros((64, 64, 4), np.uint8)
            red, green, blue = COLOURS[("red", "green", "blue", "purple")[number % 4]].rgb
            picture[((y - 32) / (12 + number / 3)) ** 2 + ((x - 32) / 22) ** 2 < 1] = (red, green, blue, 255)
            picture[30:34, 28:36] = (255, 255, 255, 255)
            pictures.append(picture)
    return EmojiBank(records, {64: np.stack(pictures)}, {})


@pytest.fixture(scope="module")
def composer(bank: EmojiBank) -> Synthesiser:
    return Synthesiser(bank)


def test_captions_of_scenes() -> None:
    cat, dog = record(0), record(1)
    assert Scene(cat).caption == "a cat"
    assert Scene(cat, colour="orange").caption == "an orange cat"
    assert Scene(cat, count="three", colour="red").caption == "three red cats"
    assert Scene(cat, count="one").caption == "one cat"
    assert Scene(cat, second=dog, relation="left").caption == "a cat to the left of a dog"
    assert Scene(cat, ground="orange").caption == "a cat on an orange background"
    assert Scene(cat, place="night").caption == "a cat at night"


def test_swaps_change_one_thing_and_are_wrong() -> None:
    cat, dog = record(0), record(1)
    draw = random.Random(1)
    colours = swaps(Scene(cat, colour="red"), draw)
    assert sorted(s.colour for s in colours) == sorted(c for c in COLOURS if c != "red")
    counts = swaps(Scene(cat, count="two"), draw)
    assert sorted(s.count for s in counts) == sorted(c for c in COUNTS if c != "two")
    places = {s.place for s in swaps(Scene(cat, place="night"), draw)}
    assert "desert" in places
    assert not places & {"night", "space"}  # stars in both: not surely wrong
    for relation in ("left", "right", "above", "below"):
        scene = Scene(cat, second=dog, relation=relation)
        turned = swaps(scene, draw)
        assert len({s.caption for s in turned}) == 5
        # "a dog to the right of a cat" says the same as "a cat to the left of a dog": keys are equal then.
        assert scene.key not in {s.key for s in turned}


def test_other_objects_are_other_objects(bank: EmojiBank) -> None:
    draw = random.Random(2)
    scene = Scene(record(0), second=record(1), relation="above")
    for change, kept in (("first", (False, True)), ("second", (True, False)), ("both", (False, False))):
        for _ in range(60):
            other = others(scene, bank.records, draw, change=change)
            assert other.second is not None
            assert (
                other.first.concept == scene.first.concept,
                other.second.concept == record(1).concept,
            ) == kept
            assert other.first.concept != other.second.concept
            assert other.relation == "above"


def test_scene_of_every_spec_says_what_its_caption_says(bank: EmojiBank, composer: Synthesiser) -> None:
    draw = np.random.default_rng(0)
    kinds: set[str] = set()
    for _ in range(400):
        spec = composer.draw(draw)
        scene = scene_of(bank, spec)
        if scene is None:
            assert spec.task in ("size", "rendition")
            continue
        kinds.add(scene.task)
        said = words_of(spec.caption)
        for word in (scene.colour, scene.ground, scene.count):
            assert not word or word in said, (spec.caption, scene.caption)
        if spec.key and scene.relation in ("left", "right", "above", "below"):
            assert scene.key == spec.key
        if spec.task in ("recolour", "scene"):
            assert scene.key == spec.key
        for word in words_of(scene.caption):
            if word in NAMES:
                assert any(set(words_of(name)) <= set(said) for name in names(word)), spec.caption
    assert kinds >= {"relation", "colour", "count", "ground"}


def test_questions_of_held_out_combinations(bank: EmojiBank, composer: Synthesiser) -> None:
    found = SceneQuestions(bank, composer).held_out(40)
    assert len(found) == 40
    assert len({question.caption for question, _ in found}) == 40
    for question, spec in found:
        assert held_out(spec.key)
        assert question.prompt == question.caption
        assert question.caption not in question.wrong
        assert len(set(question.wrong)) == OPTIONS - 1
        assert spec.background == (255, 255, 255) or spec.scene
    again = SceneQuestions(bank, Synthesiser(bank)).held_out(40)
    assert [question for question, _ in again] == [question for question, _ in found]


def test_questions_of_trained_kinds(bank: EmojiBank, composer: Synthesiser) -> None:
    found = SceneQuestions(bank, composer).trained(20)
    assert {question.tag for question, _ in found} == {"count", "ground"}
    for question, spec in found:
        if question.tag == "count":
            assert question.caption.split()[0] == COUNTS[len(spec.items) - 1]
            said = {caption.split(maxsplit=1)[1].rstrip("s") for caption in question.wrong}
            assert len(said) > 5  # other objects too


def test_training_never_names_a_held_out_combination(bank: EmojiBank, composer: Synthesiser) -> None:
    held = {question.caption for question, _ in SceneQuestions(bank, composer).held_out(120)}
    stream = composed_pictures(bank, composer, 64, 64, seed=4)
    for _ in range(8):
        batch = next(stream)
        assert batch.pixels.shape == (64, 3, 64, 64)
        assert batch.pixels.abs().max() <= 1
        assert not held & {*batch.captions, *(caption for caption, _ in batch.wrong)}
        right = dict(zip(batch.captions, batch.labels, strict=True))
        for caption, label in batch.wrong:
            assert right.get(caption, label) == label


def test_stream_mixes_both_kinds_and_repeats_itself(bank: EmojiBank, composer: Synthesiser) -> None:
    settings = MatcherSettings(batch=40)
    one, again = (next(judge_stream(bank, composer, settings)(6)) for _ in range(2))
    assert one.pixels.shape == (40, 3, 64, 64)
    assert len(one.captions) == len(one.labels) == 40
    assert one.captions == again.captions
    assert torch.equal(one.pixels, again.pixels)
    assert one.wrong == again.wrong
    assert len(one.wrong) > 0


def test_every_word_of_questions_is_known(bank: EmojiBank, composer: Synthesiser) -> None:
    known = set(Vocabulary.of(judge_captions(bank, composer)).words)
    questions = SceneQuestions(bank, composer)
    asked = [q for q, _ in (*questions.held_out(40), *questions.trained(20))]
    assert {word for q in asked for c in (q.caption, *q.wrong) for word in words_of(c)} <= known


def test_judge_is_trained_once_and_named_after_data_and_settings(
    bank: EmojiBank, composer: Synthesiser, tmp_path: Path
) -> None:
    tiny = MatcherSettings(
        widths=(8, 8, 16),
        blocks=(1, 1, 1),
        layout=2,
        word_width=16,
        word_depth=1,
        embedding=16,
        pictures=80,
        batch=40,
    )
    first = open_judge(bank, composer, tiny, folder=tmp_path)
    files = list(tmp_path.iterdir())
    assert [file.name for file in files] == [f"judge-{tiny.digest(data_hash(bank))}.safetensors"]
    stamp = files[0].stat().st_mtime_ns
    again = open_judge(bank, composer, tiny, folder=tmp_path)
    assert files[0].stat().st_mtime_ns == stamp
    assert torch.equal(first.embed_captions(["a cat"]), again.embed_captions(["a cat"]))
    assert first.name == again.name
    other = replace(tiny, seed=2)
    files[0].rename(tmp_path / f"judge-{other.digest(data_hash(bank))}.safetensors")
    with pytest.raises(ArtifactError, match="holds the judge"):
        open_judge(bank, composer, other, folder=tmp_path)
    smaller = EmojiBank(bank.records[:-1], {64: bank.pictures(64)[:-1]}, {})
    assert data_hash(smaller) != data_hash(bank)
