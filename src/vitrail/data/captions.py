"""Captions of one picture: English for training and use, Chinese for measuring.

The grammar is small and its own: articles ("a unicorn", "an hourglass", "scissors"), plurals of whole names
("glasses of milk", "people running") and a few frames around them. Exceptions are in
`vitrail.data.caption_tables`.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np

from vitrail.data.caption_tables import (
    IRREGULAR_PLURALS,
    MASS_NOUNS,
    MEASURE_WORDS,
    NO_ARTICLE,
    NOT_PLURAL,
    PLURAL_NAMES,
    STYLE_PHRASES,
    SYNONYMS,
    THE_NAMES,
)
from vitrail.data.emoji_bank import EmojiRecord

__all__ = [
    "chinese",
    "english",
    "names",
    "number_of",
    "plain_name",
    "plural",
    "simple",
    "style_phrase",
    "usable_keywords",
    "with_article",
]

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
_PREPOSITIONS = frozenset(
    {
        "with",
        "of",
        "in",
        "on",
        "at",
        "to",
        "for",
        "behind",
        "without",
        "from",
        "and",
        "under",
        "over",
        "not",
        "done",
    }
    | {
        "facing",
        "pointed",
        "pointing",
        "tilted",
        "holding",
        "wearing",
        "getting",
        "showing",
        "crossing",
        "blowing",
    }
    | {"savoring", "screaming", "exhaling", "vomiting"}
)
_PEOPLE = ("person", "man", "woman", "people", "men", "women", "child")
_FRAMES = (
    (0.40, "{np}"),
    (0.20, "{name}"),
    (0.06, "{name} emoji"),
    (0.05, "a drawing of {np}"),
    (0.05, "a picture of {np}"),
    (0.03, "an icon of {np}"),
    (0.03, "an illustration of {np}"),
    (0.12, "{np}, {keywords}"),
    (0.06, "{keywords}"),
)
_FRAME_STEPS = np.cumsum([weight for weight, _ in _FRAMES])


def plain_name(name: str) -> str:
    """A CLDR name in plain typing: straight apostrophes, no quotation marks or brackets."""
    text = name.replace("’", "'").replace("“", "").replace("”", "")
    return re.sub(r"\s+", " ", re.sub(r"[()]", "", text)).strip()


def _head(words: list[str]) -> int:
    """Position of the word that carries number: "glass" in "glass of milk", "man" in "man running"."""
    if words[0].lower() in _PEOPLE:
        return 0
    for position in range(1, len(words)):
        if words[position].lower() in _PREPOSITIONS:
            return position - 1
    return len(words) - 1


def _is_plural_word(word: str) -> bool:
    word = word.lower()
    if word in PLURAL_NAMES or word.endswith(("people", "-men")):
        return True
    return word.endswith("s") and not word.endswith(("ss", "us", "is", "'s")) and word not in NOT_PLURAL


@lru_cache(maxsize=8192)
def number_of(name: str) -> str:
    """ "singular", "plural" (grapes), "mass" (bread) or "proper" (Santa Claus) for a bare name."""
    if name in THE_NAMES:
        return "proper"
    if name in NO_ARTICLE:
        return "mass"
    words = name.split()
    head = words[_head(words)]
    if " and " in f" {name} " and " of " not in name and _head(words) + 1 < len(words) and "and" in words:
        return "mass"  # "fork and knife" is neither one thing nor many
    if _is_plural_word(head):
        return "plural"
    return "mass" if head.lower() in MASS_NOUNS and len(words) == 1 else "singular"


@lru_cache(maxsize=8192)
def with_article(name: str) -> str:
    """A bare name as a noun phrase: "a cat", "an hourglass", "grapes", "the sun", "flag of Chad" -> "the flag
    of Chad".
    """
    if name in THE_NAMES or name.startswith("flag of "):
        return f"the {name}"
    if number_of(name) != "singular":
        return name
    return f"{_article(name)} {name}"


def _article(phrase: str) -> str:
    word = phrase.split()[0]
    lower = word.lower()
    if re.fullmatch(r"[A-Z]{2,}!?", word) and word not in ("FREE", "NEW", "COOL", "BACK", "TOP", "SOON"):
        return "an" if word[0] in "AEFHILMNORSX" and word not in ("UP!",) else "a"
    if lower.startswith(("hour", "honest", "heir", "x-ray")) or lower == "herb":
        return "an"
    if re.match(r"(uni(?!n)|use|euro|ewe|one|ufo|u-|ut[ei])", lower):
        return "a"
    if lower[0].isdigit():
        return "an" if lower.startswith(("8", "11", "18")) else "a"
    return "an" if lower[0] in "aeiou" else "a"


def _plural_word(word: str) -> str:
    lower = word.lower()
    if lower in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[lower]
    for ending, replacement in (("woman", "women"), ("man", "men"), ("person", "people"), ("fish", "fish")):
        if lower.endswith(ending) and lower not in ("human", "ottoman"):
            return word[: -len(ending)] + replacement
    if lower.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if lower.endswith("y") and lower[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    if lower in (
        "potato",
        "tomato",
        "mango",
        "volcano",
        "tornado",
        "mosquito",
        "hero",
        "flamingo",
        "buffalo",
        "domino",
    ):
        return word + "es"
    return word + "s"


@lru_cache(maxsize=8192)
def plural(name: str) -> str | None:
    """The plural of a bare name, or None where it has none ("bread", "Santa Claus", "grapes")."""
    if number_of(name) != "singular" or name.startswith("flag of "):
        return None
    words = name.split()
    head = _head(words)
    words[head] = _plural_word(words[head])
    if head > 0 and words[head - 1].lower() in ("man's", "woman's"):
        words[head - 1] = words[head - 1].replace("an's", "en's")
    return " ".join(words)


@lru_cache(maxsize=8192)
def names(cldr_name: str) -> tuple[str, ...]:
    """Bare names of one thing: CLDR's first, then what a person would rather say."""
    name = plain_name(cldr_name)
    return (name, *SYNONYMS.get(name, ()))


@lru_cache(maxsize=8192)
def usable_keywords(keywords: tuple[str, ...]) -> tuple[str, ...]:
    """Keywords that are words: no abbreviations, numbers or chat slang."""
    return tuple(
        k for k in keywords if re.fullmatch(r"[A-Za-z][a-z]+(?:[ -][a-z]+)*", k) and 3 <= len(k) <= 20
    )


def style_phrase(style: str, rng: np.random.Generator) -> str:
    """A way to name a house style in words."""
    phrases = STYLE_PHRASES[style]
    return phrases[int(rng.integers(len(phrases)))]


def pick_name(record: EmojiRecord, rng: np.random.Generator, other: float = 0.4) -> str:
    """CLDR's bare name, or with probability `other` one of its synonyms if it has any."""
    choices = names(record.name_en)
    if len(choices) == 1 or rng.random() >= other:
        return choices[0]
    return choices[1 + int(rng.integers(len(choices) - 1))]


def simple(record: EmojiRecord) -> str:
    """The plainest caption, without chance: "a cat"."""
    return with_article(names(record.name_en)[0])


def english(record: EmojiRecord, rng: np.random.Generator, *, styled: float = 0.1) -> str:
    """A caption for training: one of nine frames; with probability `styled` the house style is named in
    words.
    """
    name = pick_name(record, rng)
    frame = _FRAMES[min(int(np.searchsorted(_FRAME_STEPS, rng.random())), len(_FRAMES) - 1)][1]
    words = ""
    if "{keywords}" in frame:
        words = _some_keywords(record, rng)
        if not words:
            frame = "{np}"
    caption = frame.format(np=with_article(name), name=name, keywords=words)
    if rng.random() < styled:
        caption = f"{caption}, {style_phrase(record.style, rng)}"
    return caption


def _some_keywords(record: EmojiRecord, rng: np.random.Generator) -> str:
    """Up to three keywords that the name does not already say; "" if there are none."""
    said = set(record.name_en.lower().split())
    pool = [k for k in usable_keywords(record.keywords_en) if k.lower() not in said]
    if not pool:
        return ""
    count = min(len(pool), 1 + int(rng.integers(3)))
    return ", ".join(pool[i] for i in rng.permutation(len(pool))[:count])


def chinese(record: EmojiRecord, rng: np.random.Generator) -> str:
    """A Chinese caption for measuring: the name alone, with a measure word, or in a short frame."""
    name = record.name_zh
    frames = [name, f"{name}的图片", f"一张{name}的画"]
    if record.kind == "object" and (measure := MEASURE_WORDS.get(record.group)):
        frames.append(f"一{measure}{name}")
    return frames[int(rng.integers(len(frames)))]
