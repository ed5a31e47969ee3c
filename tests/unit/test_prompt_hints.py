"""Hints are given when they are due, in both languages, and only then."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.models.prompt_hints import hint, unknown_english


def codes(prompt: str) -> list[str]:
    return [one.code for one in hint(prompt)]


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat sitting in a garden",
        "a red car to the left of a green tree",
        "three blue houses, flat style",
        "a man reading a newspaper",
        "two dogs running",
        "Red Panda",
        "A Happy Dog",
        "一只猫坐在花园里",
        "夜景",
        "红色的汽车在一棵树的左边",
        "三只狗",
        "\U0001f431",
    ],
)
def test_what_it_can_draw_needs_no_hint(prompt: str) -> None:
    assert codes(prompt) == []


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("photo of a dog", "photo"),
        ("photorealistic cat, 8k", "photo"),
        ("一张真实照片，一只狗", "photo"),
        ("写实的猫", "photo"),
        ('a sign that says "hello"', "writing"),
        ("a logo with the word cat", "writing"),
        ("写着“你好”的牌子", "writing"),
        ("Elon Musk riding a horse", "name"),
        ("Greta Thunberg in a garden", "name"),
        ("a cat in the style of Monet", "name"),
        ("爱因斯坦骑着自行车", "name"),
        ("一瓶可口可乐", "name"),
        ("twelve cats", "count"),
        ("9 cats", "count"),
        ("二十只猫", "count"),
        ("a zxqvy in a garden", "unknown"),
        ("一只鸱鸮", "unknown"),
        ("кот", "unknown"),
        ("蔷薇", "near"),
        ("", "nothing"),
        ("鸱鸮", "nothing"),
        ("a red car and " * 10, "long"),
    ],
)
def test_what_it_cannot_draw_gets_its_hint(prompt: str, code: str) -> None:
    given_hints = {one.code: one for one in hint(prompt)}
    assert code in given_hints
    one = given_hints[code]
    assert one.english.isprintable()
    assert one.chinese.isprintable()
    assert any("\u4e00" <= character <= "\u9fff" for character in one.chinese)
    assert str(one) == one.english


def test_the_encoder_has_the_last_word_on_length() -> None:
    assert "long" in [one.code for one in hint("a cat", truncated=True)]
    assert "long" not in [one.code for one in hint("a red car and " * 10, truncated=False)]


def test_hints_name_the_words() -> None:
    text = {one.code: str(one) for one in hint("a zxqvy and a wurglefrump")}["unknown"]
    assert "zxqvy, wurglefrump" in text
    many = " ".join(f"{a}q{b}x" for a in "bcdfg" for b in "hjkl")
    assert len({one.code: str(one) for one in hint(many)}["unknown"]) < 200


def test_inflected_words_are_known() -> None:
    assert unknown_english("cats running bigger wolves flies smiling smiled happily sunny") == []
    assert unknown_english("The qqzzt cat's qqzzt") == ["qqzzt"]


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_any_string_has_hints_or_none(prompt: str) -> None:
    for one in hint(prompt):
        assert len(one.english) < 400
