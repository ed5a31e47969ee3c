"""Captions: grammar of articles and plurals, and captions that are always true of their record."""

from __future__ import annotations

import numpy as np
import pytest

from vitrail.data import captions
from vitrail.data.emoji_bank import EmojiRecord


def record(
    name: str = "cat", keywords: tuple[str, ...] = ("kitten", "pet", "g2g"), **changes: object
) -> EmojiRecord:
    fields: dict[str, object] = dict(
        id="noto/1f408", concept="1f408", style="noto", name_en=name, name_zh="猫",
        keywords_en=keywords, keywords_zh=("宠物",), split="train", kind="object",
        group="Animals & Nature", package="p", license="MIT",
    )  # fmt: skip
    return EmojiRecord(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "phrase", "many"),
    [
        ("cat", "a cat", "cats"),
        ("elephant", "an elephant", "elephants"),
        ("unicorn", "a unicorn", "unicorns"),
        ("unamused face", "an unamused face", "unamused faces"),
        ("umbrella", "an umbrella", "umbrellas"),
        ("euro banknote", "a euro banknote", "euro banknotes"),
        ("hourglass", "an hourglass", "hourglasses"),
        ("ATM sign", "an ATM sign", "ATM signs"),
        ("NEW button", "a NEW button", "NEW buttons"),
        ("x-ray", "an x-ray", "x-rays"),
        ("glass of milk", "a glass of milk", "glasses of milk"),
        ("person running", "a person running", "people running"),
        ("woman in manual wheelchair", "a woman in manual wheelchair", "women in manual wheelchair"),
        ("mouse", "a mouse", "mice"),
        ("fallen leaf", "a fallen leaf", "fallen leaves"),
        ("tropical fish", "a tropical fish", "tropical fish"),
        ("strawberry", "a strawberry", "strawberries"),
        ("monkey", "a monkey", "monkeys"),
        ("tomato", "a tomato", "tomatoes"),
        ("man's shoe", "a man's shoe", "men's shoes"),
        ("snowman", "a snowman", "snowmen"),
        ("bus", "a bus", "buses"),
        ("grapes", "grapes", None),
        ("scissors", "scissors", None),
        ("people hugging", "people hugging", None),
        ("bread", "bread", None),
        ("fork and knife", "fork and knife", None),
        ("Santa Claus", "Santa Claus", None),
        ("sun", "the sun", None),
        ("flag of France", "the flag of France", None),
    ],
)
def test_articles_and_plurals(name: str, phrase: str, many: str | None) -> None:
    assert captions.with_article(name) == phrase
    assert captions.plural(name) == many


def test_names_are_cldr_first_then_everyday_words() -> None:
    assert captions.names("automobile") == ("automobile", "car")
    assert captions.names("woman’s clothes")[0] == "woman's clothes"
    assert captions.plain_name("Japanese “here” button") == "Japanese here button"


def test_english_captions_vary_and_are_always_of_the_record() -> None:
    rng = np.random.default_rng(0)
    made = [captions.english(record(), rng) for _ in range(2000)]
    assert all("cat" in caption or "kitten" in caption or "pet" in caption for caption in made)
    assert not any("g2g" in caption or "  " in caption for caption in made)
    assert {"a cat", "cat", "cat emoji", "a drawing of a cat", "kitten", "a cat, pet"} <= set(made)
    styled = sum("noto" in caption for caption in made) / 2000
    assert styled == pytest.approx(0.1, abs=0.03)  # standard deviation .0067
    assert made.count("a cat") / 2000 == pytest.approx(0.36, abs=0.05)


def test_a_record_without_usable_keywords_gets_its_name() -> None:
    rng = np.random.default_rng(0)
    made = {captions.english(record(keywords=("g2g", "cat")), rng, styled=0) for _ in range(500)}
    assert all("cat" in caption for caption in made)


def test_captions_come_from_the_generator_alone() -> None:
    first = [captions.english(record(), np.random.default_rng(i)) for i in range(30)]
    assert first == [captions.english(record(), np.random.default_rng(i)) for i in range(30)]


def test_chinese_captions_hold_the_chinese_name() -> None:
    made = {captions.chinese(record(), np.random.default_rng(i)) for i in range(60)}
    assert made == {"猫", "猫的图片", "一张猫的画", "一只猫"}


def test_simple() -> None:
    assert captions.simple(record("red apple")) == "a red apple"
